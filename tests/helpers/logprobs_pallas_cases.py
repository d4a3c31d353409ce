"""What the tests of models/kernels/test_logprobs_pallas share with those that take longer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.models.logprobs import linear_logprobs

D = 24


def dense(hidden, unembed, target, num_live, *, temperature=1.0, softcap=0.0):
    """The definition, with all logits at once, in the inputs' dtype; dead rows are 0."""
    logits = hidden @ unembed.T
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)
    out = jnp.stack([logp[jnp.arange(len(target)), target], -jnp.sum(jnp.exp(logp) * logp, axis=-1)])
    return jnp.where(jnp.arange(len(target)) < num_live, out, 0.0)


def inputs(n, v, *, dtype=jnp.float32):
    rng = np.random.default_rng(n + v)
    hidden, unembed = (jnp.asarray(rng.normal(size=(size, D)), dtype) for size in (n, v))
    target = np.concatenate([[0, v - 1], rng.integers(0, v, n - 2)])
    return hidden, unembed, jnp.asarray(target), jnp.asarray(rng.normal(size=(2, n)), jnp.float32)


def values_and_gradients(outputs, hidden, unembed, weights_2N):
    """Both outputs, and the gradients of their sum in which every row has another weight."""

    def scalar(hidden, unembed):
        out_2N = outputs(hidden, unembed)
        return jnp.vdot(weights_2N.astype(out_2N.dtype), out_2N), out_2N

    (_, out_2N), gradients = jax.value_and_grad(scalar, (0, 1), has_aux=True)(hidden, unembed)
    return out_2N, *gradients


def exact(hidden, unembed, target, weights_2N, num_live, **keywords):
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, unembed, weights_2N)]
        outputs = functools.partial(dense, target=target, num_live=num_live, **keywords)
        return [np.asarray(x) for x in values_and_gradients(outputs, *wide)]


def layer(hidden, unembed, *, target, **keywords):
    return jnp.stack(linear_logprobs(hidden, unembed, target, block_size=128, row_block=128, **keywords))


def kernels(hidden, unembed, target, weights_2N, **keywords):
    outputs = functools.partial(layer, target=target, kernel="interpret", **keywords)
    return jax.jit(functools.partial(values_and_gradients, outputs))(hidden, unembed, weights_2N)


def assert_within(found, expected, bound):
    for one, other in zip(found, expected, strict=True):
        error = np.abs(np.asarray(one, np.float64) - other)
        assert error.max() <= bound * max(np.abs(other).max(), 1e-30)
