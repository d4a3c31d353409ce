"""A critic that learns beside the policy, with shapes in the place of arrays: what it keeps, and what it runs."""

import dataclasses
from collections.abc import Iterator, Mapping

from cgrpo_jax import sharding
from cgrpo_jax.inference import weights as weights_lib
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.planning.calls import Buffer, Call, num_batches
from cgrpo_jax.records import TrainState
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console
from cgrpo_jax.training import critic_learner, train_step
from cgrpo_jax.training.learner import Learner


@dataclasses.dataclass(frozen=True)
class ShapedCritic:
    """A critic that is trained.

    Attributes:
      settings: of the run.
      policy: shapes of the policy's state, which it may share, or adapt.
      own: shapes of weights, or of an adapter, that are its alone, in the layout of training; None where it shares.
      learner: its own.
    """

    settings: RunSettings
    policy: TrainState
    own: dict | None
    learner: Learner

    @classmethod
    def of(cls, settings: RunSettings, policy: TrainState, base: lora.Base | None) -> "ShapedCritic | None":
        """Returns the critic of a run; None where none learns.

        Args:
          settings: of the run.
          policy: shapes of its state.
          base: shapes of what the policy's adapters belong to, if these are trained.
        """
        learning, mesh = settings.critic_learning, settings.mesh
        if learning is None or not settings.stages.critic_learns:
            return None
        model, own = settings.policy, None
        if settings.trains_own_critic:
            assert settings.critic, "it has a shape"
            model, adapters = settings.critic, learning.learner.adapters
            shapes = lora.adapter_shapes(model, adapters) if adapters else params_lib.param_shapes(model)
            own = sharding.placed(params_lib.axes_like(model, shapes), shapes, mesh)
            base = lora.Base(policy.params, adapters.scale) if adapters else None
        learner = Learner(
            model,
            mesh=mesh,
            dtype=settings.dtype,
            settings=learning.learner,
            clock=console.Clock(),
            stage="critic_update",
        )
        learner.base = base
        return cls(settings, policy, own, learner)

    @property
    def state(self) -> TrainState:
        """The shapes of what it trains, the policy's weights included where they are shared."""
        state = critic_learner.state_shapes(self.policy, self.own, self.learner.settings)
        return dataclasses.replace(state, params=self._trained)

    @property
    def _trained(self) -> dict:
        return self.policy.params if self.own is None else self.own

    @property
    def _weights(self) -> tuple[str, ...]:
        """Names of the buffers of what it trains, and of what that belongs to."""
        if self.own is None:
            return ("trained", "base") if self.learner.base else ("trained",)
        return ("critic_trained", "trained") if self.learner.base else ("critic_trained",)

    @property
    def writes_apart(self) -> bool:
        """Whether it writes with a copy of its own weights, in the layout of generation."""
        if self.own is None:
            return False
        s, split = self.settings, weights_lib.splits(self.settings.mesh)
        return not weights_lib.reads_alike(self.own, self.learner.base, mesh=s.mesh, dtype=s.dtype, split=split)

    def buffers(self) -> Mapping[str, Buffer]:
        """Returns what it keeps on the devices beside the policy; what it writes with is the run's `critic`."""
        state, found = self.state, {}
        if self.own is not None:
            found["critic_trained"] = Buffer("weights", (state.params, state.step))
        if not self.learner.settings.offload_optimizer:
            found["critic_optimizer"] = Buffer("optimizer", state.opt_state)
        return found | {"critic_gradients": Buffer("temporaries", state.params)}

    def calls(self) -> Iterator[Call]:
        """Yields what lays its weights out to write, scores its critiques and updates it."""
        s, state, weights = self.settings, self.state, self._weights
        learning, is_critics = self.learner.settings, self.own is not None
        if self.writes_apart:
            program = weights_lib.generation_program(
                config=self.learner.config, mesh=s.mesh, target=s.generation_mesh, dtype=s.dtype,
                split=weights_lib.splits(s.mesh),
            )  # fmt: skip
            args = (state.params, self.learner.base)
            yield Call("critic_reshard", "reshard", program, args, (*weights, "critic"), is_critics=True)
        args, batches = (state.params, self.learner.base), self._num_batches()
        yield Call(
            "critic_old_logp", "update", self.learner.score_program(), args, weights, per_iteration=batches,
            is_critics=is_critics,
        )  # fmt: skip
        accumulate, apply = self.learner.update_programs()
        runs, times = -(-batches // train_step.AT_ONCE), learning.updates_per_batch
        at_once = -(-batches // runs)  # as many in each run
        yield Call(
            "critic_update", "update", accumulate, (*args, state.params), (*weights, "critic_gradients"),
            times=runs, per_iteration=times, trips=(at_once,), repeated=at_once, is_critics=is_critics,
        )  # fmt: skip
        held = ("critic_trained" if self.own is not None else "trained", "critic_optimizer", "critic_gradients")
        own = tuple(name for name in held if name in self.buffers())
        own = (*own, "trained") if self.own is None else own
        yield Call(
            "critic_update", "update", apply, (state, state.params), own, per_iteration=times, is_critics=is_critics
        )

    def _num_batches(self) -> int:
        """Packed batches that an iteration's full critiques take; those of a response share its prompt."""
        s = self.settings
        responses = s.questions_per_iteration * s.method.num_responses
        spec, shape = s.stages.critique, self.learner.settings.shape
        return num_batches(
            responses,
            s.method.num_critiques,
            context=spec.max_prompt_length,
            target=spec.max_length,
            shape=shape,
            mesh=s.mesh,
        )
