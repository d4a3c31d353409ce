"""The weights of a critic that is trained beside the policy: those it starts from, and those of a checkpoint."""

from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import TrainState
from cgrpo_jax.runs import start_weights
from cgrpo_jax.runs.build_model import Frozen, Model, load_weights
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.training import critic_learner
from cgrpo_jax.training.checkpoint import restore_params
from cgrpo_jax.training.checkpoint_steps import Step
from cgrpo_jax.training.critic_learner import CriticSettings

_ADAPTER = 1  # added to the seed: its random matrices are not those of an adapter of the policy


def own_shapes(critic: Model | None, learning: CriticSettings) -> dict | None:
    """Returns the shapes of weights, or of an adapter, that are a critic's alone, which say where each array lies.

    Args:
      critic: one with weights of its own; None for one that shares the policy's, which has no such shapes.
      learning: how it is trained.
    """
    if critic is None:
        return None
    if adapters := learning.learner.adapters:
        return critic.placed(lora.adapter_shapes(critic.config, adapters))
    return critic.placed(params_lib.param_shapes(critic.config))


def state_shapes(policy: TrainState, critic: Model | None, learning: CriticSettings) -> TrainState:
    """Returns the shapes of a critic's state beside those of its policy's."""
    return critic_learner.state_shapes(policy, own_shapes(critic, learning), learning.learner)


def initial_state(policy: TrainState, critic: Model | None, learning: CriticSettings, *, seed: int) -> TrainState:
    """Returns a critic's state before its first update: an adapter at 0, or the weights of the critic's folder.

    Args:
      policy: the policy's state.
      critic, learning: as for `own_shapes`.
      seed: of the run.
    """
    own, adapters = None, learning.learner.adapters
    if critic is not None:
        shapes = own_shapes(critic, learning)
        assert shapes is not None
        own = (
            start_weights.initial_adapters(adapters, critic, seed=seed + _ADAPTER)
            if adapters
            else load_weights(critic, shapes)
        )
    return critic_learner.init_state(policy, own, learning.learner)


def trained(
    policy: dict, critic: Model | None, learning: CriticSettings | None, run: RunDir, *, step: Step = None
) -> dict[str, Frozen]:
    """Returns the critic of a run with its weights as generation reads them, by what it is; nothing without its own.

    Of a run without checkpoints these are the first ones.

    Args:
      policy: the policy's, as generation reads them.
      critic: one with weights of its own.
      learning: how it was trained.
      run: of the folder.
      step: which checkpoint; the newest by default.

    Raises:
      UserError: there is none of that step, or it holds no such weights.
    """
    if critic is None or learning is None:
        return {}
    shapes, adapters = own_shapes(critic, learning), learning.learner.adapters
    assert shapes is not None
    if not run.checkpoints.exists():
        weights = policy if adapters else critic.to_generate(load_weights(critic, shapes))
        return {"critic": (critic, weights)}
    own, base = restore_params(run.checkpoints, shapes, step=step, item="critic"), None
    if adapters:
        of_policy = restore_params(run.checkpoints, critic.placed(params_lib.param_shapes(critic.config)), step=step)
        base = lora.Base(of_policy, adapters.scale)
    return {"critic": (critic, critic.to_generate(own, base))}
