"""What trains the models of a run: its policy, and a critic that learns beside it (`critic.train`).

Where none learns, all that is said here of a critic is nothing, and no program is another.
"""

import dataclasses

from cgrpo_jax.records import TrainState
from cgrpo_jax.runs.build_model import Frozen
from cgrpo_jax.runs.initial_state import InitialState
from cgrpo_jax.runs.iteration import CriticUpdates, Generated
from cgrpo_jax.runs.open_run import OpenRun
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console
from cgrpo_jax.training import critic_rows
from cgrpo_jax.training.critic_learner import CriticLearner
from cgrpo_jax.training.critic_rows import CriticRows
from cgrpo_jax.training.learner import Learner, Scored


def of_policy(settings: RunSettings, *, clock: console.Clock) -> Learner:
    """Returns what trains the policy of a run, timed by a clock."""
    return Learner(settings.policy, mesh=settings.mesh, dtype=settings.dtype, settings=settings.learner, clock=clock)


@dataclasses.dataclass(frozen=True)
class CriticBatch:
    """An iteration's critiques as rows that train a critic, scored by the one that wrote them."""

    rows: CriticRows
    scored: Scored


class CriticRun:
    """The critic of a run, as it is trained beside the policy.

    Args:
      opened: the run.
      clock: times its updates.

    Attributes:
      learner: applies them; None where no critic learns, or the run has not begun.
    """

    def __init__(self, opened: OpenRun, *, clock: console.Clock):
        self._opened, self._clock = opened, clock
        self.learner: CriticLearner | None = None

    def begin(self, initial: InitialState) -> TrainState:
        """Takes what a run starts or resumes from; returns the policy's state without the critic's beside it."""
        learning, settings, policy = self._opened.settings.critic_learning, self._opened.settings, initial.state
        if learning is None or policy.critic is None:
            return policy
        critic = self._opened.own_critic or self._opened.model
        learner = Learner(
            critic.config,
            mesh=settings.mesh,
            dtype=settings.dtype,
            settings=learning.learner,
            clock=self._clock,
            stage="critic_update",
        )
        learner.skipped_in_a_row = initial.progress.critic_skipped_in_a_row
        weights = learning.training.weights
        self.learner = CriticLearner(learner, weights=weights, state=policy.critic, base=initial.base)
        return dataclasses.replace(policy, critic=None)

    def beside(self, policy: TrainState) -> TrainState:
        """Returns the policy's state with the critic's beside it, as a checkpoint has both."""
        return dataclasses.replace(policy, critic=self.learner.state) if self.learner else policy

    def writer(self, policy: TrainState) -> Frozen | None:
        """Returns the critic and the weights that write now, where these are its own; None for others."""
        if self.learner is None or self._opened.own_critic is None:
            return None
        critic = self._opened.own_critic
        return critic, critic.to_generate(*self.learner.to_write(policy))

    @property
    def num_updates(self) -> int:
        """How many updates the critic has seen."""
        return self.learner.num_updates if self.learner else 0

    @property
    def learners(self) -> tuple[Learner, ...]:
        """Its learner, if it has begun to learn."""
        return (self.learner.learner,) if self.learner else ()

    @property
    def skipped_in_a_row(self) -> int:
        """Its updates, up to the last one, whose gradient was not finite."""
        return self.learner.learner.skipped_in_a_row if self.learner else 0

    def batch(self, policy: TrainState, generated: Generated) -> CriticBatch | None:
        """Returns what an iteration trains the critic on; the policy has not been updated yet."""
        learning = self._opened.settings.critic_learning
        if self.learner is None or learning is None:
            return None
        rows = critic_rows.critic_rows(generated.solved, learning.training)
        return CriticBatch(rows, self.learner.score(policy, rows))

    def update(self, policy: TrainState, batch: CriticBatch | None) -> tuple[TrainState, CriticUpdates | None]:
        """Applies the critic's updates, after the policy's; returns the policy's state, and what they counted."""
        if self.learner is None or batch is None:
            return policy, None
        policy, updates = self.learner.update(policy, batch.scored)
        rate = self.learner.learner.learning_rate(self.num_updates)
        return policy, CriticUpdates(batch.rows, updates, rate)
