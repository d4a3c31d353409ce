"""The most likely tokens of a linear output layer, and the logits of chosen tokens beside all others', block by block.

Distillation compares two distributions over the vocabulary by C tokens of each row and one group for the rest of them.
As in logprobs.py no array holds all logits; on every platform this is plain JAX.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cgrpo_jax import sharding
from cgrpo_jax.models import vocab_blocks
from cgrpo_jax.models.kernels import logit_tiles
from cgrpo_jax.models.kernels.logit_tiles import Settings


def linear_top_tokens(
    hidden_ND: jax.Array,
    unembed_VD: jax.Array,
    *,
    num_tokens: int,
    block_size: int = 4096,
    row_block: int = 1024,
    vocab_size: int | None = None,
    num_live: jax.Array | None = None,
) -> jax.Array:
    """The ids of the `num_tokens` largest logits of each row, `hidden unembed^T`, from the largest on; no gradient.

        hidden_ND = [[1, 0]], unembed_VD = [[1, 0], [3, 0], [2, 0]], num_tokens = 2  ->  [[1, 2]]

    Args:
      hidden_ND: `[N, D]` final hidden states.
      unembed_VD: `[V, D]` output embedding; with `vocab_size` this device's part of it.
      num_tokens: C, less than the whole vocabulary.
      block_size, row_block, vocab_size, num_live: as for `logprobs.linear_logprobs`. Dead rows have the ids 0 .. C - 1.

    Returns:
      `[N, C]` int32, no id twice in a row.

    Raises:
      ValueError: the vocabulary has too few tokens.
    """
    N, V = hidden_ND.shape[0], unembed_VD.shape[0]
    vocab_size = V if vocab_size is None else vocab_size
    _check_number(num_tokens, vocab_size)
    settings = _settings(N, V, vocab_size, block_size, row_block)
    several = (hidden_ND, unembed_VD) if num_live is None else (hidden_ND, unembed_VD, num_live)
    hidden_ND, unembed_VD = (lax.stop_gradient(sharding.varying_like(x, *several)) for x in (hidden_ND, unembed_VD))
    logit_NC, id_NC = _top(settings, hidden_ND, unembed_VD, num_tokens, num_live)
    if settings.cut:
        id_NC = id_NC + sharding.part_of(V, vocab_size)
        logit_NM, id_NM = (
            lax.all_gather(x, sharding.TENSOR, axis=1, tiled=True, to="invarying") for x in (logit_NC, id_NC)
        )
        id_NC = jnp.take_along_axis(id_NM, lax.top_k(logit_NM, num_tokens)[1], axis=1)
    if num_live is None:
        return id_NC
    return jnp.where((jnp.arange(N) < num_live)[:, None], id_NC, jnp.arange(num_tokens))


def linear_group_logits(
    hidden_ND: jax.Array,
    unembed_VD: jax.Array,
    id_NC: jax.Array,
    *,
    temperature: float = 1.0,
    softcap: float = 0.0,
    block_size: int = 4096,
    row_block: int = 1024,
    vocab_size: int | None = None,
    num_live: jax.Array | None = None,
) -> jax.Array:
    """The logits of C tokens of each row, and the logsumexp of all others': `log_softmax` of these is exact.

    Gradients are exact too: of a chosen token's logit `g_c`, of another's `g_rest exp(logit - logsumexp)`.

        hidden_ND = [[1]], unembed_VD = [[log 3], [0], [log 2]], id_NC = [[2]]  ->  [[log 2, log 4]]

    Args:
      hidden_ND: `[N, D]` final hidden states, float32 or bfloat16.
      unembed_VD: `[V, D]` output embedding; with `vocab_size` this device's part of it.
      id_NC: `[N, C]` int, of the whole vocabulary, no id twice in a row, and not all of it.
      temperature, softcap, block_size, row_block, vocab_size, num_live: as for `logprobs.linear_logprobs`.

    Returns:
      `[N, C + 1]` float32 (float64 for float64 inputs); 0 in dead rows, which have no gradient.

    Raises:
      ValueError: the vocabulary has too few tokens.
    """
    N, V = hidden_ND.shape[0], unembed_VD.shape[0]
    vocab_size = V if vocab_size is None else vocab_size
    _check_number(id_NC.shape[1], vocab_size)
    settings = _settings(N, V, vocab_size, block_size, row_block, temperature=temperature, softcap=softcap)
    num_live = None if num_live is None else jnp.clip(jnp.asarray(num_live, jnp.int32), 0, N)
    several = (hidden_ND, unembed_VD) if num_live is None else (hidden_ND, unembed_VD, num_live)
    hidden_ND, unembed_VD = (sharding.varying_like(x, *several) for x in (hidden_ND, unembed_VD))
    id_NC = sharding.varying_like(id_NC - sharding.part_of(V, vocab_size), hidden_ND)
    return _group_logits(settings, hidden_ND, unembed_VD, id_NC, num_live)


def _check_number(num_tokens: int, vocab_size: int) -> None:
    if not 0 < num_tokens < vocab_size:
        raise ValueError(f"{num_tokens} tokens of a vocabulary of {vocab_size} leave no others; use fewer, at least 1.")


def _settings(N, V, vocab_size, block_size, row_block, *, temperature=1.0, softcap=0.0) -> Settings:
    return Settings(
        temperature=float(temperature),
        softcap=float(softcap),
        block_size=min(block_size, V),
        row_block=-(-N // -(-N // row_block)),
        cut=V < vocab_size,
        kernel="blocks",
    )


def _lowest(dtype) -> float:
    return float(jnp.finfo(dtype).min) / 2


# --- the most likely tokens ---------------------------------------------------------------------------------------


def _top(settings, hidden_ND, unembed_VD, C, num_live):
    """Returns `[N, C]` logits and ids of this part of the vocabulary, from the largest logit on."""
    N, dtype = hidden_ND.shape[0], logit_tiles.sum_dtype(hidden_ND, unembed_VD)

    def vocab_step(carry, index):
        block_KD, _, id_K, valid_K = vocab_blocks.of_vocab(settings, unembed_VD, index)

        def row_step(row, carry):
            start, live_R = vocab_blocks.of_rows(settings, N, row, num_live)
            hidden_RD, old_RC, old_id_RC = vocab_blocks.take(settings, start, (hidden_ND, *carry), (0, 0, 0))
            logit_RK, _ = vocab_blocks.logits(settings, hidden_RD, block_KD)
            both = jnp.concatenate([old_RC, jnp.where(valid_K, logit_RK, _lowest(dtype))], axis=1)
            new_RC, at_RC = lax.top_k(both, C)
            kept_RC = jnp.take_along_axis(old_id_RC, jnp.minimum(at_RC, C - 1), axis=1)
            id_RC = jnp.where(at_RC < C, kept_RC, id_K[jnp.maximum(at_RC - C, 0)])
            new = jnp.where(live_R[:, None], new_RC, old_RC), jnp.where(live_R[:, None], id_RC, old_id_RC)
            pairs = zip(carry, new, strict=True)
            return tuple(lax.dynamic_update_slice_in_dim(x, part, start, 0) for x, part in pairs)

        return vocab_blocks.for_live(settings, N, num_live, row_step, carry), None

    empty = jnp.full((N, C), _lowest(dtype), dtype), jnp.zeros((N, C), jnp.int32)
    empty = sharding.varying_like(empty, hidden_ND)
    return lax.scan(vocab_step, empty, jnp.arange(vocab_blocks.num_blocks(settings, unembed_VD)))[0]


# --- chosen tokens and the rest -----------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _group_logits(settings, hidden_ND, unembed_VD, id_NC, num_live):
    return _forward(settings, hidden_ND, unembed_VD, id_NC, num_live)[0]


def _forward(settings, hidden_ND, unembed_VD, id_NC, num_live):
    """From the chosen logits, the others' maximum m and `s = sum e^(l-m)`: of these `logsumexp = m + log s`."""
    logit_NC, max_N, sum_N = _parts(settings, hidden_ND, unembed_VD, id_NC, num_live)
    if settings.cut:
        whole_max_N = lax.pmax(max_N, sharding.TENSOR)
        logit_NC, sum_N = lax.psum((logit_NC, jnp.exp(max_N - whole_max_N) * sum_N), sharding.TENSOR)
        max_N = whole_max_N
    rest_N = max_N + jnp.log(sum_N)
    group_NG = jnp.concatenate([logit_NC, rest_N[:, None]], axis=1)
    if num_live is not None:  # the sums of dead rows are empty
        live_N = jnp.arange(hidden_ND.shape[0]) < num_live
        group_NG, rest_N = jnp.where(live_N[:, None], group_NG, 0.0), jnp.where(live_N, rest_N, 0.0)
    return group_NG, (hidden_ND, unembed_VD, id_NC, num_live, rest_N)


