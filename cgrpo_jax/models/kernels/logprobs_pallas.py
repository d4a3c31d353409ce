"""The output layer's log-probabilities as Pallas kernels for TPU.

Three kernels, none of which writes a logit to HBM: `forward` folds the logits of each row into four sums; `d_hidden`
and `d_unembed` compute each tile of logits again from the saved logsumexp, and add up one gradient each. In each kernel
a *stationary* tile (rows of the output) stays in VMEM while the other operand streams past it.
`logprobs.linear_logprobs` calls them; the arithmetic of a tile is that of logit_tiles.py.

Rows from `num_live` on are dead: their tiles compute nothing and fetch nothing, so that work follows the live rows.
"""

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cgrpo_jax import sharding
from cgrpo_jax.models.kernels import cost, logit_tiles
from cgrpo_jax.models.kernels.logit_tiles import Settings

FORWARD, D_HIDDEN, D_UNEMBED = "linear_logprobs_forward", "linear_logprobs_d_hidden", "linear_logprobs_d_unembed"
KERNELS = (FORWARD, D_HIDDEN, D_UNEMBED)
# VMEM of one core: v5e and v6e have 128 MiB, v5p 64 MiB; what is safe on all three.
VMEM_BYTES = 64 * 2**20
_LANES = 128
_STATIONARY, _STREAMED = (1024, 512, 256, 128), (512, 256, 128)


# --- tiles ---------------------------------------------------------------------------------------------------------


def tiles(width: int, itemsize: int, *, accumulates: bool, vmem_bytes: int = VMEM_BYTES) -> tuple[int, int]:
    """Returns rows of the stationary and of the streamed tile: the largest that fit two thirds of the VMEM.

    The other operand is read once for each stationary tile of S rows, so HBM must deliver a byte for every S (bfloat16,
    forward) or 2 S (backward) FLOPs: above 240 (v5e), 166 (v5p) or 560 (v6e) the matrix unit is what limits. VMEM holds

        S D b 2 (stationary)  +  T D b 2 (streamed)  +  S T 16 (logits and what is made of them in float32)

    with b the itemsize and 2 for the next tile that is fetched meanwhile; a kernel that accumulates also S D 4 for
    its sums and S D b 2 for its result; in float32 6 bytes for each number of both tiles, which the matrix unit takes
    as three of bfloat16. The last third is the compiler's.

    Args:
      width: D.
      itemsize: b.
      accumulates: whether the kernel's result is a gradient of the stationary tile.
      vmem_bytes: of one core.

    Example:
      tiles(1024, 2, accumulates=True) == (1024, 512);  tiles(8192, 2, accumulates=True) == (256, 512)
    """
    padded = _round_up(width)
    for stationary in _STATIONARY:
        for streamed in _STREAMED:
            held = 2 * (stationary + streamed) * padded * itemsize + 16 * stationary * streamed
            held += stationary * padded * (4 + 2 * itemsize) if accumulates else 0
            held += (stationary + streamed) * padded * 6 if itemsize > 2 else 0
            if 3 * held <= 2 * vmem_bytes:
                return stationary, streamed
    raise ValueError(f"a model width of {width} at {itemsize} bytes leaves no room in VMEM; use kernel='blocks'.")


