"""What takes longer than a unit test may, of tests/training/test_checkpoint.py."""

import jax
import jax.numpy as jnp
import optax
from checkpoint_cases import OPTIMIZER, assert_bitwise, make_state

from cgrpo_jax.records import TrainState
from cgrpo_jax.training.checkpoint import Checkpoints


def update(state):
    gradients = jax.tree.map(lambda w: jnp.sin(w * 3), state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    return TrainState(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)


def test_restores_bitwise_and_training_goes_on_as_if_never_stopped(tmp_path):
    state = update(update(make_state(3)))
    extra = {"position": 12, "seed": 2**40, "names": ["a", "b"], "nested": {"x": None, "y": 0.1}}
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore_latest(state) is None
        checkpoints.save(5, state, extra)
    with Checkpoints(tmp_path / "run") as checkpoints:
        step, restored, restored_extra = checkpoints.restore_latest(make_state(0))
    assert (step, restored_extra) == (5, extra)
    assert_bitwise(restored, state)
    assert_bitwise(jax.jit(update)(restored), jax.jit(update)(state))