def _parts(settings, hidden_ND, unembed_VD, id_NC, num_live):
    """Returns the chosen logits, `[N, C]`, maximum and sum of the others, over this part of the vocabulary."""
    N, dtype = hidden_ND.shape[0], logit_tiles.sum_dtype(hidden_ND, unembed_VD)

    def vocab_step(carry, index):
        block_KD, first, _, valid_K = vocab_blocks.of_vocab(settings, unembed_VD, index)

        def row_step(row, carry):
            start, live_R = vocab_blocks.of_rows(settings, N, row, num_live)
            several = vocab_blocks.take(settings, start, (hidden_ND, id_NC, *carry), (0,) * 5)
            hidden_RD, id_RC, old_RC, old_max_R, old_sum_R = several
            logit_RK, _ = vocab_blocks.logits(settings, hidden_RD, block_KD)
            at_RC = _places(settings, id_RC, first, index)
            found_RC = jnp.take_along_axis(logit_RK, jnp.minimum(at_RC, settings.block_size - 1), axis=1)
            new_RC = old_RC + jnp.where(at_RC < settings.block_size, found_RC, 0.0)
            other_RK = jnp.where(valid_K & ~_marked(settings, at_RC), logit_RK, _lowest(dtype))
            max_R = jnp.maximum(old_max_R, other_RK.max(axis=1))
            sum_R = jnp.exp(old_max_R - max_R) * old_sum_R + jnp.exp(other_RK - max_R[:, None]).sum(axis=1)
            new = (
                jnp.where(live_R[:, None], new_RC, old_RC),
                jnp.where(live_R, max_R, old_max_R),
                jnp.where(live_R, sum_R, old_sum_R),
            )
            pairs = zip(carry, new, strict=True)
            return tuple(lax.dynamic_update_slice_in_dim(x, part, start, 0) for x, part in pairs)

        return vocab_blocks.for_live(settings, N, num_live, row_step, carry), None

    # Not -inf: shifting by the lowest number multiplies a sum of 0, or of a block whose tokens are all chosen.
    empty = jnp.zeros((N, id_NC.shape[1]), dtype), jnp.full(N, _lowest(dtype), dtype), jnp.zeros(N, dtype)
    empty = sharding.varying_like(empty, hidden_ND)
    return lax.scan(vocab_step, empty, jnp.arange(vocab_blocks.num_blocks(settings, unembed_VD)))[0]


