"""Log-probabilities and entropies of a linear output layer, one block of the vocabulary at a time.

The logits `[N, V]` of a training step are the largest array of a language model by far (16k tokens of a 150k vocabulary
are 10 GB in float32). Nothing here holds more than `[row_block, block_size]` of them: the forward pass keeps running
sums, and the backward pass computes each block again. On TPU Pallas kernels do the same (logprobs_pallas.py).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cgrpo_jax import sharding
from cgrpo_jax.models import vocab_blocks
from cgrpo_jax.models.kernels import logit_tiles, logprobs_pallas
from cgrpo_jax.models.kernels.logit_tiles import Settings

KERNELS = ("blocks", "pallas", "interpret")


def linear_logprobs(
    hidden_ND: jax.Array,
    unembed_VD: jax.Array,
    target_N: jax.Array,
    *,
    temperature: float = 1.0,
    softcap: float = 0.0,
    block_size: int = 4096,
    row_block: int = 1024,
    vocab_size: int | None = None,
    num_live: jax.Array | None = None,
    kernel: str = "blocks",
) -> tuple[jax.Array, jax.Array]:
    """`log p[target]` and the entropy `H = -sum p log p`, `p = softmax(hidden unembed^T / temperature)` of each row.

    Both outputs have exact gradients with respect to `hidden_ND` and `unembed_VD`:
    `d logit = g_logp (onehot - p) - g_H p (log p + H)`. With a soft-cap c, `z = hidden unembed^T` is first replaced by
    `c tanh(z / c)`, and its gradient multiplied by `1 - tanh(z / c)^2` (Gemma 2).

        hidden_ND = [[1, 0]], unembed_VD = [[log 3, 0], [0, 5]], target_N = [0]  ->  logp [log 3/4], entropy [0.5623]

    Args:
      hidden_ND: `[N, D]` final hidden states, float32 or bfloat16.
      unembed_VD: `[V, D]` output embedding. It is read in slices, never copied, whether or not the block divides V.
      target_N: `[N]` int in `0 .. V - 1`.
      temperature: divides the logits, a Python number above 0.
      softcap: c, a Python number; 0 for none.
      block_size: rows of `unembed_VD` in one step; at least V means a single step. The kernels take fewer if their
        tiles are smaller, and never fewer than 128.
      row_block: rows of `hidden_ND` in one step; likewise.
      vocab_size: V of the whole vocabulary, where `unembed_VD` is this device's part of it within `jax.shard_map`
        (sharding.py). Then four numbers a row are exchanged, and its gradient is summed; the logits stay where they
        are.
      num_live: how many rows, from the first, are computed: an int32 scalar, cut to `0 .. N`, which may differ between
        data groups. The others' outputs are 0, no gradient comes from them or goes to them, their blocks are skipped.
      kernel: "blocks" for plain JAX, "pallas" for the TPU's kernels, "interpret" for these on any machine, slowly.

    Returns:
      `[N]` log-probabilities and `[N]` entropies in nats, float32 (float64 for float64 inputs).

    Raises:
      ValueError: a shape does not fit, `temperature`, `block_size` or `row_block` is not above 0, or no such kernel.
    """
    _check(hidden_ND, unembed_VD, target_N, temperature, block_size, row_block, kernel)
    N, V = hidden_ND.shape[0], unembed_VD.shape[0]
    vocab_size = V if vocab_size is None else vocab_size
    num_row_blocks = -(-N // row_block)
    settings = Settings(
        temperature=float(temperature),
        softcap=float(softcap),
        block_size=min(block_size, V),
        row_block=-(-N // num_row_blocks),  # alike, as the last one is not shorter but repeats rows of the one before
        cut=V < vocab_size,
        kernel=kernel,
    )
    # Both vary alike from here on, so that what each device finds of a gradient is added up where they did not.
    # The number of live rows keeps its own: the outputs, put together over tensor, are where it says.
    num_live = None if num_live is None else jnp.clip(jnp.asarray(num_live, jnp.int32), 0, N)
    several = (hidden_ND, unembed_VD) if num_live is None else (hidden_ND, unembed_VD, num_live)
    hidden_ND, unembed_VD = (sharding.varying_like(x, *several) for x in (hidden_ND, unembed_VD))
    target_N = sharding.varying_like(target_N - sharding.part_of(V, vocab_size), hidden_ND)
    return _linear_logprobs(settings, hidden_ND, unembed_VD, target_N, num_live)


def _check(hidden_ND, unembed_VD, target_N, temperature, block_size, row_block, kernel):
    if hidden_ND.ndim != 2 or unembed_VD.ndim != 2 or hidden_ND.shape[1] != unembed_VD.shape[1]:
        raise ValueError(f"hidden {hidden_ND.shape} and unembed {unembed_VD.shape} must be [N, D] and [V, D].")
    if not hidden_ND.size or not unembed_VD.size:
        raise ValueError(f"hidden {hidden_ND.shape} and unembed {unembed_VD.shape} must not be empty.")
    if target_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"target {target_N.shape} must be one index for each of the {hidden_ND.shape[0]} rows.")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; greedy decoding has no log-probabilities.")
    for name, size in (("block_size", block_size), ("row_block", row_block)):
        if size <= 0:
            raise ValueError(f"{name}={size} must be above 0; use a multiple of 128.")
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; use one of {', '.join(KERNELS)}.")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_logprobs(settings, hidden_ND, unembed_VD, target_N, num_live):
    outputs, _ = _forward(settings, hidden_ND, unembed_VD, target_N, num_live)
    return outputs


def _forward(settings, hidden_ND, unembed_VD, target_N, num_live):
    """From the maximum m and, relative to it, `s = sum e^(l-m)` and `u = sum (l-m) e^(l-m)`, over all the vocabulary.

    Then `logsumexp = m + log s` and `H = log s - u / s`.
    """
    if settings.kernel == "blocks":
        parts_4N = _parts(settings, hidden_ND, unembed_VD, target_N, num_live)
    else:
        parts_4N = logprobs_pallas.forward(settings, hidden_ND, unembed_VD, target_N, _count(num_live, hidden_ND))
    max_N, sum_N, weighted_N, target_logit_N = parts_4N
    if settings.cut:
        whole_max_N = lax.pmax(max_N, sharding.TENSOR)
        shift_N = max_N - whole_max_N
        weighted_N = jnp.exp(shift_N) * (weighted_N + shift_N * sum_N)
        parts = (jnp.exp(shift_N) * sum_N, weighted_N, target_logit_N)
        max_N, (sum_N, weighted_N, target_logit_N) = whole_max_N, lax.psum(parts, sharding.TENSOR)
    logsumexp_N = max_N + jnp.log(sum_N)
    entropy_N = jnp.log(sum_N) - weighted_N / sum_N
    logp_N = target_logit_N - logsumexp_N
    if num_live is not None:  # the sums of dead rows are empty
        live_N = jnp.arange(hidden_ND.shape[0]) < num_live
        logp_N, logsumexp_N, entropy_N = (jnp.where(live_N, x, 0.0) for x in (logp_N, logsumexp_N, entropy_N))
    return (logp_N, entropy_N), (hidden_ND, unembed_VD, target_N, num_live, logsumexp_N, entropy_N)


def _backward(settings, residuals, cotangents):
    """Computes each block's probabilities again from the saved logsumexp, and from them its share of both gradients."""
    hidden_ND, unembed_VD, target_N, num_live, logsumexp_N, entropy_N = residuals
    stats_4N = jnp.stack([logsumexp_N, entropy_N, *cotangents])
    stats_4N = sharding.varying_like(stats_4N, hidden_ND)
    if settings.kernel == "blocks":
        gradients = _gradients(settings, hidden_ND, unembed_VD, target_N, stats_4N, num_live)
    else:
        inputs = (settings, hidden_ND, unembed_VD, target_N, stats_4N, _count(num_live, hidden_ND))
        gradients = (logprobs_pallas.d_hidden(*inputs), logprobs_pallas.d_unembed(*inputs))
    return *gradients, None, None


