"""What critiques said and what came of it, of the groups that a report shows with their texts.

lessons = Lessons(pass_threshold=1.0)
lessons.add(4, detail)        # of `details.of_groups`
lessons.said[4]               # Said("Step 2 is wrong: 6*5=30, not 15.", agrees=True, states=False)
lessons.most()                # [["Step 2 is wrong: ...", 38, 36, 6, 38, 0], ...]
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cgrpo_jax.report import details

MOST_SHOWN = 8  # critiques
_LONGEST = 300  # characters of a critique that others may repeat word for word
_SAID = 200  # characters of one beside its question

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


class Lessons:
    """The lessons of one run.

    Args:
      pass_threshold: reward from which a text is right.

    Attributes:
      said: of each group, by its number in the report, its critique: that of the refinement which was kept, else that
        of the first that was written; cut short.
      token: the token that a critique has helped most with, and by how many nats; None where no trained refinement has
        the trainer's log-probabilities.
    """

    def __init__(self, pass_threshold: float):
        self._threshold = pass_threshold
        self._counts: dict[str, list[int]] = {}
        self.said: dict[int, Said] = {}
        self.token: tuple[float, Place | None] = (0.0, None)

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
