"""What takes longer than a unit test may, of tests/models/test_logprobs.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logprobs_cases import N, inputs, naive, weighted

from cgrpo_jax.models.logprobs import linear_logprobs


@pytest.mark.parametrize(("block_size", "softcap"), [(8, 0.0), (64, 0.0), (8, 3.0)])
def test_gradients_against_finite_differences(block_size, softcap):
    with jax.enable_x64(True):
        hidden, unembed, target = inputs(21, dtype=np.float64)
        scalar = weighted(linear_logprobs, target, temperature=0.7, softcap=softcap, block_size=block_size)
        gradients = jax.grad(scalar, argnums=(0, 1))(hidden, unembed)
        assert gradients[0].dtype == jnp.float64
        for argument, gradient in enumerate(gradients):
            x = (hidden, unembed)[argument]
            steps = 1e-6 * jnp.eye(x.size).reshape(x.size, *x.shape)

            def central(step, argument=argument):
                plus, minus = ([h, u] for h, u in ((hidden, unembed), (hidden, unembed)))
                plus[argument], minus[argument] = plus[argument] + step, minus[argument] - step
                return (scalar(*plus) - scalar(*minus)) / 2e-6

            numeric = jax.jit(jax.vmap(central))(steps).reshape(x.shape)
            np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_large_logits():
    # Logits of several hundred: exponentials of them overflow, differences from the maximum don't.
    hidden, unembed, target = inputs(50, scale=12.0)
    assert np.abs(hidden @ unembed.T).max() > 500
    logp, entropy = linear_logprobs(hidden, unembed, target, block_size=16)
    expected_logp, expected_entropy = naive(hidden, unembed, target)
    np.testing.assert_allclose(logp, expected_logp, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-3)
    gradients = jax.grad(weighted(linear_logprobs, target, block_size=16), argnums=(0, 1))(hidden, unembed)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16():
    # The same bfloat16 numbers in float64 are the truth. Values: products of bfloat16 are exact in float32, so only the
    # sum's order is left. Gradients: d_logit and the result are rounded to 8 bits, 2^-9 relative each.
    hidden, unembed, target = inputs(300, n=32, dtype=jnp.bfloat16)
    logp, entropy = linear_logprobs(hidden, unembed, target, block_size=128)
    gradients = jax.grad(weighted(linear_logprobs, target, block_size=128), argnums=(0, 1))(hidden, unembed)
    assert logp.dtype == entropy.dtype == jnp.float32
    assert gradients[0].dtype == gradients[1].dtype == jnp.bfloat16
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, unembed)]
        expected_logp, expected_entropy = naive(*exact, target)
        np.testing.assert_allclose(logp, expected_logp, atol=2e-5)
        np.testing.assert_allclose(entropy, expected_entropy, atol=2e-5)
        for one, other in zip(gradients, jax.grad(weighted(naive, target), argnums=(0, 1))(*exact), strict=True):
            error = np.abs(np.asarray(one, np.float64) - other)
            assert error.max() < 2 * 2**-8 * np.abs(other).max()
            assert np.linalg.norm(error) < 2**-8 * np.linalg.norm(other)


@pytest.mark.parametrize("row_block", [1, 4, 5, 100])
@pytest.mark.parametrize("num_live", [None, -1, 0, 4, 5, 9])
def test_live_rows_in_blocks(row_block, num_live):
    hidden, unembed, target = inputs(21)
    live = N if num_live is None else min(max(num_live, 0), N)

    def expected(hidden, unembed, target):
        return [jnp.where(jnp.arange(N) < live, x, 0.0) for x in naive(hidden, unembed, target, softcap=2.0)]

    given = None if num_live is None else jnp.int32(num_live)
    keywords = dict(softcap=2.0, block_size=8, row_block=row_block, num_live=given)
    found, plain = (
        (
            function(hidden, unembed, target, **how),
            jax.grad(weighted(function, target, **how), argnums=(0, 1))(hidden, unembed),
        )
        for function, how in ((linear_logprobs, keywords), (expected, {}))
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert not np.any(found[1][0][live:])
