"""What the tests of models/test_logprobs share with those that take longer."""

import jax
import jax.numpy as jnp
import numpy as np

N, D = 6, 8


def naive(hidden, unembed, target, temperature=1.0, softcap=0.0):
    logits = hidden @ unembed.T
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)
    return logp[jnp.arange(len(target)), target], -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def inputs(v, *, n=N, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(v)
    hidden, unembed = rng.normal(0, scale, (n, D)), rng.normal(0, scale, (v, D))
    # The first and last ids are targets too: they are the edges of the first and the last block.
    target = np.concatenate([[0, v - 1], rng.integers(0, v, n - 2)])
    return jnp.asarray(hidden, dtype), jnp.asarray(unembed, dtype), jnp.asarray(target)


def weighted(function, target, **keywords):
    """A scalar that both outputs enter, each row with another weight."""
    a, b = np.random.default_rng(7).normal(size=(2, len(target)))

    def scalar(hidden, unembed):
        logp, entropy = function(hidden, unembed, target, **keywords)
        return jnp.sum(jnp.asarray(a, logp.dtype) * logp) + jnp.sum(jnp.asarray(b, logp.dtype) * entropy)

    return scalar
