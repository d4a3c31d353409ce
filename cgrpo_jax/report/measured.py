"""What `evaluate` and `diagnose` have found of a run, from the folders `evaluation` and `diagnosis` in it."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax.evaluation import behaviours, estimators
from cgrpo_jax.report import details
from cgrpo_jax.report.run_folder import RunFolder
from cgrpo_jax.runtime import text as text_lib

MOST_CASES = 8  # texts of each kind
_MOST_CHARACTERS = 6000  # of one of them
_FIXED, _BROKEN, _STILL = "fixed", "broken", "still wrong"


def of_run(run: RunFolder, faults: list[str]) -> dict[str, Any]:
    """Returns `evaluation` and `diagnosis` of a run, each None where there is none, or none that has ended.

    Args:
      run: the run.
      faults: what can't be read is said here.
    """
    found: dict[str, Any] = {}
    for name, read in (("evaluation", _evaluation), ("diagnosis", _diagnosis)):
        folder = run.path / name
        found[name] = None
        try:
            if (folder / "summary.json").is_file():
                found[name] = read(folder, run.facts.pass_threshold)
            elif (folder / "about.json").is_file():
                faults.append(f"{run.name}: its {name} has not ended, and is not shown")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            what = text_lib.one_line(f"{type(error).__name__}: {error}")[:160]
            faults.append(f"{run.name}: its {name} can't be read ({what})")
    return found


# --- evaluation -------------------------------------------------------------------------------------------------------


def _evaluation(folder: pathlib.Path, threshold: float) -> dict[str, Any]:
    """Returns the summary of an evaluation, with pass@k for each k, test-time refinements and behaviours.

    `curves` are by benchmark: of `ks`, the powers of two and the number of samples, the unbiased pass@k in `value`, and
    the bootstrap's 95 % interval over questions in `low` and `high`.
    """
    summary = _summary(folder)
    correct: dict[str, list[int]] = {}
    numbers: dict[str, int] = {}
    cases: dict[str, list[dict[str, Any]]] = {_FIXED: [], _BROKEN: [], _STILL: []}
    seen = behaviours.Counts()
    for line in _lines(folder / "samples.jsonl"):
        source = line["source"] or "held-out"
        if "rewards" in line:
            correct.setdefault(source, []).append(sum(reward >= threshold for reward in line["rewards"]))
            numbers[source] = len(line["rewards"])
        texts = zip(line.get("samples", [line["greedy"]]), line.get("rewards", [line["greedy_reward"]]), strict=True)
        seen.add([text for text, reward in texts if reward >= threshold])
        if case := _refined(line, threshold):
            cases[case["became"]].append(case)
    return {
        "weights": str(summary.get("weights", "")),
        "benchmarks": summary["benchmarks"],
        "curves": {name: _curve(counts, numbers[name]) for name, counts in correct.items()},
        "cases": [one for some in cases.values() for one in some[:MOST_CASES]],
        "behaviours": seen.shares() | behaviours.judged(folder),
    }


def _curve(correct_Q: Sequence[int], number: int) -> dict[str, list[float]]:
    ks = sorted({2**n for n in range(number.bit_length()) if 2**n <= number} | {number})
    by_k_KQ = np.array([[estimators.pass_at_k([one], number, k) for one in correct_Q] for k in ks])
    low_K, high_K = estimators.bootstrap([by_k_KQ], seed=0)
    return {
        "ks": [float(k) for k in ks],
        "value": by_k_KQ.mean(axis=1).tolist(),
        "low": low_K.tolist(),
        "high": high_K.tolist(),
    }


def _refined(line: Mapping[str, Any], threshold: float) -> dict[str, Any] | None:
    """Returns a case of test-time refinement; None where the answer was kept, or has no verdict."""
    if "refinement" not in line or line["refined_ungraded"]:
        return None
    before, after = line["greedy_reward"] >= threshold, line["refined_reward"] >= threshold
    if before and after:
        return None
    return _question(line) | {
        "became": _BROKEN if before else _FIXED if after else _STILL,
        "response": _cut(line["greedy"]),
        "critique": _cut(line["critique"] or ""),
        "refinement": _cut(line["refinement"]),
    }


# --- diagnosis --------------------------------------------------------------------------------------------------------


def _diagnosis(folder: pathlib.Path, threshold: float) -> dict[str, Any]:
    """Returns the summary of a diagnosis, with cases of each kind of critique: solved by a refinement, and not."""
    summary = _summary(folder)
    failing = {line["number"]: line for line in _lines(folder / "responses.jsonl")}
    cases = []
    for kind in summary["kinds"]:
        of_kind: dict[str, list[dict[str, Any]]] = {_FIXED: [], _STILL: []}
        for line in _lines(folder / f"{kind}.jsonl"):
            case = _criticised(line, failing[line["number"]]["responses"], threshold)
            if case:
                of_kind[case["became"]].append(case | {"kind": kind})
        cases += [one for some in of_kind.values() for one in some[: MOST_CASES // 2]]
    return {name: summary[name] for name in ("questions", "accuracy", "persistent_failures", "kinds")} | {
        "weights": str(summary.get("weights", "")),
        "cases": cases,
    }


def _criticised(line: Mapping[str, Any], responses: Sequence[str], threshold: float) -> dict[str, Any] | None:
    """Returns a persistently failing question with one response, its critique and, if there is one, its refinement.

    Of several it is a refinement that passes, else the first one, else the first critique.
    """
    refinements = sorted(line["refinements"], key=lambda one: one["reward"] < threshold)
    if not line["critiques"]:
        return None
    of = (refinements or line["critiques"])[0]
    critique = next(
        one for one in line["critiques"] if (one["response"], one["critique"]) == (of["response"], of["critique"])
    )
    return _question(line) | {
        "became": _FIXED if refinements and refinements[0]["reward"] >= threshold else _STILL,
        "response": _cut(responses[int(of["response"])]),
        "critique": _cut(critique["text"]),
        "verdict": critique["verdict"],
        "refinement": _cut(refinements[0]["text"]) if refinements else None,
    }


# --- both -------------------------------------------------------------------------------------------------------------


def _summary(folder: pathlib.Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("summary.json holds no object")
    return found


def _question(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": line["id"], "question": _cut(line["question"]), "answer": _cut(line["answer"])}


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _cut(text: str) -> str:
    return details.shortened(text, _MOST_CHARACTERS)
