"""The numbers of collected rows: what the policy solves, what critiques say and achieve, each with its interval.

They are of the files alone, one after the other, so a collection that was interrupted gives the same.
"""

import collections
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.evaluation.collection import UTILITY
from cgrpo_jax.evaluation.diversity import distinct_ngrams
from cgrpo_jax.evaluation.estimators import bootstrap_ratios
from cgrpo_jax.evaluation.summary import aligned, cell, said_of_ungraded, share
from cgrpo_jax.records import Author, Stage

_COLUMNS = ("row", "parent", "stage", "question_index", "author", "reward", "rewards", "ungraded", "verdict")
_COLUMNS += ("extracted", "token_ids")
_RESPONSE, _CRITIQUE, _REFINEMENT = (stage.name.lower() for stage in Stage)
# What is counted of each question: of how many (the second) it is so of how many (the first).
_RATIOS = {
    "pass@1": "of the responses, right ones",
    "fix_rate": "of the refinements of wrong responses, right ones",
    "break_rate": "of the refinements of right responses, wrong ones",
    "utility": "of a critique, the mean over the refinements after it: 1 better than the response, 0.5 alike, 0 worse",
    "verdict_accuracy": "of the critiques that a model wrote, those whose verdict is right",
    "false_right": "of these, of wrong responses, those that call them right",
    "false_wrong": "of these, of right responses, those that call them wrong",
    "malformed": "of these, those whose verdict can't be read",
    "distinct_answers": "of the final answers to a question, different ones",
    "distinct_4grams": "of the runs of 4 tokens in the responses to a question, different ones",
}
SHOWN = ("solved", *_RATIOS)  # of a summary, in this order


def summarize(
    paths: Iterable[pathlib.Path], *, pass_threshold: float, seed: int, have_verdicts: bool = True
) -> dict[str, Any]:
    """Returns the numbers of files of rows.

    Args:
      paths: of the files.
      pass_threshold: reward from which a row is right.
      seed: of the bootstrap.
      have_verdicts: whether critiques are to end in one; hints, which are of no response, have none.

    Returns:
      `questions`, `responses`, `critiques`, `refinements`: how many; `ungraded`: of the second and the last, those
      without a verdict, because their grader failed; `unanswered`: critiques that their endpoint left out. `solved`,
      the share of the questions with a right response, as `{"value", "low", "high"}` (Wilson's interval), and so, with
      the bootstrap's over questions, those of `_RATIOS` whose denominator is not 0; `low` and `high` are None where it
      is of one question. In `pass@1` and `solved` responses without a verdict count as wrong; elsewhere what has none,
      or whose response has none, is left out.
    """
    counts: collections.Counter[str] = collections.Counter()
    parts: list[dict[str, float]] = []
    wholes: list[dict[str, float]] = []
    solved = 0
    for path in paths:
        by_question: dict[int, list[Mapping[str, Any]]] = collections.defaultdict(list)
        rows = rollouts.read_columns(path, _COLUMNS).to_pylist()
        for row in rows:
            by_question[row["question_index"]].append(row)
        for some in by_question.values():
            part, whole = _of_question(some, rows, pass_threshold, have_verdicts)
            parts.append(part)
            wholes.append(whole)
            solved += part["pass@1"] > 0
            counts.update(_counts(some))
    counted = {"questions": len(parts)}
    for name in ("responses", "critiques", "refinements", "ungraded", "unanswered"):
        counted[name] = counts[name]
    return counted | {"solved": share(solved, len(parts))} | _ratios(parts, wholes, seed=seed)


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    stages = collections.Counter(row["stage"] for row in rows)
    return {
        "responses": stages[_RESPONSE],
        "critiques": stages[_CRITIQUE],
        "refinements": stages[_REFINEMENT],
        "ungraded": sum(row["ungraded"] and row["stage"] != _CRITIQUE for row in rows),
        "unanswered": sum(row["ungraded"] and row["stage"] == _CRITIQUE for row in rows),
    }


