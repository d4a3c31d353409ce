"""What became of each question of each iteration, without its texts: what a report lists, filters and counts.

A group is a question's responses, their critiques and their refinements in one iteration. Verdict problems, which ask
about a response to another question, are left out.
"""

import dataclasses
import enum
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cgrpo_jax.critiques.texts import mentions_critique
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import VERDICT
from cgrpo_jax.report.run_folder import RunFolder

_COLUMNS = ("stage", "question_index", "problem_id", "problem_index", "question", "answer", "parent", "author")
_COLUMNS += ("verdict", "rejected", "reward", "ungraded", "truncated", "dropped", "kept", "trained", "advantage")
_COLUMNS += ("problem_grader",)
_SHOWN = 240  # characters of a question in a list


class Outcome(enum.StrEnum):
    """What the responses to a question, and then its refinements, came to."""

    ALL_RIGHT = "all_right"
    MIXED = "mixed"
    RESCUED = "rescued"
    ALL_WRONG = "all_wrong"
    UNKNOWN = "unknown"  # no response has a verdict


class Flag(enum.StrEnum):
    """What a group is looked for by."""

    RESCUED = "rescued"
    NEVER_SOLVED = "never_solved"
    FORGOTTEN = "forgotten"
    CRITIC_WRONG = "critic_wrong"
    CUT_OFF = "cut_off"
    MENTIONS = "mentions"
    UNGRADED = "ungraded"
    SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True)
