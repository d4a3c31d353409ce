"""Log-probabilities and entropies of a linear output layer, one block of the vocabulary at a time.

The logits `[N, V]` of a training step are the largest array of a language model by far (16k tokens of a 150k vocabulary
are 10 GB in float32). Nothing here holds more than `[N, block_size]` of them: the forward pass keeps running sums, and
the backward pass computes each block again.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cgrpo_jax import sharding


def linear_logprobs(
    hidden_ND: jax.Array,
    unembed_VD: jax.Array,
    target_N: jax.Array,
    *,
    temperature: float = 1.0,
    softcap: float = 0.0,
    block_size: int = 4096,
    vocab_size: int | None = None,
    num_live=None,
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
      block_size: rows of `unembed_VD` in one step; at least V means a single step.
      vocab_size: V of the whole vocabulary, where `unembed_VD` is this device's part of it within `jax.shard_map`
        (sharding.py). Then three numbers a row are exchanged; the logits stay where they are.

    Returns:
      `[N]` log-probabilities and `[N]` entropies in nats, float32 (float64 for float64 inputs).

    Raises:
      ValueError: a shape does not fit, or `temperature` or `block_size` is not above 0.
    """
    if hidden_ND.ndim != 2 or unembed_VD.ndim != 2 or hidden_ND.shape[1] != unembed_VD.shape[1]:
        raise ValueError(f"hidden {hidden_ND.shape} and unembed {unembed_VD.shape} must be [N, D] and [V, D].")
    if target_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"target {target_N.shape} must be one index for each of the {hidden_ND.shape[0]} rows.")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; greedy decoding has no log-probabilities.")
    if block_size <= 0:
        raise ValueError(f"block_size={block_size} must be above 0; use a multiple of 128.")
    V = unembed_VD.shape[0]
    vocab_size = V if vocab_size is None else vocab_size
    settings = _Settings(float(temperature), float(softcap), min(block_size, V), V < vocab_size)
    # Both vary alike from here on, so that what each device finds of a gradient is added up where they did not.
    hidden_ND, unembed_VD = (
        sharding.varying_like(hidden_ND, unembed_VD),
        sharding.varying_like(unembed_VD, hidden_ND),
    )
    target_N = sharding.varying_like(target_N - sharding.part_of(V, vocab_size), hidden_ND)
    return _linear_logprobs(settings, hidden_ND, unembed_VD, target_N)


class _Settings(NamedTuple):
    temperature: float
    softcap: float
    block_size: int
    cut: bool  # the vocabulary is, over tensor


def _block_logits(settings: _Settings, hidden_ND, unembed_VD, index):
    """Logits of one block and their slope in `hidden unembed^T`, with the vocabulary ids of its columns.

    The last block starts early enough to be whole: its first columns may repeat, and are then not valid.
    """
    temperature, softcap, block_size, _ = settings
    start = jnp.minimum(index * block_size, unembed_VD.shape[0] - block_size)
    block_KD = lax.dynamic_slice_in_dim(unembed_VD, start, block_size)
    logit_NK = jnp.einsum("nd,kd->nk", hidden_ND, block_KD, preferred_element_type=_sum_dtype(hidden_ND, unembed_VD))
    slope = 1 / temperature
    if softcap:
        bent_NK = jnp.tanh(logit_NK / softcap)
        logit_NK, slope = softcap * bent_NK, (1 - bent_NK * bent_NK) / temperature
    id_K = start + jnp.arange(block_size)
    return logit_NK / temperature, slope, block_KD, start, id_K, id_K >= index * block_size


