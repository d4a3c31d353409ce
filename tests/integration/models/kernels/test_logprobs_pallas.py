"""What takes longer than a unit test may, of tests/models/kernels/test_logprobs_pallas.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from logprobs_pallas_cases import assert_within, exact, inputs, kernels, layer, values_and_gradients

from cgrpo_jax import sharding
from cgrpo_jax.models.kernels import logit_tiles


@pytest.mark.parametrize(
    ("n", "v", "num_live", "how"),
    [
        (256, 256, None, {}),  # whole tiles
        (300, 300, 200, {"temperature": 0.7, "softcap": 2.0}),
        (300, 257, 128, {"softcap": 2.0}),
        (300, 257, 0, {}),
        (40, 50, 33, {}),  # less than a tile
    ],
)
def test_equals_the_definition(n, v, num_live, how):
    hidden, unembed, target, weights_2N = inputs(n, v)
    expected = exact(hidden, unembed, target, weights_2N, n if num_live is None else num_live, **how)
    live = None if num_live is None else jnp.int32(num_live)
    found = kernels(hidden, unembed, target, weights_2N, num_live=live, **how)
    assert_within(found, expected, 1e-5)
    if num_live is not None:
        assert not np.any(found[0][:, num_live:]) and not np.any(found[1][num_live:])
        assert np.any(found[2]) == (num_live > 0)
    blocks = functools.partial(layer, target=target, num_live=live, **how)
    assert_within(jax.jit(functools.partial(values_and_gradients, blocks))(hidden, unembed, weights_2N), expected, 1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_definition_at_random_shapes(seed):
    rng = np.random.default_rng(seed)
    n, v = (int(size) for size in rng.integers(2, 400, 2))
    num_live = int(rng.integers(0, n + 1))
    how = {"temperature": float(rng.uniform(0.5, 2)), "softcap": float(rng.choice([0.0, 3.0]))}
    arguments = inputs(n, v)
    found = kernels(*arguments, num_live=jnp.int32(num_live), **how)
    assert_within(found, exact(*arguments, num_live, **how), 1e-5)


def test_mixed_dtypes():
    hidden, unembed, target, weights_2N = inputs(140, 140)
    mixed = (hidden.astype(jnp.bfloat16), unembed, target, weights_2N)
    found, expected = kernels(*mixed), exact(*mixed, 140)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert_within((found[0], found[2]), (expected[0], expected[2]), 1e-5)
    assert_within(found[1:2], expected[1:2], 2**-8)


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
@pytest.mark.parametrize("tensor", [2, 4])
def test_a_vocabulary_cut_over_a_mesh(kernel, tensor):
    """Parts of 150 and 75 ids, which no tile divides; each data group has its own rows and its own number of them."""
    groups, n, v = 8 // tensor, 140, 300
    hidden, unembed, target, weights_2N = inputs(groups * n, v)
    live_G = np.array([n, 0, 129, 60][:groups], np.int32)
    mesh = sharding.make_mesh(fsdp=groups, tensor=tensor)

    def part(hidden, unembed, target, weights_2N, live_1):
        outputs = functools.partial(layer, target=target, num_live=live_1[0], kernel=kernel, vocab_size=v, softcap=3.0)
        return values_and_gradients(outputs, hidden, unembed, weights_2N)

    rows, table, columns = P("fsdp"), P("tensor"), P(None, "fsdp")
    function = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(rows, table, rows, columns, rows),
        out_specs=(columns, rows, table),
    )
    found = jax.jit(function)(hidden, unembed, target, weights_2N, live_G)
    expected = []
    for g, live in enumerate(live_G):
        here = slice(g * n, (g + 1) * n)
        expected.append(exact(hidden[here], unembed, target[here], weights_2N[:, here], live, softcap=3.0))
    outputs, d_hidden, d_unembed = zip(*expected, strict=True)
    assert_within(found, (np.concatenate(outputs, 1), np.concatenate(d_hidden), sum(d_unembed)), 1e-5)


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
@pytest.mark.parametrize(("num_live", "row_blocks"), [(0, 0), (1, 1), (128, 1), (129, 2), (512, 4)])
def test_work_follows_the_live_rows(monkeypatch, kernel, num_live, row_blocks):
    ran, bend = [], logit_tiles.bend

    def counted(*arguments):
        jax.debug.callback(lambda: ran.append(1))
        return bend(*arguments)

    monkeypatch.setattr(logit_tiles, "bend", counted)
    hidden, unembed, target, weights_2N = inputs(512, 300)
    keywords = dict(target=target, num_live=jnp.int32(num_live), kernel=kernel)
    jax.block_until_ready(values_and_gradients(functools.partial(layer, **keywords), hidden, unembed, weights_2N))
    jax.effects_barrier()
    # Three blocks of the vocabulary; logits once in the forward pass, and once in each backward kernel.
    assert len(ran) == {"blocks": 2, "interpret": 3}[kernel] * 3 * row_blocks


def test_bfloat16():
    # The same bfloat16 numbers in float64 are the truth. Values: products of bfloat16 are exact in float32. Gradients:
    # d_logit and the result are rounded to 8 bits, 2^-9 each at most of what is rounded, hence 2^-8 of the largest.
    arguments = inputs(300, 300, dtype=jnp.bfloat16)
    found, expected = kernels(*arguments, num_live=jnp.int32(200)), exact(*arguments, 200)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    assert_within(found[:1], expected[:1], 1e-5)
    assert_within(found[1:], expected[1:], 2**-8)
