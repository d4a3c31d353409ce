"""The output layer's TPU kernels, run by Pallas's interpreter: values, gradients, dead rows, what they fetch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from cgrpo_jax import sharding
from cgrpo_jax.models.kernels import cost, logit_tiles, logprobs_pallas
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


def test_bfloat16():
    # The same bfloat16 numbers in float64 are the truth. Values: products of bfloat16 are exact in float32. Gradients:
    # d_logit and the result are rounded to 8 bits, 2^-9 each at most of what is rounded, hence 2^-8 of the largest.
    arguments = inputs(300, 300, dtype=jnp.bfloat16)
    found, expected = kernels(*arguments, num_live=jnp.int32(200)), exact(*arguments, 200)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    assert_within(found[:1], expected[:1], 1e-5)
    assert_within(found[1:], expected[1:], 2**-8)


def test_mixed_dtypes():
    hidden, unembed, target, weights_2N = inputs(140, 140)
    mixed = (hidden.astype(jnp.bfloat16), unembed, target, weights_2N)
    found, expected = kernels(*mixed), exact(*mixed, 140)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert_within((found[0], found[2]), (expected[0], expected[2]), 1e-5)
    assert_within(found[1:2], expected[1:2], 2**-8)


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
def test_dead_rows_may_hold_anything(kernel):
    hidden, unembed, target, weights_2N = inputs(300, 140)
    keywords = dict(target=target, num_live=jnp.int32(150), kernel=kernel)
    run = jax.jit(functools.partial(values_and_gradients, functools.partial(layer, **keywords)))
    clean, spoilt = run(hidden, unembed, weights_2N), run(hidden.at[150:].set(jnp.nan), unembed, weights_2N)
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)


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


# --- what is computed, fetched and held ----------------------------------------------------------------------------


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


class _Captured(Exception):
    pass


def grid_specs(n, v, *, d, dtype=jnp.bfloat16, num_live=None):
    """Returns {name: (grid specification, operands, result)} of the three kernels as they would be called."""
    found = {}

    def capture(body, *, grid_spec, out_shape, name, **_):
        def call(*operands):
            found[name] = (grid_spec, operands, out_shape)
            return jnp.zeros(out_shape.shape, out_shape.dtype)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "pallas_call", capture)
        arrays = [jax.ShapeDtypeStruct((size, d), dtype) for size in (n, v)]

        def run(hidden, unembed):
            return sum(x.sum() for x in linear_logprobs(hidden, unembed, jnp.zeros(n, int), kernel="pallas"))

        jax.eval_shape(jax.grad(run, (0, 1)), *arrays)
    return found


def fetches(grid_spec, which, live):
    """How often a block is fetched that is not the one of the step before, on one core."""
    specs = [*grid_spec.in_specs, grid_spec.out_specs]
    steps = np.indices(grid_spec.grid).reshape(2, -1)
    index_map = jax.vmap(lambda a, b: jnp.stack(jnp.broadcast_arrays(*specs[which].index_map(a, b, jnp.asarray(live)))))
    blocks = np.asarray(index_map(*jnp.asarray(steps, jnp.int32)))
    return 1 + int(np.any(np.diff(blocks, axis=0), axis=1).sum()), specs[which].block_shape


def test_dead_tiles_fetch_nothing():
    n, v = 5 * 1024 - 7, 151_936
    tables = math.ceil(v / 512)
    for name, (grid_spec, _, _) in grid_specs(n, v, d=1024).items():
        for tiles in range(6):
            live = (min(n, 1024 * tiles), tiles)
            if name == logprobs_pallas.D_UNEMBED:
                rows, (row_tile, _) = fetches(grid_spec, 1, (live[0], 2 * tiles))
                assert (row_tile, rows) == (512, 1 + max(0, math.ceil(v / 1024) * (2 * tiles) - 1) if tiles else 1)
                continue
            table, block = fetches(grid_spec, 2, live)
            assert (block, table) == ((512, 1024), max(1, tables * tiles))
            # The order is even tiles, then odd ones: a dead one between them may cost a fetch of hidden states.
            assert max(1, tiles) <= fetches(grid_spec, 1, live)[0] <= tiles + 1


def test_flops_and_bytes_by_hand():
    n, v, d = 2000, 5000, 1024
    for name, (grid_spec, operands, result) in grid_specs(n, v, d=d).items():
        arrays = [*operands[1:], result]
        call = cost.KernelCall(
            f"transpose(jvp({name}))",
            *(tuple((hlo_dtype(x), x.shape) for x in some) for some in (operands, [result])),
            times=1,
        )
        flops, moved = logprobs_pallas.flops_and_bytes(call)
        assert flops == (2 if name == logprobs_pallas.FORWARD else 4) * n * v * d
        whole = grid_spec.grid[0 if name == logprobs_pallas.D_UNEMBED else 1]
        streamed = {logprobs_pallas.D_UNEMBED: n}.get(name, v)
        assert whole == math.ceil({logprobs_pallas.D_UNEMBED: v}.get(name, v) / (1024 if whole == 5 else 512))
        times = grid_spec.grid[0]
        hand = times * streamed * d * 2 + (n + v - streamed) * d * 2 + math.prod(result.shape) * result.dtype.itemsize
        small = sum(x.size * x.dtype.itemsize for x in arrays[:1] + arrays[3:-1])
        hand += small * (times if name == logprobs_pallas.D_UNEMBED else 1)
        assert moved == hand
    with pytest.raises(ValueError, match="kernel other is none of linear_logprobs_forward"):
        logprobs_pallas.flops_and_bytes(cost.KernelCall("other", (), (), 1))


def hlo_dtype(x):
    return {"bfloat16": "bf16", "float32": "f32", "int32": "s32"}[str(x.dtype)]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("accumulates", [False, True])
def test_tiles_fit_at_any_width(itemsize, accumulates):
    for width in (64, 576, 1024, 2304, 4096, 5120, 8192):
        stationary, streamed = logprobs_pallas.tiles(width, itemsize, accumulates=accumulates)
        held = 2 * (stationary + streamed) * width * itemsize + stationary * width * 4 * accumulates
        assert held < logprobs_pallas.VMEM_BYTES * 2 / 3
        assert stationary % 128 == streamed % 128 == 0
    with pytest.raises(ValueError, match="leaves no room in VMEM; use kernel='blocks'"):
        logprobs_pallas.tiles(10**6, itemsize, accumulates=accumulates)


def test_tiles_by_hand():
    # 8192 wide: 2 (256 + 512) 8192 2 + 16 256 512 + 256 8192 8 = 44,040,192 bytes, of 44,739,242 that may be taken.
    assert logprobs_pallas.tiles(8192, 2, accumulates=True) == (256, 512)
    assert logprobs_pallas.tiles(1024, 2, accumulates=True) == (1024, 512)
    assert logprobs_pallas.tiles(1024, 2, accumulates=True, vmem_bytes=16 * 2**20) == (512, 256)