def _sum_dtype(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _num_blocks(settings: _Settings, unembed_VD):
    return -(-unembed_VD.shape[0] // settings.block_size)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_logprobs(settings, hidden_ND, unembed_VD, target_N):
    outputs, _ = _forward(settings, hidden_ND, unembed_VD, target_N)
    return outputs


def _forward(settings, hidden_ND, unembed_VD, target_N):
    """Scans the blocks with the running maximum m and, relative to it, `s = sum e^(l-m)` and `u = sum (l-m) e^(l-m)`.

    Then `logsumexp = m + log s` and `H = log s - u / s`.
    """
    dtype = _sum_dtype(hidden_ND, unembed_VD)

    def step(carry, index):
        max_N, sum_N, weighted_N, target_logit_N = carry
        logit_NK, _, _, _, id_K, valid_K = _block_logits(settings, hidden_ND, unembed_VD, index)
        new_max_N = jnp.maximum(max_N, logit_NK.max(axis=1))  # repeated columns don't change a maximum
        shift_N = max_N - new_max_N
        centred_NK = logit_NK - new_max_N[:, None]
        exp_NK = jnp.where(valid_K, jnp.exp(centred_NK), 0.0)
        weighted_N = jnp.exp(shift_N) * (weighted_N + shift_N * sum_N) + jnp.sum(exp_NK * centred_NK, axis=1)
        sum_N = jnp.exp(shift_N) * sum_N + exp_NK.sum(axis=1)
        is_target_NK = (id_K == target_N[:, None]) & valid_K
        target_logit_N = target_logit_N + jnp.sum(jnp.where(is_target_NK, logit_NK, 0.0), axis=1)
        return (new_max_N, sum_N, weighted_N, target_logit_N), None

    zero_N = sharding.varying_like(jnp.zeros(hidden_ND.shape[:1], dtype), hidden_ND)
    # The lowest finite number, not -inf: the first shift multiplies a sum of 0, and 0 * inf is not a number.
    lowest_N = zero_N + jnp.finfo(dtype).min
    carry = (lowest_N, zero_N, zero_N, zero_N)
    (max_N, sum_N, weighted_N, target_logit_N), _ = lax.scan(step, carry, jnp.arange(_num_blocks(settings, unembed_VD)))
    if settings.cut:
        whole_max_N = lax.pmax(max_N, sharding.TENSOR)
        shift_N = max_N - whole_max_N
        weighted_N = jnp.exp(shift_N) * (weighted_N + shift_N * sum_N)
        parts = (jnp.exp(shift_N) * sum_N, weighted_N, target_logit_N)
        max_N, (sum_N, weighted_N, target_logit_N) = whole_max_N, lax.psum(parts, sharding.TENSOR)
    logsumexp_N = max_N + jnp.log(sum_N)
    entropy_N = jnp.log(sum_N) - weighted_N / sum_N
    outputs = (target_logit_N - logsumexp_N, entropy_N)
    return outputs, (hidden_ND, unembed_VD, target_N, logsumexp_N, entropy_N)


def _backward(settings, residuals, cotangents):
    """Computes each block's probabilities again from the saved logsumexp, and from them its share of both gradients."""
    hidden_ND, unembed_VD, target_N, logsumexp_N, entropy_N = residuals
    g_logp_N, g_entropy_N = cotangents
    dtype = _sum_dtype(hidden_ND, unembed_VD)
    matmul_dtype = jnp.result_type(hidden_ND, unembed_VD)

    def step(carry, index):
        d_hidden_ND, d_unembed_VD = carry
        logit_NK, slope, block_KD, start, id_K, valid_K = _block_logits(settings, hidden_ND, unembed_VD, index)
        logp_NK = logit_NK - logsumexp_N[:, None]
        prob_NK = jnp.exp(logp_NK)
        onehot_NK = id_K == target_N[:, None]
        d_logit_NK = g_logp_N[:, None] * (onehot_NK - prob_NK)
        d_logit_NK -= g_entropy_N[:, None] * prob_NK * (logp_NK + entropy_N[:, None])
        # bfloat16 inputs stay bfloat16 in the matrix products, whose sums are float32, as in the forward pass.
        d_logit_NK = jnp.where(valid_K, d_logit_NK * slope, 0.0).astype(matmul_dtype)
        d_hidden_ND += jnp.einsum("nk,kd->nd", d_logit_NK, block_KD, preferred_element_type=dtype)
        d_block_KD = jnp.einsum("nk,nd->kd", d_logit_NK, hidden_ND, preferred_element_type=dtype)
        # Each row of the vocabulary is valid in one block and gets 0 from any other, so adding in the input's dtype
        # rounds once. Carried and updated in place: as a stacked output of the scan it would exist twice.
        d_block_KD = d_block_KD.astype(unembed_VD.dtype) + lax.dynamic_slice_in_dim(
            d_unembed_VD, start, settings.block_size
        )
        return (d_hidden_ND, lax.dynamic_update_slice_in_dim(d_unembed_VD, d_block_KD, start, 0)), None

    zeros = (jnp.zeros(hidden_ND.shape, dtype), jnp.zeros(unembed_VD.shape, unembed_VD.dtype))
    carry = sharding.varying_like(zeros, unembed_VD)
    (d_hidden_ND, d_unembed_VD), _ = lax.scan(step, carry, jnp.arange(_num_blocks(settings, unembed_VD)))
    return d_hidden_ND.astype(hidden_ND.dtype), d_unembed_VD, None


_linear_logprobs.defvjp(_forward, _backward)