_linear_logprobs.defvjp(_forward, _backward)


def _count(num_live, hidden_ND):
    return sharding.varying_like(jnp.int32(hidden_ND.shape[0]) if num_live is None else num_live, hidden_ND)


# --- plain JAX: a scan over blocks of the vocabulary, and within it a loop over the blocks of live rows ---------------


def _parts(settings, hidden_ND, unembed_VD, target_N, num_live):
    """Returns `[4, N]`: maximum, sum, weighted sum and the target's logit over this part of the vocabulary."""
    N, dtype = hidden_ND.shape[0], logit_tiles.sum_dtype(hidden_ND, unembed_VD)

    def vocab_step(parts_4N, index):
        block_KD, _, id_K, valid_K = vocab_blocks.of_vocab(settings, unembed_VD, index)

        def row_step(row, parts_4N):
            start, live_R = vocab_blocks.of_rows(settings, N, row, num_live)
            hidden_RD, target_R, old_4R = vocab_blocks.take(settings, start, (hidden_ND, target_N, parts_4N), (0, 0, 1))
            logit_RK, _ = vocab_blocks.logits(settings, hidden_RD, block_KD)
            is_target_RK = id_K == target_R[:, None]
            new = logit_tiles.fold(tuple(old_4R[:, :, None]), logit_RK, is_target_RK, valid_K, axis=1)
            new_4R = jnp.where(live_R, jnp.stack(new)[:, :, 0], old_4R)
            return lax.dynamic_update_slice_in_dim(parts_4N, new_4R, start, 1)

        return vocab_blocks.for_live(settings, N, num_live, row_step, parts_4N), None

    parts_4N = sharding.varying_like(logit_tiles.empty_parts(N, dtype), hidden_ND)
    return lax.scan(vocab_step, parts_4N, jnp.arange(vocab_blocks.num_blocks(settings, unembed_VD)))[0]


