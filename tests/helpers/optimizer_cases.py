"""What the tests of training/test_optimizer share with those that take longer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from meshes import ONE, make_mesh, place
from tiny import FAMILIES, random_params

from cgrpo_jax.training.optimizer import init_state, make_optimizer, make_schedule

# Large enough for all its matrices to be factored, those of heads included.
CONFIG = dataclasses.replace(
    FAMILIES["qwen2.5"], vocab_size=64, embed_dim=64, num_heads=8, num_kv_heads=2, head_dim=32, mlp_dim=128
)
KINDS = ("adamw", "adafactor", "muon")


@functools.cache
def params():
    return random_params(CONFIG)


@functools.cache
def made(kind="adamw", **more):
    """One object for each way to train: `apply` is compiled for it."""
    rate = make_schedule("linear", peak=1e-2, warmup_steps=1, num_steps=10)
    return make_optimizer(kind, learning_rate=rate, **({"weight_decay": 0.1, "max_grad_norm": 0.5} | more))


def started(kind="adamw", mesh=ONE, *, offload=False, **more):
    weights = place(jax.tree.map(jnp.copy, params()), CONFIG, make_mesh(mesh))
    return init_state(weights, made(kind, **more), offload=offload)


def gradients(state, seed=0):
    """Like no other weight's nor layer's."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(rng.normal(0, 1, x.shape).astype(np.float32), x.sharding), state.params
    )


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
