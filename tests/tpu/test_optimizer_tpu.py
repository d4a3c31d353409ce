"""A step compiled by the real TPU compiler, with its state on the device and in host memory."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cgrpo_jax.planning import costs, tpu_topology
from cgrpo_jax.training.optimizer import apply, make_optimizer, make_schedule, state_shapes

SHAPES = {  # a quarter of each on a device
    "embed": ((8192, 1024), P("tensor", "fsdp")),
    "layers": {
        "q": ((4, 1024, 8, 128), P(None, "fsdp", "tensor", None)),
        "gate": ((4, 1024, 4096), P(None, "fsdp", "tensor")),
        "down": ((4, 4096, 1024), P(None, "tensor", "fsdp")),
    },
}
WEIGHTS = 4 * (8192 * 1024 + 4 * (1024 * 1024 + 2 * 1024 * 4096)) // 4


@functools.cache
def step(kind, offload=False):
    mesh = tpu_topology.mesh("v5e:2x2", replica=1, fsdp=2, tensor=2)
    params = jax.tree.map(
        lambda one: jax.ShapeDtypeStruct(one[0], jnp.float32, sharding=NamedSharding(mesh, one[1])),
        SHAPES,
        is_leaf=lambda one: isinstance(one, tuple),
    )
    optimizer = make_optimizer(kind, learning_rate=make_schedule("constant", peak=1e-3), weight_decay=0.1)
    state = state_shapes(params, optimizer, offload=offload)
    return costs.compile_for(apply, (state, params), {"optimizer": optimizer}).memory


def test_skipping_keeps_no_second_state():
    """Beside weights, gradients and Adam's moments, which take their results' places, there is next to nothing."""
    memory = step("adamw")
    assert memory.argument == pytest.approx(4 * WEIGHTS, rel=0.01)
    assert memory.alias == pytest.approx(3 * WEIGHTS, rel=0.01)
    assert memory.temporary < 0.05 * WEIGHTS


def test_adafactor_needs_little_beside_weights_and_gradients():
    memory = step("adafactor")
    assert memory.argument == pytest.approx(2 * WEIGHTS, rel=0.03)
    assert memory.temporary < 0.1 * WEIGHTS


def test_an_offloaded_state_is_on_the_device_within_a_step_alone():
    """Of what lies there between steps, both moments are gone; within one the peak is that of a state that stays."""
    resident, offloaded = step("adamw"), step("adamw", True)
    assert resident.argument - offloaded.argument == pytest.approx(2 * WEIGHTS, rel=0.01)
    assert offloaded.argument == pytest.approx(2 * WEIGHTS, rel=0.01)
    assert offloaded.temporary == pytest.approx(2 * WEIGHTS, rel=0.05)
    together = [memory.argument + memory.temporary for memory in (resident, offloaded)]
    assert together[1] == pytest.approx(together[0], rel=0.05)
    assert offloaded.needed < resident.needed  # not counting what is in host memory
