"""What the tests of inference/test_sampling share with those that take longer."""

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.inference.sampling import sample

draw_logits = jax.jit(sample, static_argnames=("temperature", "top_p", "top_k"))


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


def draw(prob_V, number=20_000, **keywords):
    """Tokens and log-probabilities of many draws from one distribution."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(prob_V, np.float64)).astype(np.float32)
    token_B, logp_B = draw_logits(np.broadcast_to(logits, (number, len(logits))), keys(number), **keywords)
    assert token_B.dtype == jnp.int32 and logp_B.dtype == jnp.float32
    return np.asarray(token_B), np.asarray(logp_B)