class Group:
    """A question in an iteration.

    Attributes:
      run: number of the run in the report.
      iteration, question: as in the rollouts' columns `iteration` and `question_index`.
      problem: `problem_id`.
      rewards: of the responses; None without a verdict.
      passed: how many of them pass.
      refined: refinements, of which `refined_passed` pass and `kept` were kept.
      critiques: critiques, rejected attempts aside.
      outcome: what all this came to.
      flags: by which it is found.
      trained: texts that moved the weights.
      dead: whether none of its texts has an advantage, refinements included: there is no gradient.
      drawn_on: whether another question was drawn in its place, so that it is not in the batch.
    """

    run: int
    iteration: int
    question: int
    problem: str
    rewards: tuple[float | None, ...]
    passed: int
    refined: int
    refined_passed: int
    kept: int
    critiques: int
    outcome: Outcome
    flags: frozenset[Flag]
    trained: int
    dead: bool
    drawn_on: bool = False


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question as a list shows it: its number in its data set, and the beginning of its text and of its answer."""

    index: int
    question: str
    answer: str


def read(
    run: RunFolder,
    *,
    number: int = 0,
    files: Sequence[pathlib.Path] | None = None,
    faults: list[str] | None = None,
) -> tuple[list[Group], dict[str, Asked]]:
    """Returns all groups of a run, iteration by iteration, and their questions by `problem_id`.

    Args:
      run: the run.
      number: of it in the report.
      files: of its rollouts; all of them by default. What is never solved, or forgotten, is so in these.
      faults: where given, a damaged file is left out and said here.

    Raises:
      UserError: a file of rollouts is damaged, and no `faults` are given.
    """
    found: list[Group] = []
    asked: dict[str, Asked] = {}
    for path in run.files if files is None else files:
        try:
            found += _of_file(path, run, number, asked)
        except UserError as error:
            if faults is None:
                raise
            faults.append(f"{run.name}: {error}")
    return with_history(found), asked


def with_history(found: Sequence[Group]) -> list[Group]:
    """Adds the flags that take the whole run to know: what was never solved, and what was solved before.

    A question is forgotten where none of its responses passes, and in an earlier iteration at least one did.
    """
    ever = {(one.run, one.problem) for one in found if one.passed or one.refined_passed}
    met = {(one.run, one.problem) for one in found if one.outcome != Outcome.UNKNOWN}
    solved: set[tuple[int, str]] = set()
    flagged = []
    for one in sorted(found, key=lambda group: (group.run, group.iteration, group.question)):
        key, flags = (one.run, one.problem), set(one.flags)
        if key in met and key not in ever:
            flags.add(Flag.NEVER_SOLVED)
        if key in solved and one.outcome in (Outcome.ALL_WRONG, Outcome.RESCUED):
            flags.add(Flag.FORGOTTEN)
        if one.passed:
            solved.add(key)
        flagged.append(dataclasses.replace(one, flags=frozenset(flags)))
    return flagged


def _of_file(path: pathlib.Path, run: RunFolder, number: int, asked: dict[str, Asked]) -> Iterable[Group]:
    table = rollouts.read_columns(path, _COLUMNS)
    mentions = _mentions(path, table)
    cells = {name: table[name].to_pylist() for name in _COLUMNS}
    rows = [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]
    by_question: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        by_question.setdefault(row["question_index"], []).append(at)
    iteration = rollouts.iteration_of(path)
    for question, places in by_question.items():
        first = rows[places[0]]
        if first["problem_grader"] == VERDICT:
            continue
        problem = first["problem_id"]
        asked.setdefault(problem, Asked(first["problem_index"], first["question"][:_SHOWN], first["answer"][:_SHOWN]))
        yield _group(rows, places, mentions, run, {"run": number, "iteration": iteration, "question": question})


def _mentions(path: pathlib.Path, table: pa.Table) -> set[int]:
    """Returns the rows that trained as refinements and mention their critique."""
    kept = [row for row, is_kept in enumerate(table["kept"].to_pylist()) if is_kept]
    if not kept:
        return set()
    texts = rollouts.read_columns(path, ("text",))["text"].take(kept).to_pylist()
    return {row for row, text in zip(kept, texts, strict=True) if mentions_critique(text)}


def _group(rows: Sequence[Mapping[str, Any]], places: Sequence[int], mentions: set[int], run: RunFolder, at) -> Group:
    threshold = run.facts.pass_threshold
    own = [rows[place] for place in places]
    by_stage = {stage: [row for row in own if row["stage"] == stage] for stage in ("response", "critique")}
    responses = by_stage["response"]
    refinements = [row for row in own if row["stage"] == "refinement"]
    critiques = [row for row in by_stage["critique"] if not row["rejected"]]

    def passes(row: Mapping[str, Any]) -> bool:
        return row["reward"] is not None and row["reward"] >= threshold

    passed, refined_passed = sum(map(passes, responses)), sum(map(passes, refinements))
    graded = sum(row["reward"] is not None for row in responses)
    texts = [*responses, *refinements]
    tests = {
        Flag.CRITIC_WRONG: any(
            row["author"] != "rule" and row["verdict"] is not None and row["verdict"] != passes(rows[row["parent"]])
            for row in by_stage["critique"]
            if rows[row["parent"]]["reward"] is not None
        ),
        Flag.CUT_OFF: any(row["truncated"] for row in texts),
        Flag.MENTIONS: any(place in mentions for place in places) or any(r["dropped"] == "mention" for r in own),
        Flag.UNGRADED: any(row["ungraded"] for row in own),
        Flag.SKIPPED: any(row["dropped"] == "skipped_update" for row in texts),
    }
    outcome = _outcome(graded, passed, refined_passed)
    flags = {flag for flag, holds in tests.items() if holds}
    if outcome == Outcome.RESCUED:
        flags.add(Flag.RESCUED)
    return Group(
        **at,
        problem=own[0]["problem_id"],
        rewards=tuple(row["reward"] for row in responses),
        passed=passed,
        refined=len(refinements),
        refined_passed=refined_passed,
        kept=sum(bool(row["kept"]) for row in refinements),
        critiques=len(critiques),
        outcome=outcome,
        flags=frozenset(flags),
        trained=sum(row["trained"] for row in texts),
        dead=not any(row["advantage"] for row in texts),
        drawn_on=any(row["dropped"] == "drawn_on" for row in own),
    )


def _outcome(graded: int, passed: int, refined_passed: int) -> Outcome:
    """Returns what a group came to, of how many responses with a verdict, of those that pass, and of refinements."""
    if not graded:
        return Outcome.UNKNOWN
    if passed:
        return Outcome.ALL_RIGHT if passed == graded else Outcome.MIXED
    return Outcome.RESCUED if refined_passed else Outcome.ALL_WRONG
