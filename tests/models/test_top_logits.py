"""Chosen tokens and the rest, block by block, against whole logits: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logprobs_cases import D, N, inputs

from cgrpo_jax.models.top_logits import linear_group_logits, linear_top_tokens


def whole(hidden, unembed, ids, temperature=1.0, softcap=0.0):
    logits = hidden @ unembed.T
    logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits) / temperature
    rows = jnp.arange(len(hidden))[:, None]
    rest = jax.nn.logsumexp(logits.at[rows, ids].set(-jnp.inf), axis=1)
    return jnp.concatenate([logits[rows, ids], rest[:, None]], axis=1)


def chosen(v, number, n=N):
    """Tokens of each row, the first and the last of the vocabulary among them."""
    rng = np.random.default_rng(v)
    ids = np.stack([rng.choice(v, number, replace=False) for _ in range(n)])
    ids[0, 0], ids[1, 0] = (x if x not in row else row[0] for x, row in ((0, ids[0]), (v - 1, ids[1])))
    return jnp.asarray(ids)


def weighted(function, ids, **keywords):
    weights = np.random.default_rng(7).normal(size=(len(ids), ids.shape[1] + 1))

    def scalar(hidden, unembed):
        found = function(hidden, unembed, ids, **keywords)
        return jnp.sum(jnp.asarray(weights, found.dtype) * found)

    return scalar


def test_by_hand():
    hidden, unembed = jnp.array([[1.0], [2.0]]), jnp.log(jnp.array([[3.0], [1.0], [2.0]]))
    for block_size in (1, 2, 3, 5):
        found = linear_group_logits(hidden, unembed, jnp.array([[2], [0]]), block_size=block_size)
        np.testing.assert_allclose(found, np.log([[2, 4], [9, 5]]), rtol=1e-6)
        assert linear_top_tokens(hidden, unembed, num_tokens=2, block_size=block_size).tolist() == [[0, 2], [0, 2]]


@pytest.mark.parametrize(
    ("v", "block_size", "number", "temperature"),
    [(32, 32, 3, 1.0), (32, 8, 5, 0.6), (33, 8, 31, 1.0), (31, 8, 1, 1.5), (7, 1, 6, 1.0)],
)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_equals_whole_logits(v, block_size, number, temperature, softcap):
    hidden, unembed, _ = inputs(v)
    ids, plain = chosen(v, number), {"temperature": temperature, "softcap": softcap}

    @jax.jit
    def outputs_and_gradients(hidden, unembed):
        return [
            (
                function(hidden, unembed, ids, **keywords),
                jax.grad(weighted(function, ids, **keywords), argnums=(0, 1))(hidden, unembed),
            )
            for function, keywords in ((linear_group_logits, plain | {"block_size": block_size}), (whole, plain))
        ]

    actual, expected = outputs_and_gradients(hidden, unembed)
    assert jax.tree.map(jnp.shape, actual) == ((N, number + 1), ((N, D), (v, D)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)
    top = jax.jit(lambda h, u: linear_top_tokens(h, u, num_tokens=number, block_size=block_size))(hidden, unembed)
    np.testing.assert_array_equal(top, jax.lax.top_k(hidden @ unembed.T, number)[1])


def test_rows_that_do_not_live_are_zero_whatever_they_hold():
    hidden, unembed, _ = inputs(21)
    hidden, ids = hidden.at[4:].set(jnp.nan), chosen(21, 3)

    @jax.jit
    def found(hidden, unembed):
        keywords = {"block_size": 8, "row_block": 2, "num_live": jnp.int32(4)}
        values, pull_back = jax.vjp(lambda h, u: linear_group_logits(h, u, ids, **keywords), hidden, unembed)
        return values, pull_back(jnp.ones_like(values)), linear_top_tokens(hidden, unembed, num_tokens=3, **keywords)

    values, (d_hidden, d_unembed), top = found(hidden, unembed)
    np.testing.assert_allclose(values[:4], whole(hidden[:4], unembed, ids[:4]), rtol=1e-5, atol=1e-5)
    assert not values[4:].any() and not d_hidden[4:].any() and np.isfinite(d_unembed).all()
    assert top[4:].tolist() == [[0, 1, 2]] * (N - 4)
    np.testing.assert_array_equal(top[:4], jax.lax.top_k(hidden[:4] @ unembed.T, 3)[1])


def test_large_logits():
    hidden, unembed, _ = inputs(50, scale=12.0)
    ids = chosen(50, 4)
    found = linear_group_logits(hidden, unembed, ids, block_size=16)
    np.testing.assert_allclose(found, whole(hidden, unembed, ids), rtol=1e-5, atol=1e-3)
    gradients = jax.grad(weighted(linear_group_logits, ids, block_size=16), argnums=(0, 1))(hidden, unembed)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("number", [0, 7, 8])
def test_all_of_the_vocabulary_leaves_no_others(number):
    hidden, unembed, _ = inputs(7)
    with pytest.raises(ValueError, match=f"{number} tokens of a vocabulary of 7 leave no others"):
        linear_top_tokens(hidden, unembed, num_tokens=number)


@pytest.mark.parametrize("v", [4096, 4099])
def test_no_array_of_all_logits_exists(v):
    n, block_size = 64, 128
    hidden, unembed, _ = inputs(v, n=n)

    def both(hidden, unembed):
        ids = linear_top_tokens(hidden, unembed, num_tokens=5, block_size=block_size)
        return weighted(linear_group_logits, ids, block_size=block_size)(hidden, unembed)

    text = str(jax.make_jaxpr(jax.value_and_grad(both, argnums=(0, 1)))(hidden, unembed))
    assert f"[{n},{block_size}]" in text
    assert f"[{n},{v}]" not in text
