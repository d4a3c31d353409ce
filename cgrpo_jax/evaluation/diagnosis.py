"""The paper's diagnosis (arXiv 2506.03106, Tables 1 and 12): what reward alone leaves unsolved, and what critiques do.

A question fails persistently if none of a few sampled responses passes. Each of these is critiqued, by every kind of
critique, and refined where the critique is valid: its verdict can be read and agrees with the verifier's. None is
written again, replaced, or made wrong on purpose, as training would: what is measured is the critic. The kind `none` is
its control: each response is refined without a critique.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax import rollout
from cgrpo_jax.evaluation import benchmark, resumable_results
from cgrpo_jax.evaluation.estimators import bootstrap, pass_at_k
from cgrpo_jax.evaluation.summary import aligned, cell, said_of_ungraded, share
from cgrpo_jax.inference.critic import Critic, critique_once
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import Orchestrator, Status, gather
from cgrpo_jax.records import Problem, Rollout, RowIndex
from cgrpo_jax.runtime import processes

STREAM = benchmark.STREAM + 1  # of random keys, which training and evaluation don't draw from


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How questions are diagnosed.

    Attributes:
      num_responses: responses a question; it fails persistently if none passes.
      num_critiques, refinements_per_critique: for each response, and for each valid critique.
      max_length: tokens a response or refinement may have.
      pass_threshold: reward from which a response is right.
      texts_per_slot: as for `resumable_results.part_size`.
    """

    num_responses: int
    num_critiques: int
    refinements_per_critique: int
    max_length: int
    pass_threshold: float
    texts_per_slot: int = 8


def respond_on_disk(
    policy: Generator,
    problems: Sequence[Problem],
    *,
    results: resumable_results.Results,
    protocol: Protocol,
    orchestrator: Orchestrator,
    on_tick: Callable[[Status], None] | None = None,
) -> None:
    """Writes the responses to each question, scored, to its line of `responses.jsonl`.

    Args:
      policy: who responds.
      problems: the questions.
      results: the open folder; questions that are there are not done again.
      protocol: how they are diagnosed.
      orchestrator: with the grader.
      on_tick: as in `Orchestrator.run`.
    """
    p = protocol

    async def solve(q: int, problem: Problem, known: dict) -> dict:
        rows = await rollout.respond(
            policy, problem, question=q, num_responses=p.num_responses, max_length=p.max_length
        )
        rows = await rollout.score(rows, problem)
        return known | {
            "responses": [row.whole_text for row in rows],
            "rewards": [row.reward for row in rows],
            "extracted": [row.extracted for row in rows],
            "feedback": [row.feedback for row in rows],
            "lengths": [len(row.token_ids) for row in rows],
            "truncated": [row.truncated for row in rows],
            "ungraded": benchmark.num_ungraded(rows),
        }

    numbered = list(enumerate(problems))
    resumable_results.run_parts(
        results, "responses", numbered, solve,
        known=lambda first, last: [benchmark.header(*one) for one in numbered[first:last]],
        generators=[policy], texts=p.num_responses, texts_per_slot=p.texts_per_slot,
        orchestrator=orchestrator, on_tick=on_tick,
    )  # fmt: skip


