"""Trains the critic of a run beside its policy: a learner like the policy's, over the same mesh.

Its rows are scored before the policy's update moves anything, so that p of `CriticTraining`, and the ratio's
denominator, are of the critic that wrote them; its own updates follow the policy's.
"""

import dataclasses

from cgrpo_jax.models import lora
from cgrpo_jax.records import TrainState
from cgrpo_jax.training import learner as learner_lib
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training.critic_rows import CriticRows, CriticTraining
from cgrpo_jax.training.learner import Learner, LearnerSettings, Scored, Updates


@dataclasses.dataclass(frozen=True)
class CriticSettings:
    """How the critic is trained.

    Attributes:
      training: by what, and whose weights.
      learner: its optimiser, loss and packed shape.
    """

    training: CriticTraining
    learner: LearnerSettings


def state_shapes(policy: TrainState, own: dict | None, settings: LearnerSettings) -> TrainState:
    """Returns the shapes of what a critic trains, and of its optimiser's state, that say where each array lies.

    Args:
      policy: shapes of the policy's state.
      own: shapes of weights, or of an adapter, that are the critic's alone; None where it shares the policy's.
      settings: of the critic's learner.
    """
    trained = policy.params if own is None else own
    shapes = optimizer_lib.state_shapes(trained, settings.optimizer, offload=settings.offload_optimizer)
    return shapes if own is not None else dataclasses.replace(shapes, params=None)


def init_state(policy: TrainState, own: dict | None, settings: LearnerSettings) -> TrainState:
    """Returns a critic's state before its first update; `own` is part of it. Arguments as for `state_shapes`."""
    state = learner_lib.init_state(policy.params if own is None else own, settings)
    return state if own is not None else dataclasses.replace(state, params=None)


class CriticLearner:
    """Trains a critic.

    Args:
      learner: of the critic's shape, optimiser and loss.
      weights: whose it trains, a name of `critic_rows.WEIGHTS`.
      base: what the policy's own adapters belong to, where these are trained and the critic shares them.

    Attributes:
      state: what it trains, with its own optimiser's state; without params where these are the policy's.
    """

    def __init__(self, learner: Learner, *, weights: str, state: TrainState, base: lora.Base | None = None):
        self.learner, self.weights, self.state = learner, weights, state
        self._base = base

    def score(self, policy: TrainState, rows: CriticRows) -> Scored:
        """Returns the rows that train, with log-probabilities under the critic that wrote them."""
        return self.learner.score(self._taken(policy), [rows.rows[number] for number in rows.training])

    def update(self, policy: TrainState, scored: Scored) -> tuple[TrainState, Updates]:
        """Applies an iteration's updates; returns the policy's state, with new weights where the critic shares them.

        Where no group trains there is no update, and nothing moves.

        The policy's weights have been updated since `score`: what that has changed of the critic is in the ratios.
        """
        state, updates = self.learner.learn(self._taken(policy), scored)
        if self.weights == "policy":
            policy = dataclasses.replace(policy, params=state.params)
            state = dataclasses.replace(state, params=None)
        self.state = state
        return policy, updates

    def to_write(self, policy: TrainState) -> tuple[dict, lora.Base | None]:
        """Returns the weights that write critiques, and what they belong to, where they are adapters."""
        return self._taken(policy).params, self.learner.base

    @property
    def num_updates(self) -> int:
        """How many its weights have seen by themselves."""
        return int(self.state.step)

    def _taken(self, policy: TrainState) -> TrainState:
        """Returns the state that is trained, and gives the learner what it belongs to."""
        if self.weights == "policy":
            self.learner.base = self._base
            return dataclasses.replace(self.state, params=policy.params)
        if self.weights == "adapter":
            assert self.learner.settings.adapters, "an adapter has a rank"
            self.learner.base = lora.Base(policy.params, self.learner.settings.adapters.scale)
        return self.state
