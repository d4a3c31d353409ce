"""What became of each question of each iteration, without its texts: what a report lists, filters and counts.

A group is a question's responses, their critiques and their refinements in one iteration. Verdict problems, which ask
about a response to another question, are left out.
"""

import dataclasses
import enum
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cgrpo_jax.critiques.texts import mentions_critique, states_answer
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import VERDICT
from cgrpo_jax.report.run_folder import RunFolder

_COLUMNS = ("stage", "question_index", "problem_id", "problem_index", "question", "answer", "parent", "author")
_COLUMNS += ("verdict", "rejected", "reward", "ungraded", "truncated", "dropped", "kept", "trained", "advantage")
_COLUMNS += ("problem_grader", "solution")
_SHOWN = 240  # characters of a question in a list
_SEARCHED = 2000  # of a solution, in which steps are looked for


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
      critics: what its critiques were worth.
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
    critics: "Critics" = dataclasses.field(default_factory=lambda: Critics())


@dataclasses.dataclass(frozen=True)
class Critics:
    """What critiques were worth, rejected attempts aside: of a group, or added up.

    Attributes:
      written: how many.
      judged: with a verdict on a response that the grader has one on.
      agreed: of these, those whose verdict is the grader's.
      stated: in which the gold answer, or the whole solution, stands (`states_answer`).
      rescued: right refinements that were kept, of groups in which every response failed.
      rescued_stated: of these, those whose critique states the answer.

    Example:
      >>> Critics(written=2, judged=2, agreed=1) + Critics(written=1, stated=1)
      Critics(written=3, judged=2, agreed=1, stated=1, rescued=0, rescued_stated=0)
    """

    written: int = 0
    judged: int = 0
    agreed: int = 0
    stated: int = 0
    rescued: int = 0
    rescued_stated: int = 0

    def __add__(self, other: "Critics") -> "Critics":
        one, two = dataclasses.astuple(self), dataclasses.astuple(other)
        return Critics(*(a + b for a, b in zip(one, two, strict=True)))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question as a list shows it: its number in its data set, and the beginning of its text, answer and solution."""

    index: int
    question: str
    answer: str
    solution: str = ""


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
    texts = _texts(path, table)
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
        if problem not in asked:
            texts_of = first["question"][:_SHOWN], first["answer"][:_SHOWN], (first["solution"] or "")[:_SEARCHED]
            asked[problem] = Asked(first["problem_index"], *texts_of)
        yield _group(rows, places, texts, run, {"run": number, "iteration": iteration, "question": question})


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Rows of a file by what their texts say: refinements that were kept and mention their critique, critiques that
    state the answer.
    """

    mention: frozenset[int]
    state: frozenset[int]


def _texts(path: pathlib.Path, table: pa.Table) -> _Texts:
    cells = zip(*(table[name].to_pylist() for name in ("kept", "stage", "answer", "solution")), strict=True)
    looked_at = [(row, *cell) for row, cell in enumerate(cells) if cell[0] or cell[1] == "critique"]
    if not looked_at:
        return _Texts(frozenset(), frozenset())
    rows = pa.array([row for row, *_ in looked_at])
    texts = rollouts.read_columns(path, ("text",))["text"].take(rows).to_pylist()
    mention, state = set(), set()
    for (row, kept, stage, answer, solution), text in zip(looked_at, texts, strict=True):
        if kept and mentions_critique(text):
            mention.add(row)
        if stage == "critique" and states_answer(text, [answer, solution or ""]):
            state.add(row)
    return _Texts(frozenset(mention), frozenset(state))


def _group(rows: Sequence[Mapping[str, Any]], places: Sequence[int], texts: _Texts, run: RunFolder, at) -> Group:
    threshold = run.facts.pass_threshold
    own = [rows[place] for place in places]
    by_stage = {stage: [row for row in own if row["stage"] == stage] for stage in ("response", "critique")}
    responses = by_stage["response"]
    refinements = [row for row in own if row["stage"] == "refinement"]
    answers = [*responses, *refinements]
    critiques = [row for row in by_stage["critique"] if not row["rejected"]]

    def passes(row: Mapping[str, Any]) -> bool:
        return row["reward"] is not None and row["reward"] >= threshold

    passed, refined_passed = sum(map(passes, responses)), sum(map(passes, refinements))
    graded = sum(row["reward"] is not None for row in responses)
    tests = {
        Flag.CRITIC_WRONG: any(
            row["author"] != "rule" and row["verdict"] is not None and row["verdict"] != passes(rows[row["parent"]])
            for row in by_stage["critique"]
            if rows[row["parent"]]["reward"] is not None
        ),
        Flag.CUT_OFF: any(row["truncated"] for row in answers),
        Flag.MENTIONS: any(place in texts.mention for place in places) or any(r["dropped"] == "mention" for r in own),
        Flag.UNGRADED: any(row["ungraded"] for row in own),
        Flag.SKIPPED: any(row["dropped"] == "skipped_update" for row in answers),
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
        trained=sum(row["trained"] for row in answers),
        dead=not any(row["advantage"] for row in answers),
        drawn_on=any(row["dropped"] == "drawn_on" for row in own),
        critics=_critics(rows, places, texts, passes, rescued=outcome == Outcome.RESCUED),
    )


def _critics(
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[int],
    texts: _Texts,
    passes: Callable[[Mapping[str, Any]], bool],
    *,
    rescued: bool,
) -> Critics:
    """Returns what the critiques of a group were worth."""
    used = [place for place in places if rows[place]["stage"] == "critique" and not rows[place]["rejected"]]
    pairs = [(rows[place]["verdict"], rows[rows[place]["parent"]]) for place in used]
    known = [(verdict, of) for verdict, of in pairs if verdict is not None and of["reward"] is not None]
    own = [rows[place] for place in places if rescued and rows[place]["kept"]]
    after = [row["parent"] for row in own if passes(row) and rows[row["parent"]]["stage"] == "critique"]
    return Critics(
        written=len(used),
        judged=len(known),
        agreed=sum(verdict == passes(of) for verdict, of in known),
        stated=sum(place in texts.state for place in used),
        rescued=len(after),
        rescued_stated=sum(place in texts.state for place in after),
    )


def _outcome(graded: int, passed: int, refined_passed: int) -> Outcome:
    """Returns what a group came to, of how many responses with a verdict, of those that pass, and of refinements."""
    if not graded:
        return Outcome.UNKNOWN
    if passed:
        return Outcome.ALL_RIGHT if passed == graded else Outcome.MIXED
    return Outcome.RESCUED if refined_passed else Outcome.ALL_WRONG