def _of_question(
    rows: Sequence[Mapping[str, Any]], file: Sequence[Mapping[str, Any]], pass_threshold: float, have_verdicts: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns numerators and denominators of `_RATIOS` of a question; `file` holds all rows by their numbers."""
    part: dict[str, float] = collections.defaultdict(float)
    whole: dict[str, float] = collections.defaultdict(float)

    def count(name: str, value: float) -> None:
        part[name] += value
        whole[name] += 1

    def passed(row: Mapping[str, Any]) -> bool | None:
        return None if row["reward"] is None else row["reward"] >= pass_threshold

    utilities: dict[int, list[float]] = collections.defaultdict(list)  # of each critique
    for row in rows:
        parent = None if row["parent"] is None else file[row["parent"]]
        if row["stage"] == _RESPONSE:
            count("pass@1", bool(passed(row)))
        elif row["stage"] == _CRITIQUE and parent and have_verdicts:
            if row["author"] != Author.RULE and not row["ungraded"] and (right := passed(parent)) is not None:
                verdict = row["verdict"]
                count("verdict_accuracy", verdict is right)
                count("false_wrong" if right else "false_right", verdict is (not right))
                count("malformed", verdict is None)
        elif row["stage"] == _REFINEMENT and parent:
            response = parent if parent["stage"] == _RESPONSE else file[parent["parent"]]
            before, after = passed(response), passed(row)
            if before is not None and after is not None:
                count("break_rate" if before else "fix_rate", after != before)
            if (worth := _utility(row)) is not None:
                utilities[parent["row"]].append(worth)
    for values in utilities.values():
        count("utility", sum(values) / len(values))
    responses = [row for row in rows if row["stage"] == _RESPONSE]
    answers = [row["extracted"] for row in responses if row["extracted"] is not None]
    part["distinct_answers"], whole["distinct_answers"] = len(set(answers)), len(answers)
    part["distinct_4grams"], whole["distinct_4grams"] = distinct_ngrams([row["token_ids"] for row in responses], n=4)
    return {name: part[name] for name in _RATIOS}, {name: whole[name] for name in _RATIOS}


def _utility(row: Mapping[str, Any]) -> float | None:
    return next((one["reward"] for one in row["rewards"] or () if one["name"] == UTILITY), None)


def _ratios(
    parts: Sequence[Mapping[str, float]], wholes: Sequence[Mapping[str, float]], *, seed: int
) -> dict[str, dict[str, float | None]]:
    names = [name for name in _RATIOS if any(whole[name] for whole in wholes)]
    if not names:
        return {}
    part_MQ = np.array([[one[name] for one in parts] for name in names], np.float64)
    whole_MQ = np.array([[one[name] for one in wholes] for name in names], np.float64)
    low_M, high_M = bootstrap_ratios(part_MQ, whole_MQ, seed=seed)
    values_M = part_MQ.sum(axis=1) / whole_MQ.sum(axis=1)
    return {
        name: {"value": float(values_M[m]), "low": _known(low_M[m]), "high": _known(high_M[m])}
        for m, name in enumerate(names)
    }


def _known(end: float) -> float | None:
    return None if math.isnan(end) else float(end)


def table(summary: Mapping[str, Any]) -> str:
    """Returns a summary as a table: a row for each number, with what it is of."""
    said = {"solved": "of the questions, those with a right response"} | _RATIOS
    found = {name: text for name, text in said.items() if name in summary}
    numbers = aligned([["", "mean (95 %)"], *([name.replace("_", " "), cell(summary[name])] for name in found)])
    lines = [f"{line}  {text}" for line, text in zip(numbers.splitlines(), ["of what", *found.values()], strict=True)]
    counts = ", ".join(f"{summary[name]} {name}" for name in ("questions", "responses", "critiques", "refinements"))
    unanswered = summary["unanswered"] and f"{summary['unanswered']} critiques did not come from their endpoint\n"
    ungraded = said_of_ungraded({"responses and refinements": summary["ungraded"]})
    return "\n".join([counts, *lines, f"{unanswered or ''}{ungraded}"])