def critique_on_disk(
    kind: str,
    policy: Generator,
    critic: Critic,
    problems: Sequence[Problem],
    *,
    encode: Callable[[str], list[int]],
    results: resumable_results.Results,
    protocol: Protocol,
    orchestrator: Orchestrator,
    on_tick: Callable[[Status], None] | None = None,
) -> None:
    """Writes the critiques of one kind, and the refinements after them, of persistent failures to `KIND.jsonl`.

    Args:
      kind: of the critiques: the file's name.
      policy: who refines.
      critic: who criticises, of that kind.
      problems: all questions; those that fail are read from `responses.jsonl`.
      encode: text to token ids.
      results, protocol, orchestrator, on_tick: as for `respond_on_disk`.
    """
    p = protocol
    failed: list[dict] = []  # on process 0; the others get a part at a time

    def find() -> list[int]:
        failed.extend(line for line in results.lines("responses") if fails(line, p.pass_threshold))
        return [line["number"] for line in failed]

    numbered = [(q, problems[q]) for q in processes.decide(find, f"reading {results.path}")]

    async def solve(q: int, problem: Problem, known: dict) -> dict:
        rows = [
            benchmark.text_row(
                text, RowIndex(question=q, response=i), reward=known["rewards"][i], extracted=known["extracted"][i],
                feedback=known["feedback"][i], truncated=known["truncated"][i],
            )
            for i, text in enumerate(known["responses"])
        ]  # fmt: skip
        critiques = await _critiques(critic, rows, problem, encode, p)
        valid = [row for row in critiques if row.verdict is False]  # so says the verifier of all of them
        refinements: list[Rollout] = []
        if valid:
            refinements, _ = await rollout.refine(
                policy, valid, problem,
                max_length=p.max_length, refinements_per_critique=p.refinements_per_critique, shows=critic.shows,
            )  # fmt: skip
            refinements = await rollout.score(refinements, problem)
        return benchmark.header(q, problem) | {
            "critiques": [_fields(row) | {"verdict": row.verdict} for row in critiques if critic.shows != "nothing"],
            "refinements": [_fields(row) | {"reward": row.reward, "extracted": row.extracted} for row in refinements],
            "ungraded": benchmark.num_ungraded(refinements),
        }

    resumable_results.run_parts(
        results, kind, numbered, solve,
        known=lambda first, last: failed[first:last],
        generators=[policy, critic.generator],
        texts=p.num_responses * p.num_critiques * (1 + p.refinements_per_critique),
        texts_per_slot=p.texts_per_slot, orchestrator=orchestrator, on_tick=on_tick,
    )  # fmt: skip


def fails(line: Mapping[str, Any], pass_threshold: float) -> bool:
    """Does a question of `responses.jsonl` fail persistently: is none of its responses right?

    It is not known to where a response has no verdict.
    """
    return not line["ungraded"] and max(line["rewards"]) < pass_threshold


def _fields(row: Rollout) -> dict:
    return {
        "response": row.index.response,
        "critique": row.index.critique,
        "text": row.whole_text,
        "length": len(row.token_ids),
        "truncated": row.truncated,
    }


async def _critiques(critic: Critic, rows: Sequence[Rollout], problem: Problem, encode, p: Protocol) -> list[Rollout]:
    """Returns the critiques of scored responses, with their verdicts; one that an endpoint left out has no text."""
    number = p.num_critiques
    return await gather(
        [
            critique_once(critic, row, problem, number=c, num_critiques=number, encode=encode)
            for row in rows
            for c in range(number)
        ]
    )


# --- its summary --------------------------------------------------------------------------------------------------


def summarize(
    responses: Iterable[Mapping[str, Any]],
    kinds: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    pass_threshold: float,
    seed: int = 0,
) -> dict:
    """Returns the numbers of a diagnosis.

    Args:
      responses: lines of `responses.jsonl`.
      kinds: lines of each `KIND.jsonl`, by kind.
      pass_threshold: reward from which a response is right.
      seed: of the bootstrap.

    Returns:
      `questions`; `accuracy` of all responses; `pass@k` for k = 1, 2, 4, ... and all responses, each with the
      bootstrap's interval over questions: what the policy can solve at all; `persistent_failures`, the share of the
      questions that no response solves, with Wilson's interval. And for each of `kinds`: `critiques`,
      `valid_critiques` (share of these whose verdict can be read and is right), `refinements` (one or more after each
      valid critique, or, of `none`, of each response), `successful_refinements` (share of these that pass),
      `critiqued_questions` and `questions_refined` (shares of the persistently failed
      questions with at least one valid critique, and with at least one successful refinement). A share of nothing is
      None. `ungraded` is the number of responses, and of refinements of each kind, without a verdict, because their
      grader failed: they count as wrong, and a question with such a response is none that fails persistently.
    """
    lines = [{name: line[name] for name in ("rewards", "ungraded")} for line in responses]
    right = [reward >= pass_threshold for line in lines for reward in line["rewards"]]
    num_failed = sum(fails(line, pass_threshold) for line in lines)
    return {
        "questions": len(lines),
        "accuracy": sum(right) / len(right),
        "ungraded": sum(line["ungraded"] for line in lines),
        "pass@k": _pass_at_ks(lines, pass_threshold, seed),
        "persistent_failures": share(num_failed, len(lines)),
        "kinds": {kind: _of_kind(lines, num_failed, pass_threshold) for kind, lines in kinds.items()},
    }