def _places(settings, id_RC, first, index):
    """Returns where in a block that begins at `first` the tokens are; beyond its end for those it does not count."""
    inside_RC = (id_RC >= index * settings.block_size) & (id_RC < first + settings.block_size)
    return jnp.where(inside_RC, id_RC - first, settings.block_size)


def _marked(settings, at_RC):
    """Returns which entries of a tile are chosen."""
    tile_RK = sharding.varying_like(jnp.zeros((at_RC.shape[0], settings.block_size), bool), at_RC)
    return tile_RK.at[jnp.arange(at_RC.shape[0])[:, None], at_RC].set(True, mode="drop")


def _backward(settings, residuals, cotangent_NG):
    """Computes each block's logits again, and from them and the saved logsumexp its share of both gradients."""
    hidden_ND, unembed_VD, id_NC, num_live, rest_N = residuals
    N, dtype = hidden_ND.shape[0], logit_tiles.sum_dtype(hidden_ND, unembed_VD)
    matmul_dtype = jnp.result_type(hidden_ND, unembed_VD)
    rest_N, cotangent_NG = (sharding.varying_like(x, hidden_ND) for x in (rest_N, cotangent_NG))

    def vocab_step(carry, index):
        d_hidden_ND, d_unembed_VD = carry
        block_KD, first, _, valid_K = vocab_blocks.of_vocab(settings, unembed_VD, index)

        def row_step(row, carry):
            d_hidden_ND, d_block_KD = carry
            start, live_R = vocab_blocks.of_rows(settings, N, row, num_live)
            arrays = (hidden_ND, id_NC, rest_N, cotangent_NG, d_hidden_ND)
            hidden_RD, id_RC, rest_R, g_RG, d_hidden_RD = vocab_blocks.take(settings, start, arrays, (0,) * 5)
            hidden_RD = jnp.where(live_R[:, None], hidden_RD, 0)  # a dead row may hold NaN
            logit_RK, slope = vocab_blocks.logits(settings, hidden_RD, block_KD)
            at_RC = _places(settings, id_RC, first, index)
            other_RK = jnp.where(_marked(settings, at_RC), _lowest(dtype), logit_RK)
            d_RK = g_RG[:, -1:] * jnp.exp(other_RK - rest_R[:, None])
            d_RK = d_RK.at[jnp.arange(at_RC.shape[0])[:, None], at_RC].set(g_RG[:, :-1], mode="drop") * slope
            # As in logprobs.py: bfloat16 inputs stay so in the matrix products, whose sums are float32.
            d_RK = jnp.where(valid_K & live_R[:, None], d_RK, 0.0).astype(matmul_dtype)
            d_hidden_RD += jnp.einsum("rk,kd->rd", d_RK, block_KD, preferred_element_type=dtype)
            d_block_KD += jnp.einsum("rk,rd->kd", d_RK, hidden_RD, preferred_element_type=dtype)
            return lax.dynamic_update_slice_in_dim(d_hidden_ND, d_hidden_RD, start, 0), d_block_KD

        d_block_KD = sharding.varying_like(jnp.zeros(block_KD.shape, dtype), unembed_VD)
        d_hidden_ND, d_block_KD = vocab_blocks.for_live(settings, N, num_live, row_step, (d_hidden_ND, d_block_KD))
        d_block_KD = d_block_KD.astype(unembed_VD.dtype) + lax.dynamic_slice_in_dim(
            d_unembed_VD, first, settings.block_size
        )
        return (d_hidden_ND, lax.dynamic_update_slice_in_dim(d_unembed_VD, d_block_KD, first, 0)), None

    zeros = (jnp.zeros(hidden_ND.shape, dtype), jnp.zeros(unembed_VD.shape, unembed_VD.dtype))
    carry = sharding.varying_like(zeros, unembed_VD)
    (d_hidden_ND, d_unembed_VD), _ = lax.scan(
        vocab_step, carry, jnp.arange(vocab_blocks.num_blocks(settings, unembed_VD))
    )
    return d_hidden_ND.astype(hidden_ND.dtype), d_unembed_VD, None, None


_group_logits.defvjp(_forward, _backward)
