"""The arithmetic of one tile of logits, which plain JAX (logprobs.py) and Pallas (logprobs_pallas.py) both run.

A tile is some rows' logits for some of the vocabulary, which lies along one axis, the rows along the other. Tiles of a
row are folded one by one into four sums, from which its log-probability and entropy follow; and each gives its share of
the gradient, once these are known.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Settings(NamedTuple):
    """What is fixed when a program is traced; `linear_logprobs` documents each."""

    temperature: float
    softcap: float
    block_size: int
    row_block: int
    cut: bool  # the vocabulary is, over tensor
    kernel: str


def sum_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Returns the dtype in which sums of products of these arrays are held: float32, or wider inputs' own."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def empty_parts(num_rows: int, dtype: jnp.dtype) -> jax.Array:
    """Returns `[4, N]`: the running maximum m, sum s, weighted sum u and target's logit before any logit was seen."""
    # Not -inf: shifting by it multiplies a sum of 0. Half of the lowest number: differences from it stay finite.
    row_41 = lax.broadcasted_iota(jnp.int32, (4, num_rows), 0)
    return jnp.where(row_41 == 0, jnp.asarray(_lowest(dtype), dtype), jnp.zeros((), dtype))


def bend(settings: Settings, product: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Returns logits from products of hidden states and table, and the logits' slope in the products."""
    slope = 1 / settings.temperature
    if settings.softcap:
        bent = jnp.tanh(product / settings.softcap)
        product, slope = settings.softcap * bent, (1 - bent * bent) * slope
    return product / settings.temperature, slope


def fold(parts: tuple, logit: jax.Array, is_target: jax.Array, valid: jax.Array | None, *, axis: int) -> tuple:
    """Adds a tile of logits to each row's running maximum m, `s = sum e^(l-m)`, `u = sum (l-m) e^(l-m)` and target.

    Args:
      parts: (m, s, u, logit of the target), each of size 1 along `axis`.
      logit: of the tile.
      is_target: whether an entry is its row's target.
      valid: whether an entry counts; None if all do.
      axis: along which the vocabulary lies.
    """
    max_, sum_, weighted, target = parts
    if valid is not None:
        logit, is_target = jnp.where(valid, logit, _lowest(logit.dtype)), is_target & valid
    new_max = jnp.maximum(max_, logit.max(axis=axis, keepdims=True))
    shift, centred = max_ - new_max, logit - new_max
    exp, kept = jnp.exp(centred), jnp.exp(shift)
    weighted = kept * (weighted + shift * sum_) + jnp.sum(exp * centred, axis=axis, keepdims=True)
    sum_ = kept * sum_ + exp.sum(axis=axis, keepdims=True)
    target = target + jnp.sum(jnp.where(is_target, logit, 0.0), axis=axis, keepdims=True)
    return new_max, sum_, weighted, target


def d_product(logit, slope, is_target: jax.Array, stats: tuple) -> jax.Array:
    """Returns the gradient of a tile's products: `(g_logp (onehot - p) - g_H p (log p + H)) slope`.

    Args:
      logit, slope: from `bend`.
      is_target: whether an entry is its row's target.
      stats: (logsumexp, H, g_logp, g_H), each of size 1 along the vocabulary.
    """
    logsumexp, entropy, g_logp, g_entropy = stats
    logp = logit - logsumexp
    # p's factors are summed up a row first, which leaves one product with p for each entry.
    pull = (g_logp + g_entropy * entropy) + g_entropy * logp
    return (jnp.where(is_target, g_logp, 0.0) - jnp.exp(logp) * pull) * slope


def _lowest(dtype) -> float:
    return float(jnp.finfo(dtype).min) / 2
