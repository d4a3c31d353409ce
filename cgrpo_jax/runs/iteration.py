"""What one iteration has generated, learnt and counted: the one record that its metrics and rollouts are made of."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from cgrpo_jax import batches
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.groups import Group
from cgrpo_jax.inference.engine_stats import Stats
from cgrpo_jax.records import Author, LossKind, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.rollout import Solved
from cgrpo_jax.training.critic_rows import CriticRows
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
    endpoints: Mapping[str, float]

    @property
    def responses(self) -> list[list[Rollout]]:
        """The responses to each question."""
        return [one.responses for one in self.solved]

    @property
    def refinements(self) -> list[Rollout]:
        """Those of all questions."""
        return [row for one in self.solved for row in one.refinements]

    @property
    def problems(self) -> list[Problem]:
        """What was asked: the questions, and verdict problems about their responses."""
        return [one.problem for one in self.solved]


@dataclasses.dataclass(frozen=True)
class CriticUpdates:
    """How an iteration has trained the critic: on which critiques, what its updates counted, the last one's rate."""

    critiques: CriticRows
    updates: Updates
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What an iteration has generated, learnt and counted.

    Attributes:
      number: of the iteration, from 0.
      problems: its questions.
      generated: what steps 1 to 3 have made of them.
      candidates: the refinements that were selected from.
      groups, rows: of each question of the batch, the rollouts that train, and what they train as.
      updates: what the updates counted.
      critic_updates: how the critic was trained; None where none is.
    """

    number: int
    problems: Sequence[Problem]
    generated: Generated
    candidates: Sequence[Rollout]
    groups: Sequence[Group]
    rows: Sequence[Sequence[TrainRow]]
    updates: Updates
    critic_updates: CriticUpdates | None = None

    @property
    def responses(self) -> list[list[Rollout]]:
        """The responses to each question, and to each verdict problem."""
        return self.generated.responses

    @property
    def answers(self) -> list[list[Rollout]]:
        """The responses to each question of the data."""
        return [one.responses for one in self.generated.solved if not batches.is_verdict(one)]

    @property
    def verdicts(self) -> list[list[Rollout]]:
        """The responses to each verdict problem."""
        return [one.responses for one in self.generated.solved if batches.is_verdict(one)]

    @property
    def verdict_problems(self) -> list[Problem]:
        """These problems."""
        return [one.problem for one in self.generated.solved if batches.is_verdict(one)]

    @property
    def num_extra(self) -> int:
        """Questions that were drawn beyond the batch, in the place of others."""
        return len(self.generated.solved) - len(self.groups)

    @property
    def refinements(self) -> list[Rollout]:
        """Those of all questions."""
        return self.generated.refinements

    @property
    def kept(self) -> list[Rollout]:
        """The refinements that entered the groups: none of a question that another one was drawn for."""
        return [row for group in self.groups for row in group.rows if row.stage == Stage.REFINEMENT]

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
        written += [row for row in self.refinements if row.author != Author.SOLUTION]
        return sum(len(row.token_ids) for row in written) + self.counts["tokens"]

    def all_rows(self, *, grader: str, reward_source: str) -> list[rollouts.Row]:
        """Returns every text of the iteration and what became of it: of each question in turn, its stages in order.

        Args:
          grader: who rewards the problems that name no grader of their own.
          reward_source: what rewards a row, the `verifier` or the verdict of its `critic`.
        """
        placed, critiques = self._placed(), self._critiques_as_trained()
        candidates = {id(row) for row in self.candidates}
        in_batch = {group.question for group in self.groups}
        rows = []
        for problem, one in zip(self.problems, self.generated.solved, strict=True):
            by = "critic" if reward_source == "critic" else problem.grader or grader
            for rollout, is_rejected in _in_order(one):
                row = rollouts.Row(rollout, problem, is_rejected=is_rejected)
                if rollout.stage != Stage.CRITIQUE:
                    row = dataclasses.replace(row, grader=by, **placed.get(rollout.index, {}))
                    if row.train_row is None:
                        drawn_on = rollout.index.question not in in_batch
                        row = dataclasses.replace(row, dropped=_why_outside(rollout, candidates, drawn_on))
                else:
                    row = dataclasses.replace(row, **critiques.get(rollout.index, {}))
                rows.append(row)
        return rows

    def is_capped(self, q: int, place: int) -> bool:
        """Whether a row of a group is beyond `objective.tis_cap` as a whole (`train_step.beyond_cap`)."""
        return bool(self.updates.capped) and self.updates.capped[q][place]

    def _critiques_as_trained(self) -> dict[RowIndex, dict]:
        """Returns of each critique that a critic is trained on the fields of its `rollouts.Row` that this decides."""
        if self.critic_updates is None:
            return {}
        critiques, updates = self.critic_updates.critiques, self.critic_updates.updates
        found: dict[RowIndex, dict] = {one.critique.index: {"utility": one.utility} for one in critiques.judged}
        for group, rows in zip(critiques.groups, critiques.rows, strict=True):
            for one, row in zip(group, rows, strict=True):
                found[one.critique.index] |= {"train_row": row, "dropped": "zero_advantage"}
        for g, number in enumerate(critiques.training):
            for place, one in enumerate(critiques.groups[number]):
                found[one.critique.index] |= {
                    "trainer_logp": updates.trainer_logps and updates.trainer_logps[g][place],
                    # Beside others, a target of 0 trains too: it holds the critic where it was.
                    "dropped": "" if updates.trained[g][place] else "skipped_update",
                }
        return found

    def _placed(self) -> dict[RowIndex, dict]:
        """Returns of each rollout that stands in a group the fields of its `rollouts.Row` that this decides."""
        updates, placed = self.updates, {}
        for q, (group, trained_as) in enumerate(zip(self.groups, self.rows, strict=True)):
            for place, (rollout, train_row) in enumerate(zip(group.rows, trained_as, strict=True)):
                reason = _why_untrained(train_row, is_capped=self.is_capped(q, place))
                placed[rollout.index] = {
                    "train_row": train_row,
                    "place": place,
                    "trainer_logp": updates.trainer_logps and updates.trainer_logps[q][place],
                    "dropped": "" if updates.trained[q][place] else reason,
                }
        return placed


def _why_untrained(row: TrainRow, *, is_capped: bool) -> str:
    """Returns why a row of a group did not train, if it did not."""
    if row.masked:
        return "truncated"
    if row.feedback_ids is not None:
        return "skipped_update"
    if row.loss == LossKind.DISTIL:
        return "no_feedback"
    if not row.advantage:
        return "zero_advantage"
    return "sampler_cap" if is_capped else "skipped_update"


def _why_outside(rollout: Rollout, candidates: Set[int], drawn_on: bool) -> str:
    """Returns why a response or refinement is in no group; `drawn_on` where its question is not in the batch."""
    if drawn_on:  # first: a question whose rows all lack a verdict is drawn on too
        return "drawn_on"
    if rollout.ungraded:
        return "ungraded"
    if rollout.stage == Stage.RESPONSE:
        return "replaced"
    return "not_selected" if id(rollout) in candidates else "mention"


def _in_order(solved: Solved) -> Iterator[tuple[Rollout, bool]]:
    """Yields the texts of a question, each after what it answers, with whether it is a critique that was rejected."""
    yield from ((one, False) for one in solved.responses)
    yield from _with_rejected(one for one in solved.critiques if not one.index.refinement)
    yield from ((one, False) for one in solved.refinements)
    yield from _with_rejected(one for one in solved.critiques if one.index.refinement)


def _with_rejected(critiques: Iterable[Rollout]) -> Iterator[tuple[Rollout, bool]]:
    for one in critiques:
        yield from ((attempt, True) for attempt in one.rejected)
        yield one, False
