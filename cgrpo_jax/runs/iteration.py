"""What one iteration has generated, learnt and counted: the one record that its metrics and samples are made of."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from cgrpo_jax.inference.engine import Stats
from cgrpo_jax.records import Author, Problem, Rollout
from cgrpo_jax.rollout import Solved
from cgrpo_jax.training.learner import Updates


@dataclasses.dataclass(frozen=True)
class Generated:
    """What steps 1 to 3 have made of all questions.

    Attributes:
      solved: of each question.
      engines: what each engine counted.
      timeouts, failures: rows whose grading ran into its time limit, and rows without a verdict.
      endpoints: what the endpoints of critic and judge were asked, by the names of their metrics.
    """

    solved: Sequence[Solved]
    engines: Sequence[Stats]
    timeouts: int
    failures: int
    endpoints: Mapping[str, int]

    @property
    def responses(self) -> list[list[Rollout]]:
        """The responses to each question."""
        return [one.responses for one in self.solved]

    @property
    def refinements(self) -> list[Rollout]:
        """Those of all questions."""
        return [row for one in self.solved for row in one.refinements]


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What an iteration has generated, learnt and counted.

    Attributes:
      number: of the iteration, from 0.
      problems: its questions.
      generated: what steps 1 to 3 have made of them.
      candidates, kept: the refinements that were selected from, and those that entered the groups.
      updates: what the updates counted.
    """

    number: int
    problems: Sequence[Problem]
    generated: Generated
    candidates: Sequence[Rollout]
    kept: Sequence[Rollout]
    updates: Updates

    @property
    def responses(self) -> list[list[Rollout]]:
        """The responses to each question."""
        return self.generated.responses

    @property
    def refinements(self) -> list[Rollout]:
        """Those of all questions."""
        return self.generated.refinements

    @property
    def counts(self) -> collections.Counter:
        """What was counted of critiques and refinements, over all questions."""
        total: collections.Counter = collections.Counter()
        for one in self.generated.solved:
            total.update(one.counts)
        return total

    @property
    def dropped_mentions(self) -> int:
        """Refinements that were left out of selection because they mention the critique."""
        return len(self.refinements) - len(self.candidates)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that models sampled, critiques included."""
        written = [row for group in self.responses for row in group]
        written += [row for row in self.refinements if row.author == Author.POLICY]
        return sum(len(row.token_ids) for row in written) + self.counts["tokens"]
