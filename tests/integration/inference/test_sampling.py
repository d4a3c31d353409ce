"""What takes longer than a unit test may, of tests/inference/test_sampling.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import draw, draw_logits, keys

from cgrpo_jax.inference.sampling import sample


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """A million draws of a token of 3 in 100,000, and of a thousand in other blocks that together have as much."""
    prob = np.full(2_000, 3e-8)
    prob[700] = 3e-5
    prob[5] += 1 - prob.sum()
    token = np.concatenate([np.asarray(_rare(np.log(prob).astype(np.float32), seed)) for seed in range(50)])
    one, others = (token == 700).sum(), ((token != 700) & (token != 5)).sum()
    for count, expected in ((one, 30), (others, 60)):
        assert abs(count - expected) < 3.3 * np.sqrt(expected)


@jax.jit
def _rare(logits_V, seed):
    every = jax.random.split(jax.random.key(seed), 20_000)
    return jax.lax.map(lambda key: sample(logits_V[None], key[None])[0][0], every, batch_size=2_000)


@pytest.mark.parametrize("rounding, least, most", [(1e-5, 0, 3), (1e-1, 200, 1_200)])
def test_an_error_of_the_logits_changes_as_large_a_share_of_the_draws_at_most(rounding, least, most):
    """Of 12,000, over 2,000 tokens."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 2_000).astype(np.float32)
    noise = rng.normal(0, rounding, (12_000, 2_000)).astype(np.float32)
    token, _ = draw_logits(np.broadcast_to(logits, noise.shape), keys(12_000))
    other, _ = draw_logits(logits + noise, keys(12_000))
    assert least <= (token != other).sum() <= most


def test_the_nucleus_is_the_smallest_set_of_enough_mass():
    prob = [0.1, 0.4, 0.2, 0.3]
    for top_p, kept in ((0.05, {1}), (0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (0.91, {0, 1, 2, 3})):
        assert set(draw(prob, 500, top_p=top_p)[0]) == kept
    # After top-k the nucleus is one of what is left: 0.4 of 0.7 is 0.57.
    assert set(draw(prob, 500, top_k=2, top_p=0.5)[0]) == {1}
    assert set(draw(prob, 500, top_k=2, top_p=0.6)[0]) == {1, 3}


def test_bfloat16_logits_are_drawn_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 300)), jnp.bfloat16)
    token, logp = draw_logits(logits, keys(1))
    same_token, same_logp = draw_logits(logits.astype(np.float32), keys(1))
    assert token == same_token and logp == same_logp and logp.dtype == jnp.float32
