"""What critiques said and what came of it, of the groups that a report shows with their texts.

lessons = Lessons(pass_threshold=1.0)
lessons.add(4, detail)        # of `details.of_groups`
lessons.said[4]               # Said("Step 2 is wrong: 6*5=30, not 15.", agrees=True, states=False)
lessons.most()                # [["Step 2 is wrong: ...", 38, 36, 6, 38, 0], ...]
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from cgrpo_jax.critiques.texts import named_step, stands_in
from cgrpo_jax.report import details
from cgrpo_jax.report.groups import Asked, Group

MOST_SHOWN = 8  # critiques
_LONGEST = 300  # characters of a critique that others may repeat word for word
_SAID = 200  # characters of one beside its question
_TRIED = 400  # of a text that failed
MOST_STEPS = 16  # that critiques named

Row = Mapping[str, Any]
Place = tuple[int, int, int]  # group, `row`, token


class Said(NamedTuple):
    """What a critique said.

    Attributes:
      text: cut short.
      agrees: whether its verdict is the grader's; None where one of them has none.
      states: whether the gold answer stands in it.
    """

    text: str
    agrees: bool | None
    states: bool


class Failed(NamedTuple):
    """Refinements of a question, of which none is right, and one of them: the one that was kept, else the last.

    Attributes:
      number: how many.
      named: of them written after a critique that names a step (`texts.named_step`).
      took: of these, those in which that step stands: what is wrong in them is another one.
      response, critique, refinement: texts of one, cut short.
    """

    number: int
    named: int
    took: int
    response: str
    critique: str
    refinement: str


class Lessons:
    """The lessons of one run.

    Args:
      pass_threshold: reward from which a text is right.

    Attributes:
      said: of each group, by its number in the report, its critique: that of the refinement which was kept, else that
        of the first that was written; cut short.
      token: the token that a critique has helped most with, and by how many nats; None where no trained refinement has
        the trainer's log-probabilities.
      failed: of each group whose refinements are all wrong, by its number, what became of them.
      steps: of each step that critiques of failed responses named, the refinements after them, and how many pass.
      took: of wrong, and of right refinements: those after a critique that names a step, and those in which it stands.
    """

    def __init__(self, pass_threshold: float):
        self._threshold = pass_threshold
        self._counts: dict[str, list[int]] = {}
        self.said: dict[int, Said] = {}
        self.token: tuple[float, Place | None] = (0.0, None)
        self.failed: dict[int, Failed] = {}
        self.steps: dict[str, list[int]] = {}
        self.took = [[0, 0], [0, 0]]

    def add(self, at: int, detail: Mapping[str, Any]) -> None:
        """Adds a group.

        Args:
          at: its number in the report.
          detail: as of `details.of_groups`.
        """
        rows = {row["row"]: row for row in detail["rows"]}
        pairs = [(row, rows.get(row.get("parent"))) for row in detail["rows"] if row["stage"] == "refinement"]
        led = [(row, critique) for row, critique in pairs if critique and critique["stage"] == "critique"]
        if led:
            kept = next((critique for row, critique in led if row.get("kept") and self._passes(row)), led[0][1])
            agrees, states = self._agrees(kept, rows.get(kept.get("parent"))), bool(kept.get("states"))
            self.said[at] = Said(details.shortened(kept["text"], _SAID), agrees, states)
        for refinement, critique in led:
            response = rows.get(critique.get("parent"))
            if response and refinement.get("reward") is not None and self._passes(response) is False:
                self._count(critique, response, refinement)
                self._count_step(critique, refinement)
        if led and not any(self._passes(row) for row, _ in led):
            self.failed[at] = _failed(led, rows)
        for row, _ in pairs:
            self.token = max(self.token, self._helped(row, at), key=lambda one: one[0])

    def most(self) -> list[list[Any]]:
        """Returns the critiques of failed responses that led to most right refinements, of those said more than once.

        Of each its text, the refinements written after it, how many of these pass, how many were trained, and how many
        were written after one whose verdict is the grader's, and after one that states the answer of its question.
        """
        found = [[text, *numbers] for text, numbers in self._counts.items() if numbers[0] > 1]
        return sorted(found, key=lambda one: (-one[2], -one[3], one[0]))[:MOST_SHOWN]

    def _passes(self, row: Row) -> bool | None:
        return None if row.get("reward") is None else row["reward"] >= self._threshold

    def _agrees(self, critique: Row, response: Row | None) -> bool | None:
        verdict, right = critique.get("verdict"), self._passes(response) if response else None
        return None if verdict is None or right is None else verdict == right

    def _count(self, critique: Row, response: Row, refinement: Row) -> None:
        if len(critique["text"]) <= _LONGEST:
            numbers = self._counts.setdefault(critique["text"], [0, 0, 0, 0, 0])
            came = (True, self._passes(refinement), refinement.get("trained"))
            for n, counts in enumerate((*came, self._agrees(critique, response), critique.get("states"))):
                numbers[n] += bool(counts)

    def _count_step(self, critique: Row, refinement: Row) -> None:
        step, right = named_step(critique["text"]), bool(self._passes(refinement))
        if step is not None:
            counts = self.steps.setdefault(step, [0, 0])
            counts[0] += 1
            counts[1] += right
            self.took[right][0] += 1
            self.took[right][1] += stands_in(details.text_of(refinement), step)

    def _helped(self, row: Row, at: int) -> tuple[float, Place | None]:
        """Returns by how many nats its critique helped a trained right refinement with its hardest token, and which.

        That is log pi(token | question, response, critique) - log pi(token | question), of the same weights.
        """
        if "logp" not in row or "trainer_logp" not in row or not row.get("trained") or not self._passes(row):
            return 0.0, None
        pairs: Sequence[tuple[int | None, int | None]] = list(zip(row["logp"], row["trainer_logp"], strict=True))
        gained = [-1.0 if a is None or b is None else (a - b) / details.LOGP_SCALE for a, b in pairs]
        token = max(range(len(gained)), key=gained.__getitem__, default=None)
        return (0.0, None) if token is None else (gained[token], (at, row["row"], token))


def _failed(led: Sequence[tuple[Row, Row]], rows: Mapping[int, Row]) -> Failed:
    named = [(row, step) for row, critique in led if (step := named_step(critique["text"])) is not None]
    row, critique = next(((row, critique) for row, critique in led if row.get("kept")), led[-1])
    texts = (details.text_of(rows[critique["parent"]]), critique["text"], details.text_of(row))
    took = sum(stands_in(details.text_of(refinement), step) for refinement, step in named)
    return Failed(len(led), len(named), took, *(details.shortened(text, _TRIED) for text in texts))


def solved_by_step(
    steps: Mapping[str, Sequence[int]], groups: Sequence[Group], asked: Mapping[str, Asked]
) -> list[list[Any]]:
    """Returns the steps that critiques named most, with what became of the questions whose solution has them.

    Of each: the step, the refinements after critiques that named it and how many pass (`Lessons.steps`), the number of
    questions whose solution has it, and of responses to these, without a critique, those that pass and all: in the
    first third of the run's iterations, and in the last.

    Args:
      steps: of `Lessons`.
      groups: of the run.
      asked: its questions, by `problem_id`.
    """
    found = []
    for step, (written, right) in sorted(steps.items(), key=lambda one: (-one[1][1], one[0]))[:MOST_STEPS]:
        problems = {problem for problem, one in asked.items() if stands_in(one.solution, step)}
        if problems:
            found.append([step, written, right, *_followed(problems, groups)])
    return found


def solved_by_unseen(
    unseen: Mapping[str, Collection[str]], steps: Mapping[str, Sequence[int]], groups: Sequence[Group]
) -> list[list[Any]]:
    """Returns what the warm start never showed, with what became of the questions that need it, by what was gained.

    Args:
      unseen: of each name the problems that need it (`task.unseen`).
      steps: of `Lessons`.
      groups: of the run.

    Returns:
      Rows as of `solved_by_step`; of what no critique named, there are no refinements after one that did.
    """
    found = [[name, *steps.get(name, (0, 0)), *_followed(set(some), groups)] for name, some in unseen.items()]

    def gained(row: Sequence[Any]) -> float:
        first, last = (passed / max(1, responses) for passed, responses in row[-2:])
        return last - first

    return sorted(found, key=lambda row: (-gained(row), row[0]))


def _followed(problems: Collection[str], groups: Sequence[Group]) -> list[Any]:
    """Returns how many of the problems were asked, and of responses to them those that pass and all, early and late."""
    last = max((one.iteration for one in groups), default=0) + 1
    own = [one for one in groups if one.problem in problems]
    thirds = [one for one in own if 3 * one.iteration < last], [one for one in own if 3 * one.iteration >= 2 * last]
    shares = [[sum(one.passed for one in some), sum(len(one.rewards) for one in some)] for some in thirds]
    return [len({one.problem for one in own}), *shares]
