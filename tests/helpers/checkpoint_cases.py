"""What the tests of training/test_checkpoint share with those that take longer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cgrpo_jax.records import TrainState

OPTIMIZER = optax.adamw(1e-3)


def make_state(seed, width=64):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "layers": [{"w": jax.random.normal(keys[0], (width, 32))}, {"w": jax.random.normal(keys[1], (3, 5))}],
        "norm": jnp.full((7,), seed + 0.1, jnp.bfloat16),
    }
    return TrainState(step=jnp.int32(seed), params=params, opt_state=OPTIMIZER.init(params))


def assert_bitwise(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