def _gradients(settings, hidden_ND, unembed_VD, target_N, stats_4N, num_live):
    """Returns the gradients of the hidden states and of the table; `stats_4N` as in logprobs_pallas.d_hidden."""
    N, dtype = hidden_ND.shape[0], logit_tiles.sum_dtype(hidden_ND, unembed_VD)
    matmul_dtype = jnp.result_type(hidden_ND, unembed_VD)

    def vocab_step(carry, index):
        d_hidden_ND, d_unembed_VD = carry
        block_KD, first, id_K, valid_K = vocab_blocks.of_vocab(settings, unembed_VD, index)

        def row_step(row, carry):
            d_hidden_ND, d_block_KD = carry
            start, live_R = vocab_blocks.of_rows(settings, N, row, num_live)
            arrays = (hidden_ND, target_N, stats_4N, d_hidden_ND)
            hidden_RD, target_R, stats_4R, d_hidden_RD = vocab_blocks.take(settings, start, arrays, (0, 0, 1, 0))
            hidden_RD = jnp.where(live_R[:, None], hidden_RD, 0)  # a dead row may hold NaN
            logit_RK, slope = vocab_blocks.logits(settings, hidden_RD, block_KD)
            is_target_RK = id_K == target_R[:, None]
            d_RK = logit_tiles.d_product(logit_RK, slope, is_target_RK, tuple(stats_4R[:, :, None]))
            # bfloat16 inputs stay bfloat16 in the matrix products, whose sums are float32, as in the forward pass.
            d_RK = jnp.where(valid_K & live_R[:, None], d_RK, 0.0).astype(matmul_dtype)
            d_hidden_RD += jnp.einsum("rk,kd->rd", d_RK, block_KD, preferred_element_type=dtype)
            d_block_KD += jnp.einsum("rk,rd->kd", d_RK, hidden_RD, preferred_element_type=dtype)
            return lax.dynamic_update_slice_in_dim(d_hidden_ND, d_hidden_RD, start, 0), d_block_KD

        d_block_KD = sharding.varying_like(jnp.zeros(block_KD.shape, dtype), unembed_VD)
        d_hidden_ND, d_block_KD = vocab_blocks.for_live(settings, N, num_live, row_step, (d_hidden_ND, d_block_KD))
        # Each row of the vocabulary is valid in one block and gets 0 from any other, so adding in the input's dtype
        # rounds once. Carried and updated in place: as a stacked output of the scan it would exist twice.
        d_block_KD = d_block_KD.astype(unembed_VD.dtype) + lax.dynamic_slice_in_dim(
            d_unembed_VD, first, settings.block_size
        )
        return (d_hidden_ND, lax.dynamic_update_slice_in_dim(d_unembed_VD, d_block_KD, first, 0)), None

    zeros = (jnp.zeros(hidden_ND.shape, dtype), jnp.zeros(unembed_VD.shape, unembed_VD.dtype))
    carry = sharding.varying_like(zeros, unembed_VD)
    (d_hidden_ND, d_unembed_VD), _ = lax.scan(
        vocab_step, carry, jnp.arange(vocab_blocks.num_blocks(settings, unembed_VD))
    )
    return d_hidden_ND.astype(hidden_ND.dtype), d_unembed_VD
