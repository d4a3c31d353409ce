"""The blockwise output layer against the plain one: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.models.logprobs import linear_logprobs

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


def test_by_hand():
    # Logits log 3 and 0: p = 3/4, 1/4. log 3/4 = -0.287682; H = 0.75 * 0.287682 + 0.25 * 1.386294 = 0.562335.
    hidden, unembed = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[np.log(3.0), 0.0], [0.0, 5.0]])
    for block_size in (1, 2, 5):
        logp, entropy = linear_logprobs(hidden, unembed, jnp.array([0, 1]), block_size=block_size)
        np.testing.assert_allclose(logp, [-0.287682, -1.386294], rtol=1e-5)
        np.testing.assert_allclose(entropy, [0.562335, 0.562335], rtol=1e-5)


@pytest.mark.parametrize(
    ("v", "block_size", "temperature"),
    [(32, 32, 1.0), (32, 100, 0.6), (32, 8, 1.0), (33, 8, 0.6), (31, 8, 1.5), (7, 3, 1.0), (32, 1, 0.6), (2, 4, 1.0)],
)
@pytest.mark.parametrize("softcap", [0.0, 2.0])  # logits reach 10
def test_equals_the_plain_layer(v, block_size, temperature, softcap):
    hidden, unembed, target = inputs(v)

    @jax.jit
    def outputs_and_gradients(hidden, unembed):
        plain = {"temperature": temperature, "softcap": softcap}
        return [
            (
                function(hidden, unembed, target, **keywords),
                jax.grad(weighted(function, target, **keywords), argnums=(0, 1))(hidden, unembed),
            )
            for function, keywords in ((linear_logprobs, plain | {"block_size": block_size}), (naive, plain))
        ]

    actual, expected = outputs_and_gradients(hidden, unembed)
    assert jax.tree.map(jnp.shape, actual) == (((N,), (N,)), ((N, D), (v, D)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_softcap_by_hand():
    # Logits 4 and 0 capped at 2: 2 tanh 2 = 1.928055, so log p = -log(1 + e^-1.928055) = -0.135781.
    hidden, unembed = jnp.array([[4.0]]), jnp.array([[1.0], [0.0]])
    logp, _ = linear_logprobs(hidden, unembed, jnp.array([0]), softcap=2.0)
    np.testing.assert_allclose(logp, [-0.135781], atol=2e-6)


def test_each_output_has_its_own_gradient():
    hidden, unembed, target = inputs(21)
    for output in (0, 1):
        blockwise = jax.grad(lambda h, i=output: linear_logprobs(h, unembed, target, block_size=8)[i].sum())
        plain = jax.grad(lambda h, i=output: naive(h, unembed, target)[i].sum())
        actual, expected = jax.jit(blockwise)(hidden), jax.jit(plain)(hidden)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected).max() > 0.1


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


def test_gradients_keep_each_dtype_of_mixed_inputs():
    hidden, unembed, target = inputs(20)
    scalar = weighted(linear_logprobs, target, block_size=8)
    d_hidden, d_unembed = jax.grad(scalar, argnums=(0, 1))(hidden.astype(jnp.bfloat16), unembed)
    assert (d_hidden.dtype, d_unembed.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("v", [4096, 4099])
def test_no_array_of_all_logits_exists(v):
    n, block_size = 64, 128
    hidden, unembed, target = inputs(v, n=n)

    def program(function, **keywords):
        return jax.jit(jax.value_and_grad(weighted(function, target, **keywords), argnums=(0, 1)))

    blockwise, plain = program(linear_logprobs, block_size=block_size), program(naive)
    text = str(jax.make_jaxpr(blockwise)(hidden, unembed))
    assert f"[{n},{block_size}]" in text
    assert f"[{n},{v}]" not in text
    assert f"[{n},{v}]" in str(jax.make_jaxpr(plain)(hidden, unembed))
    # Beyond its inputs and outputs the program needs a few blocks of logits, and a copy of unembed is not among them.
    memory = blockwise.lower(hidden, unembed).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * n * block_size * 4 < n * v * 4
    assert plain.lower(hidden, unembed).compile().memory_analysis().temp_size_in_bytes >= n * v * 4


def test_temporaries_at_full_size():
    """Compiled, not run: a tenth of the plain layer's at most, and the same for half of the vocabulary."""
    n, v, d = 8192, 151_936, 1024

    def temporaries(function, v):
        def scalar(hidden, unembed, target, num_live):
            return sum(x.sum() for x in function(hidden, unembed, target, num_live))

        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, d), (v, d)))
        integers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((n,), ()))
        program = jax.jit(jax.value_and_grad(scalar, (0, 1))).lower(*shapes, *integers)
        return program.compile().memory_analysis().temp_size_in_bytes

    def live(hidden, unembed, target, num_live):
        return linear_logprobs(hidden, unembed, target, num_live=num_live)

    whole = temporaries(live, v)
    assert whole < 100 * 2**20
    assert 10 * whole < temporaries(lambda hidden, unembed, target, _: naive(hidden, unembed, target), v)
    assert temporaries(live, v // 2) == pytest.approx(whole, rel=0.01)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"block_size": 0}, "block_size=0 must be above 0"),
        ({"row_block": 0}, "row_block=0 must be above 0"),
        ({"kernel": "cuda"}, "kernel='cuda' is unknown; use one of blocks, pallas, interpret"),
        ({"hidden_ND": jnp.ones((0, D)), "target_N": jnp.zeros(0, int)}, "must not be empty"),
        ({"unembed_VD": jnp.ones((4, D + 1))}, r"must be \[N, D\] and \[V, D\]"),
        ({"target_N": jnp.zeros((N, 1), int)}, "one index for each of the 6 rows"),
    ],
)
def test_mistakes(change, message):
    hidden, unembed, target = inputs(4)
    with pytest.raises(ValueError, match=message):
        linear_logprobs(**{"hidden_ND": hidden, "unembed_VD": unembed, "target_N": target, **change})
