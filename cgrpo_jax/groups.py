"""From what was written to what trains: select, re-anchor, advantage. Steps 4 to 6 of Critique-GRPO.

kept = select(refinements, num_kept=1, seed=0, iteration=3)
groups = reanchor(responses, kept)
rows = train_rows(groups, Grouping(num_responses=7))
"""

import collections
import dataclasses
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import objective
from cgrpo_jax.critiques.texts import mentions_critique
from cgrpo_jax.records import LossKind, Rollout, Stage, TrainRow
from cgrpo_jax.rollout import Solved, reward_of

# What refinements are kept by, highest first; ties at random.
ORDERS = {"best": reward_of, "random": lambda row: 0.0}


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How the rows of a question become a group that trains, steps 4 to 6; the paper's symbols in brackets.

    Attributes:
      num_responses: to a question [n].
      num_kept: refinements that enter a group [k].
      select: a name of `ORDERS`: the `best` refinements are kept, or any (`random`).
      join: a name of `JOINS`: kept refinements stand beside the responses (`append`), or in the places of as many
        (`replace`), so that a group has n rows.
      drop_mentions: leave out refinements that mention the critique, before selection.
      weights: of a row's reward, and of its other rewards in their order.
      normalize_each: divide each reward by its own deviation before they are added (`objective.weighted_advantages`).
      scale_by_std: divide advantages by the standard deviation of their group.
      baseline: a name of `objective.BASELINES`: the mean that advantages are relative to is the whole `group`'s, or of
        its `initial` responses.
      mask_truncated: rows that were cut off train nothing, though they are in the baseline (overlong filtering).
      length_penalty: coefficient of `objective.length_penalty`, which is added to rewards of groups in which these are
        not all equal; 0 for none.
      length_buffer: over how many of the last tokens of a row it rises; a fraction is no mistake.
      max_length: tokens that a row may have.
      loss: how rows enter the loss.
    """

    num_responses: int
    num_kept: int = 1
    select: str = "best"
    join: str = "append"
    drop_mentions: bool = False
    weights: tuple[float, ...] = (1.0,)
    normalize_each: bool = False
    scale_by_std: bool = False
    baseline: str = "group"
    mask_truncated: bool = False
    length_penalty: float = 0.0
    length_buffer: float = 1.0
    max_length: int = 1
    loss: LossKind = LossKind.POLICY

    @property
    def max_rows(self) -> int:
        """Rows that a group may have."""
        return self.num_rows(self.num_kept)

    def num_rows(self, num_refinements: int) -> int:
        """Returns the rows of a group of whose question so many refinements were written."""
        return self.num_responses + _ADDED[self.join] * min(self.num_kept, num_refinements)


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of a question that train, all as answers to its prompt, whatever they were sampled from."""

    prompt_ids: np.ndarray
    rows: list[Rollout]
    question: int  # its number in the iteration


# --- 4. select ----------------------------------------------------------------------------------------------------


def candidates(refinements: Sequence[Rollout], *, drop_mentions: bool = False) -> list[Rollout]:
    """Returns the refinements to select from: all, or those that mention neither critique nor earlier attempt."""
    return [row for row in refinements if not (drop_mentions and mentions_critique(row.text))]


def select(
    refinements: Sequence[Rollout], *, num_kept: int, seed: int, iteration: int, order: str = "best"
) -> list[Rollout]:
    """Keeps `num_kept` refinements a question, none without a verdict: in the order of a name of `ORDERS`.

    By default the highest reward first, ties at random. The draw depends on (seed, iteration, question) only.
    """
    by_question = collections.defaultdict(list)
    for row in refinements:
        if not row.ungraded:
            by_question[row.index.question].append(row)
    kept = []
    for q, rows in sorted(by_question.items()):
        rng = random.Random(f"select {seed} {iteration} {q}")
        rng.shuffle(rows)
        kept += sorted(rows, key=ORDERS[order], reverse=True)[:num_kept]
    return kept


# --- 5. re-anchor -------------------------------------------------------------------------------------------------


def append(responses: Sequence[Rollout], kept: Sequence[Rollout]) -> list[Rollout]:
    """Returns the responses to a question, then its kept refinements."""
    return [*responses, *kept]


def replace(responses: Sequence[Rollout], kept: Sequence[Rollout]) -> list[Rollout]:
    """Returns as many rows as there are responses: each kept refinement stands in the place of one of them.

    It is that of the response that it refines; where another has taken that, of the lowest reward that is left, the
    last of equals. Where responses without a verdict leave fewer places, the first refinements have them.
    """
    places = {row.index.response: number for number, row in enumerate(responses)}
    rows = list(responses)
    left = set(places.values())
    for one in kept[: len(rows)]:
        place = places.get(one.index.response)
        if place not in left:
            place = min(left, key=lambda number: (reward_of(responses[number]), -number))
        left.remove(place)
        rows[place] = one
    return rows


