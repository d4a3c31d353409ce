"""What trains a critic in the loop: its critiques, each with what it achieved, as rows of RCO or of policy gradient.

The reward of critique i of a response is

    R_i = U_i + w V_i

U_i is its utility: the mean of what the refinements after it are worth beside the response (RCO, arXiv 2506.22157). V_i
is the verdict's own reward: 1 if it agrees with the verifier, else 0. By utility alone a critic learns to help, not to
tell right from wrong, so V regularises it (Critique-RL, arXiv 2510.24320). Critiques of one response are a group.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cgrpo_jax.records import LossKind, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.rollout import Solved
from cgrpo_jax.training.row_losses import rco_targets

LOSSES = {"rco": LossKind.RCO, "policy_gradient": LossKind.POLICY}
WEIGHTS = ("policy", "adapter", "model")


@dataclasses.dataclass(frozen=True)
class CriticTraining:
    """How a critic is trained beside the policy. Either loss is of the same objective, to maximise,

        E[R] - beta KL(p_theta || p),    R = U + w V

    whose optimum is `p exp(R / beta) / Z`. p is the critic that wrote the iteration's critiques, so that Z is a mean
    over them.

    Departure: the paper of RCO collects critiques once, and p stays the critic that training began with.

    Attributes:
      loss: a name of `LOSSES`: `rco` regresses on that optimum (`row_losses.rco_loss`), `policy_gradient` is
        `objective.policy_loss` with advantages R - mean R and beta as the coefficient of its KL term.
      weights: whose are trained, of `WEIGHTS`: the `policy`'s own, which it shares; an `adapter` on these; a `model` of
        its own.
      beta: strength of the KL term; above 0 for `rco`.
      verdict_weight: w.
      pass_threshold: reward from which a response, or a refinement, is right.
    """

    loss: str
    weights: str
    beta: float
    verdict_weight: float
    pass_threshold: float = 1.0


@dataclasses.dataclass(frozen=True)
class Judged:
    """A critique and what it achieved.

    Attributes:
      critique: with its response as its parent.
      before: whether that response passes; None where it has no verdict.
      after: of each refinement after the critique, whether it passes; those without a verdict left out.
    """

    critique: Rollout
    before: bool | None
    after: tuple[bool, ...]

    @property
    def utility(self) -> float | None:
        """U: the mean of what its refinements are worth; None where that is not known."""
        if self.before is None or not self.after:
            return None
        return sum(worth(one, self.before) for one in self.after) / len(self.after)

    @property
    def verdict_reward(self) -> float | None:
        """V: 1 if its verdict agrees with the verifier, 0 if not or if it can't be read; None for no verifier's."""
        return None if self.before is None else float(self.critique.verdict is self.before)


@dataclasses.dataclass(frozen=True)
class CriticRows:
    """An iteration's critiques, and the groups of those that are compared.

    Attributes:
      judged: all that a model has written of responses.
      groups: of each response the critiques that are compared.
      rows: what these train as.
    """

    judged: list[Judged]
    groups: list[list[Judged]]
    rows: list[list[TrainRow]]

    @property
    def training(self) -> list[int]:
        """Returns the numbers of the groups that train: whose rewards are not all equal.

        One of equal rewards prefers no critique. Its loss would still draw weights that have moved since it was
        scored, as shared ones have, back to p.
        """
        return [number for number, group in enumerate(self.rows) if any(row.advantage for row in group)]


def worth(after: bool, before: bool) -> float:
    """Returns what a refinement is worth beside its response: 1 fixed, 0.5 as before, 0 broken.

    Example:
      >>> worth(True, False), worth(True, True), worth(False, False), worth(False, True)
      (1.0, 0.5, 0.5, 0.0)
    """
    return (1 + after - before) / 2


def judged(solved: Iterable[Solved], *, pass_threshold: float) -> list[Judged]:
    """Returns the critiques that a model has written of responses, each with what it achieved."""

    def passes(row: Rollout) -> bool | None:
        return None if row.reward is None or row.ungraded else row.reward >= pass_threshold

    found = []
    for one in solved:
        after: dict[RowIndex, list[bool]] = collections.defaultdict(list)
        for refinement in one.refinements:
            if refinement.parent is not None and (passed := passes(refinement)) is not None:
                after[refinement.parent.index].append(passed)
        for critique in one.critiques:
            if critique.parent is None or critique.parent.stage != Stage.RESPONSE or not len(critique.prompt_ids):
                continue  # of a refinement, or by a rule
            found.append(Judged(critique, passes(critique.parent), tuple(after[critique.index])))
    return found


def reward(one: Judged, *, with_utility: bool, verdict_weight: float) -> float | None:
    """Returns `R = U + w V`; without U of responses that were not refined. None where a part is not known."""
    utility, verdict = (one.utility if with_utility else 0.0), one.verdict_reward
    return None if utility is None or verdict is None else utility + verdict_weight * verdict


def advantages(rewards: Sequence[Sequence[float]], training: CriticTraining) -> list[np.ndarray]:
    """What each critique's row is weighed by, exactly 0 where all rewards of a group are equal:

        rco               v_i = R_i / beta - log (1/N) sum_j exp(R_j / beta)
        policy_gradient   A_i = R_i - (1/N) sum_j R_j

    Args:
      rewards: of each group, R of its critiques.
      training: which of both, and beta.

    Returns:
      `[N]` float64 of each group: v in nats, A in units of R.

    Example:
      >>> by_gradient = CriticTraining("policy_gradient", "policy", beta=0.1, verdict_weight=0.5)
      >>> [a.tolist() for a in advantages([[1.5, 0.5], [0.7, 0.7, 0.7]], by_gradient)]
      [[0.5, -0.5], [0.0, 0.0, 0.0]]
    """
    if training.loss == "rco":
        return rco_targets(rewards, beta=training.beta)
    above = [np.asarray(group, np.float64) - group[0] for group in rewards]  # of equal ones the mean is exactly theirs
    return [group - group.mean() for group in above]


def critic_rows(solved: Iterable[Solved], training: CriticTraining) -> CriticRows:
    """Returns what an iteration trains a critic on, in the order of its questions.

    A response's critiques are compared with one another: where some have been followed by refinements, those of a known
    utility; where none has, since the response is not refined, by their verdicts alone. One alone trains nothing, nor
    do the verdicts where w is 0.

    Args:
      solved: all questions of the iteration.
      training: how they train.
    """
    found = judged(solved, pass_threshold=training.pass_threshold)
    of_response: dict[tuple[int, int], list[Judged]] = collections.defaultdict(list)
    for one in found:
        of_response[one.critique.index.question, one.critique.index.response].append(one)
    groups, rewards = [], []
    for some in of_response.values():
        with_utility = any(one.utility is not None for one in some)
        if not (with_utility or training.verdict_weight):
            continue
        scores = [reward(one, with_utility=with_utility, verdict_weight=training.verdict_weight) for one in some]
        known = [(one, score) for one, score in zip(some, scores, strict=True) if score is not None]
        if len(known) > 1:
            groups.append([one for one, _ in known])
            rewards.append([score for _, score in known])
    weighed = zip(groups, advantages(rewards, training), strict=True)
    rows = [[_row(one, a, training) for one, a in zip(group, by, strict=True)] for group, by in weighed]
    return CriticRows(found, groups, rows)


def _row(one: Judged, advantage: float, training: CriticTraining) -> TrainRow:
    """Returns a critique as it trains: after the prompt that it was written after."""
    return TrainRow(
        context_ids=one.critique.prompt_ids,
        target_ids=one.critique.token_ids,
        old_logp=one.critique.logp,
        advantage=float(np.float32(advantage)),  # as the loss reads it, and a file of rollouts keeps it
        loss=LOSSES[training.loss],
    )


def metrics(rows: CriticRows) -> Mapping[str, float]:
    """Returns what an iteration's critiques achieved, by the names of metrics; a mean of none is left out."""
    fixed = [passed for one in rows.judged if one.before is False for passed in one.after]
    broken = [not passed for one in rows.judged if one.before is True for passed in one.after]
    shares = {
        "critic/utility": [one.utility for one in rows.judged if one.utility is not None],
        "critic/fix_rate": fixed,
        "critic/break_rate": broken,
        "critic/verdict_accuracy": [one.verdict_reward for one in rows.judged if one.verdict_reward is not None],
    }
    return {name: float(np.mean(some)) for name, some in shares.items() if some}
