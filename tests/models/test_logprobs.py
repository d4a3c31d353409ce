"""The blockwise output layer against the plain one: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logprobs_cases import D, N, inputs, naive, weighted

from cgrpo_jax.models.logprobs import linear_logprobs


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