JOINS = {"append": append, "replace": replace}
_ADDED = {"append": 1, "replace": 0}  # rows of a kept refinement


def reanchor(responses: Sequence[Sequence[Rollout]], kept: Sequence[Rollout], *, join: str = "append") -> list[Group]:
    """Returns each question's group: its responses, and its kept refinements, joined by a name of `JOINS`.

    A refinement's context is the prompt of the question, not the one it was sampled from: every log-probability of it
    is `pi(y' | q)`, as if no critique had been seen. A response without a verdict is left out: it has no part in the
    others' baseline either.

    Args:
      responses: Q groups.
      kept: the refinements that were selected, at most as many of a question as it has responses.
      join: how both become one group.
    """
    refined: dict[int, list[Rollout]] = collections.defaultdict(list)
    for row in kept:
        refined[row.index.question].append(row)
    groups = []
    for group in responses:
        graded = [row for row in group if not row.ungraded]
        question = group[0].index.question
        groups.append(Group(group[0].prompt_ids, JOINS[join](graded, refined[question]), question))
    return groups


# --- 6. advantage -------------------------------------------------------------------------------------------------

# One program: operation by operation, each would be compiled by itself.
_advantages = jax.jit(
    objective.weighted_advantages, static_argnames=("weights", "normalize_each", "num_groups", "scale_by_std")
)


def train_rows(groups: Sequence[Group], grouping: Grouping) -> list[list[TrainRow]]:
    """Returns each group as train rows, with their advantages over it. The tokens are the sampled ones.

    Args:
      groups: Q groups.
      grouping: what advantages are; and the rows that a group may have, which fix the shapes of what is computed.
    """
    rows = [row for group in groups for row in group.rows]
    # The number of kept refinements changes with every iteration. Padded to what it may be at most, the shape does not,
    # and nothing is compiled again; the power of two, lest another number of questions is.
    size = 1 << (len(groups) * grouping.max_rows - 1).bit_length()
    reward_KB, length_B = np.zeros((len(grouping.weights), size), np.float32), np.zeros(size, np.float32)
    group_B, baseline_B = np.full(size, -1), np.zeros(size, bool)
    reward_KB[:, : len(rows)] = np.array([_rewards(row) for row in rows], np.float32).T
    length_B[: len(rows)] = [len(row.token_ids) for row in rows]
    group_B[: len(rows)] = [q for q, group in enumerate(groups) for _ in group.rows]
    baseline_B[: len(rows)] = [grouping.baseline == "group" or row.stage == Stage.RESPONSE for row in rows]
    penalty_B = objective.length_penalty(length_B, max_length=grouping.max_length, buffer=grouping.length_buffer)
    found_B = _advantages(
        jnp.asarray(reward_KB),
        jnp.asarray(group_B),
        weights=grouping.weights,
        normalize_each=grouping.normalize_each,
        num_groups=len(groups),
        scale_by_std=grouping.scale_by_std,
        baseline_B=jnp.asarray(baseline_B),
        penalty_B=jnp.asarray(grouping.length_penalty * penalty_B),
    )
    advantage_B = iter(np.asarray(jax.device_get(found_B)))
    return [
        [
            TrainRow(
                context_ids=group.prompt_ids,
                target_ids=row.token_ids,
                old_logp=row.logp,
                advantage=float(next(advantage_B)),
                refined=row.stage == Stage.REFINEMENT,
                loss=grouping.loss,
                masked=grouping.mask_truncated and row.truncated,
                feedback_ids=row.feedback_ids,
            )
            for row in group.rows
        ]
        for group in groups
    ]


def has_gradient(solved: Solved, grouping: Grouping, *, seed: int, iteration: int) -> bool:
    """Whether the group of a question teaches anything, whether a row of it does (`teaches`).

    It is that of steps 4 to 6, and so after refinement: one right refinement of failed responses is enough.
    """
    found = candidates(solved.refinements, drop_mentions=grouping.drop_mentions)
    kept = select(found, num_kept=grouping.num_kept, order=grouping.select, seed=seed, iteration=iteration)
    (rows,) = train_rows(reanchor([solved.responses], kept, join=grouping.join), grouping)
    return any(teaches(row) for row in rows)


def teaches(row: TrainRow) -> bool:
    """Whether a row of a group teaches by itself: it has an advantage that trains, or a teacher."""
    rewarded = bool(row.advantage) and row.loss != LossKind.DISTIL
    return not row.masked and (rewarded or row.feedback_ids is not None)


def _rewards(row: Rollout) -> list[float]:
    """Returns the rewards of a row in the order of their weights; NaN for a null one."""
    return [reward_of(row), *(np.nan if value is None else value for _, value in row.rewards)]