def _pass_at_ks(lines: Sequence[Mapping[str, Any]], pass_threshold: float, seed: int) -> dict[str, dict[str, float]]:
    """Returns pass@k by k, for powers of two below the number of responses, and for this; of questions with as many."""
    number = max(len(line["rewards"]) for line in lines)
    right_Q = [
        sum(reward >= pass_threshold for reward in line["rewards"]) for line in lines if len(line["rewards"]) == number
    ]
    ks = [2**power for power in range(number.bit_length()) if 2**power < number] + [number]
    values_MQ = np.array([[pass_at_k([right], number, k) for right in right_Q] for k in ks])
    low_M, high_M = bootstrap([values_MQ], seed=seed)
    return {
        str(k): {"value": float(values.mean()), "low": float(low), "high": float(high)}
        for k, values, low, high in zip(ks, values_MQ, low_M, high_M, strict=True)
    }


def _of_kind(lines: Iterable[Mapping[str, Any]], num_failed: int, pass_threshold: float) -> dict:
    valid, passed, ungraded = [], [], 0  # of each question
    for line in lines:
        ungraded += line["ungraded"]
        valid.append([one["verdict"] is False for one in line["critiques"]])
        passed.append([one["reward"] >= pass_threshold for one in line["refinements"]])
    critiques, refinements = sum(map(len, valid)), sum(map(len, passed))
    return {
        "critiques": critiques,
        "valid_critiques": sum(map(sum, valid)) / critiques if critiques else None,
        "refinements": refinements,
        "successful_refinements": sum(map(sum, passed)) / refinements if refinements else None,
        "ungraded": ungraded,
        "critiqued_questions": share(sum(map(any, valid)), num_failed) if critiques else None,
        "questions_refined": share(sum(map(any, passed)), num_failed),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Returns a summary as a table: a row for each kind of critique, as in the paper."""
    columns = ("valid_critiques", "successful_refinements", "critiqued_questions", "questions_refined")
    rows = [["critique", *(name.replace("_", " ") for name in columns)]]
    rows += [[kind, *(cell(numbers[name]) for name in columns)] for kind, numbers in summary["kinds"].items()]
    failed = cell(summary["persistent_failures"])
    ungraded = {"responses": summary["ungraded"]}
    ungraded |= {f"refinements, {kind}": numbers["ungraded"] for kind, numbers in summary["kinds"].items()}
    curve = aligned([[f"pass@{k}", cell(one)] for k, one in summary["pass@k"].items()])
    return (
        f"{summary['questions']} questions, persistent failures {failed}\n{aligned(rows)}{curve}"
        f"{said_of_ungraded(ungraded)}"
    )


def pass_rates(responses: Iterable[Mapping[str, Any]], *, pass_threshold: float) -> str:
    """Returns `pass_rates.jsonl`: of each question source, id, the share of its responses that pass, and their number.

    Responses without a verdict are not counted; a question that has no others is left out. `data.pass_rates` reads it,
    to drop the questions that are always or never solved.
    """
    lines = []
    for line in responses:
        right = sum(reward >= pass_threshold for reward in line["rewards"])
        graded = len(line["rewards"]) - line["ungraded"]
        if not graded:
            continue
        lines.append({"source": line["source"], "id": line["id"], "pass_rate": right / graded, "num_samples": graded})
    return "".join(json.dumps(line) + "\n" for line in lines)
