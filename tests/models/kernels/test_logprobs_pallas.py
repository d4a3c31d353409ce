"""The output layer's TPU kernels, run by Pallas's interpreter: values, gradients, dead rows, what they fetch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from logprobs_pallas_cases import inputs, layer, values_and_gradients

from cgrpo_jax.models.kernels import cost, logprobs_pallas
from cgrpo_jax.models.logprobs import linear_logprobs


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
def test_dead_rows_may_hold_anything(kernel):
    hidden, unembed, target, weights_2N = inputs(300, 140)
    keywords = dict(target=target, num_live=jnp.int32(150), kernel=kernel)
    run = jax.jit(functools.partial(values_and_gradients, functools.partial(layer, **keywords)))
    clean, spoilt = run(hidden, unembed, weights_2N), run(hidden.at[150:].set(jnp.nan), unembed, weights_2N)
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)


# --- what is computed, fetched and held ----------------------------------------------------------------------------


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