def _round_up(size: int) -> int:
    return -(-size // _LANES) * _LANES


class _Grid(NamedTuple):
    """Tiles of a call: rows of a tile and number of tiles, along the rows and along the vocabulary."""

    row_tile: int
    num_row_tiles: int
    vocab_tile: int
    num_vocab_tiles: int


def _grid(name: str, hidden_shape, unembed_shape, itemsize: int, row_limit: int, vocab_limit: int) -> _Grid:
    (N, D), V = hidden_shape, unembed_shape[0]
    sizes = tiles(D, itemsize, accumulates=name != FORWARD)
    row_tile, vocab_tile = reversed(sizes) if name == D_UNEMBED else sizes
    row_tile = min(row_tile, _round_up(min(row_limit, N)))
    vocab_tile = min(vocab_tile, _round_up(min(vocab_limit, V)))
    return _Grid(row_tile, pl.cdiv(N, row_tile), vocab_tile, pl.cdiv(V, vocab_tile))


def _spread(i, count: int):
    """Returns the row tile of a grid step: the even ones, then the odd ones.

    Two cores that share a grid (v5p) take one half of it each. In this order both have their share of live tiles.
    """
    half = pl.cdiv(count, 2)
    return jnp.where(i < half, 2 * i, 2 * (i - half) + 1)


# --- the kernels ---------------------------------------------------------------------------------------------------


def forward(settings: Settings, hidden_ND, unembed_VD, target_N, num_live: jax.Array) -> jax.Array:
    """Returns `[4, N]`: what `logit_tiles.fold` makes of this part of the vocabulary.

    Args:
      settings: static.
      hidden_ND, unembed_VD: float32 or bfloat16, products in the wider of the two.
      target_N: int; one outside `0 .. V - 1` is in another part, and adds 0.
      num_live: int32 scalar; the rows from there on hold `logit_tiles.empty_parts`, or anything.
    """
    dtype = logit_tiles.sum_dtype(hidden_ND, unembed_VD)

    def body(grid, live_ref, target_ref, hidden_ref, unembed_ref, out_ref):
        tile, j = _spread(pl.program_id(0), grid.num_row_tiles), pl.program_id(1)

        @pl.when(j == 0)
        def _():
            out_ref[...] = logit_tiles.empty_parts(grid.row_tile, dtype)

        def step(edge):
            logit_KR, _ = logit_tiles.bend(settings, _products(unembed_ref[...], hidden_ref[...]))
            id_KR = j * grid.vocab_tile + lax.broadcasted_iota(jnp.int32, logit_KR.shape, 0)
            parts = tuple(out_ref[k : k + 1, :] for k in range(4))
            valid = id_KR < unembed_VD.shape[0] if edge else None
            for k, part in enumerate(logit_tiles.fold(parts, logit_KR, id_KR == target_ref[...], valid, axis=0)):
                out_ref[k : k + 1, :] = part

        _inner_or_edge(step, tile < live_ref[1], j, grid.num_vocab_tiles, unembed_VD.shape[0] % grid.vocab_tile)

    out = _like(hidden_ND, (4, hidden_ND.shape[0]), dtype)
    operands = (target_N[None].astype(jnp.int32), hidden_ND, unembed_VD)
    return _call(FORWARD, settings, body, num_live, operands, out)


def d_hidden(settings: Settings, hidden_ND, unembed_VD, target_N, stats_4N, num_live: jax.Array) -> jax.Array:
    """Returns `[N, D]`, the gradient of the hidden states from this part of the vocabulary; 0 in dead rows.

    Args:
      settings, hidden_ND, unembed_VD, target_N, num_live: as for `forward`.
      stats_4N: logsumexp, entropy, and the gradients of log-probability and entropy.
    """

    def body(grid, live_ref, target_ref, hidden_ref, unembed_ref, stats_ref, out_ref, sum_ref):
        tile, j = _spread(pl.program_id(0), grid.num_row_tiles), pl.program_id(1)

        @pl.when(j == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        def step(edge):
            block_KD = unembed_ref[...]
            id_RK = j * grid.vocab_tile + lax.broadcasted_iota(jnp.int32, (grid.row_tile, grid.vocab_tile), 1)
            if edge:  # beyond the table lies anything, NaN included
                block_KD = _zero_from(unembed_VD.shape[0] - j * grid.vocab_tile, block_KD)
            logit_RK, slope = logit_tiles.bend(settings, _products(hidden_ref[...], block_KD))
            stats = tuple(stats_ref[:, k : k + 1] for k in range(4))
            d_RK = logit_tiles.d_product(logit_RK, slope, id_RK == target_ref[...], stats)
            if edge:
                d_RK = jnp.where(id_RK < unembed_VD.shape[0], d_RK, 0.0)
            sum_ref[...] += _products(d_RK.astype(_product_dtype(hidden_ND, unembed_VD)), block_KD, "rk,kd->rd")

        _inner_or_edge(step, tile < live_ref[1], j, grid.num_vocab_tiles, unembed_VD.shape[0] % grid.vocab_tile)

        @pl.when(j == grid.num_vocab_tiles - 1)
        def _():
            out_ref[...] = _zero_from(live_ref[0] - tile * grid.row_tile, sum_ref[...]).astype(out_ref.dtype)

    out = _like(hidden_ND, hidden_ND.shape, hidden_ND.dtype)
    operands = (target_N[:, None].astype(jnp.int32), hidden_ND, unembed_VD, stats_4N.T)
    return _call(D_HIDDEN, settings, body, num_live, operands, out)


def d_unembed(settings: Settings, hidden_ND, unembed_VD, target_N, stats_4N, num_live: jax.Array) -> jax.Array:
    """Returns `[V, D]`, the gradient of this part of the table from the live rows; arguments as for `d_hidden`."""

    def body(grid, live_ref, target_ref, hidden_ref, unembed_ref, stats_ref, out_ref, sum_ref):
        j, i = pl.program_id(0), pl.program_id(1)

        @pl.when(i == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        def step(edge):
            hidden_RD, num_left = hidden_ref[...], live_ref[0] - i * grid.row_tile
            if edge:
                hidden_RD = _zero_from(num_left, hidden_RD)
            logit_KR, slope = logit_tiles.bend(settings, _products(unembed_ref[...], hidden_RD))
            id_KR = j * grid.vocab_tile + lax.broadcasted_iota(jnp.int32, logit_KR.shape, 0)
            stats = tuple(stats_ref[k : k + 1, :] for k in range(4))
            d_KR = logit_tiles.d_product(logit_KR, slope, id_KR == target_ref[...], stats)
            if edge:
                d_KR = jnp.where(lax.broadcasted_iota(jnp.int32, d_KR.shape, 1) < num_left, d_KR, 0.0)
            sum_ref[...] += _products(d_KR.astype(_product_dtype(hidden_ND, unembed_VD)), hidden_RD, "kr,rd->kd")

        _inner_or_edge(step, i < live_ref[1], i, live_ref[1], live_ref[0] % grid.row_tile)

        @pl.when(i == grid.num_row_tiles - 1)
        def _():
            out_ref[...] = sum_ref[...].astype(out_ref.dtype)

    out = _like(hidden_ND, unembed_VD.shape, unembed_VD.dtype)
    operands = (target_N[None].astype(jnp.int32), hidden_ND, unembed_VD, stats_4N)
    return _call(D_UNEMBED, settings, body, num_live, operands, out)


def _call(name: str, settings: Settings, body, num_live, operands, out):
    """Runs a kernel over its tiles; `operands` are target, hidden states, table and, in the backward pass, stats."""
    _, hidden_ND, unembed_VD, *_ = operands
    D, dtype = hidden_ND.shape[1], _product_dtype(hidden_ND, unembed_VD)
    limits = (settings.row_block, settings.block_size)
    grid = _grid(name, hidden_ND.shape, unembed_VD.shape, dtype.itemsize, *limits)

    # Block of the rows, and of the vocabulary, at a grid step. A dead step names those of the step before it.
    def rows_of(a, b, live_ref):
        row = b if name == D_UNEMBED else _spread(a, grid.num_row_tiles)
        return jnp.clip(row, 0, jnp.maximum(live_ref[1] - 1, 0))

    def vocab_of(a, b, live_ref):
        if name == D_UNEMBED:
            return a
        return jnp.where(_spread(a, grid.num_row_tiles) < live_ref[1], b, grid.num_vocab_tiles - 1)

    def by_row(size, place):  # of an array whose rows lie along its axis 1, or 0 for d_hidden
        if name == D_HIDDEN:
            return pl.BlockSpec((grid.row_tile, size), lambda *step: (place(*step), 0))
        return pl.BlockSpec((size, grid.row_tile), lambda *step: (0, place(*step)))

    in_specs = [
        by_row(1, rows_of),
        pl.BlockSpec((grid.row_tile, D), lambda *step: (rows_of(*step), 0)),
        pl.BlockSpec((grid.vocab_tile, D), lambda *step: (vocab_of(*step), 0)),
        by_row(4, rows_of),
    ][: len(operands)]
    # Dead rows' results are written too.
    own = {
        FORWARD: by_row(4, lambda a, b, _: _spread(a, grid.num_row_tiles)),
        D_HIDDEN: pl.BlockSpec((grid.row_tile, D), lambda a, b, _: (_spread(a, grid.num_row_tiles), 0)),
        D_UNEMBED: pl.BlockSpec((grid.vocab_tile, D), lambda a, b, _: (a, 0)),
    }[name]
    own_shape = (grid.row_tile if name == D_HIDDEN else grid.vocab_tile, D)
    scratch = [] if name == FORWARD else [pltpu.VMEM(own_shape, logit_tiles.sum_dtype(hidden_ND, unembed_VD))]
    steps = (grid.num_row_tiles, grid.num_vocab_tiles)
    interpret = settings.kernel == "interpret"
    call = pl.pallas_call(
        functools.partial(body, grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=steps[::-1] if name == D_UNEMBED else steps,
            in_specs=in_specs,
            out_specs=own,
            scratch_shapes=scratch,
        ),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES * 15 // 16
        ),
        interpret=interpret,
        name=name,
    )
    live_2 = jnp.stack([num_live, pl.cdiv(num_live, grid.row_tile)]).astype(jnp.int32)
    return _apart(call, live_2, *operands) if interpret else call(live_2, *operands)


def _apart(call, *operands):
    """Runs an interpreted kernel where devices may differ: the interpreter knows nothing of varying axes.

    So there its program is exported and called as a whole. It is traced in a thread, whose context has no such axes.
    (The interpreter of `pltpu.InterpretParams` knows them, but waits for all devices, for ever where cores are few.)
    """
    if not any(jax.typeof(x).manual_axis_type.varying for x in operands):
        return call(*operands)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    with ThreadPoolExecutor(1) as thread:
        exported = thread.submit(export.export(jax.jit(call)), *shapes).result()
    return sharding.varying_like(exported.call(*operands), *operands)


def _inner_or_edge(step, live, index, count, remainder):
    """Runs `step(edge)`: True at the last of `count` tiles unless it is a full one, False elsewhere, none if dead.

    Two bodies, so that masks are computed where they mask something.
    """
    if isinstance(remainder, int) and not remainder:
        pl.when(live)(functools.partial(step, False))
        return
    edge = (index == count - 1) & (remainder != 0)
    pl.when(live & edge)(functools.partial(step, True))
    pl.when(live & jnp.logical_not(edge))(functools.partial(step, False))


def _zero_from(start, block):
    """Returns a tile with 0 in its rows from `start` on."""
    return jnp.where(lax.broadcasted_iota(jnp.int32, block.shape, 0) < start, block, jnp.zeros((), block.dtype))


def _product_dtype(*arrays) -> jnp.dtype:
    return jnp.result_type(*arrays)


def _products(a, b, equation="xd,yd->xy"):
    """Products in the wider dtype of the two: bfloat16 in one pass of the matrix unit, float32 in several."""
    dtype = _product_dtype(a, b)
    precision = None if dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=logit_tiles.sum_dtype(a, b))


def _like(x, shape, dtype) -> jax.ShapeDtypeStruct:
    """A result that may differ between the devices between which `x` may."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


# --- what they cost ------------------------------------------------------------------------------------------------


def flops_and_bytes(call: cost.KernelCall) -> tuple[float, float]:
    """Returns the FLOPs of one run of one of these kernels, all rows live, and the bytes it moves to and from HBM.

    forward `2 N V D`, the others `4 N V D`: the logits, and the gradient. The stationary operand is read once, the
    streamed one once for each stationary tile (of S rows, `tiles`), and the result written once:

        forward    N D b + ceil(N / S) V D b           d_hidden   N D (b + b_out) + ceil(N / S) V D b
        d_unembed  V D (b + b_out) + ceil(V / S) N D b

    and the few numbers of each row on top. With dead rows, N is the number of live ones.

    Args:
      call: of a kernel named FORWARD, D_HIDDEN or D_UNEMBED, with the default blocks of `linear_logprobs`.

    Raises:
      ValueError: it is another kernel.
    """
    name = re.findall(r"\w+", call.name)[-1]  # without what traced it, as in transpose(jvp(NAME))
    if name not in KERNELS:
        raise ValueError(f"kernel {call.name} is none of {', '.join(KERNELS)}.")
    _, target, hidden, unembed, *stats = call.operands
    (N, D), V = hidden[1], unembed[1][0]
    itemsize = max(cost.num_bytes(dtype, (1,)) for dtype, _ in (hidden, unembed))
    grid = _grid(name, hidden[1], unembed[1], itemsize, N, V)
    times = {target: 1, hidden: 1, unembed: grid.num_row_tiles}
    if name == D_UNEMBED:
        times = {target: grid.num_vocab_tiles, hidden: grid.num_vocab_tiles, unembed: 1}
    moved = sum(count * cost.num_bytes(*array) for array, count in times.items())
    moved += sum(times[target] * cost.num_bytes(*array) for array in stats)
    moved += sum(cost.num_bytes(*array) for array in call.results)
    return (2.0 if name == FORWARD else 4.0) * N * V * D, float(moved)
