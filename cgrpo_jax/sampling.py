"""Drawing tokens: keys that depend on what is sampled and not on when, and the inverse-CDF draw itself."""

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.records import RowIndex

_BLOCK = 256  # vocabulary entries a block of the two-level CDF


def index_array(indices: list[RowIndex]) -> np.ndarray:
    """Returns `[B, 6]` int32: the fields of each row's index in the order in which they enter its key."""
    fields = [(i.question, i.response, i.critique, i.refinement, int(i.stage), i.attempt) for i in indices]
    return np.asarray(fields, np.int32).reshape(-1, 6)


def row_keys(seed, iteration, index_B6) -> jax.Array:
    """Returns one PRNG key a row, folded from seed, iteration and the six fields of `RowIndex`.

    The key does not depend on how rows are batched or scheduled, a retry has another one, and so has the same
    question drawn twice (it stands at two places in its batch).
    """
    base = jax.random.fold_in(jax.random.key(seed), iteration)

    def fold(index_6):
        key = base
        for field in index_6:
            key = jax.random.fold_in(key, field)
        return key

    return jax.vmap(fold)(index_B6)


def uniforms(keys_B, position) -> jax.Array:
    """Returns one uniform in [0, 1) a row for the token at `position` of its text."""
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, position)))(keys_B)


def _truncate(scaled_BV, top_p: float, top_k: int):
    """Sets logits outside the top k, and outside the smallest set with mass top_p, to minus infinity."""
    descending = -jnp.sort(-scaled_BV, axis=-1)
    if top_k > 0:
        kth = descending[:, min(top_k, descending.shape[-1]) - 1, None]
        descending = jnp.where(descending >= kth, descending, -jnp.inf)
        scaled_BV = jnp.where(scaled_BV >= kth, scaled_BV, -jnp.inf)
    if top_p < 1.0:
        prob = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(prob, axis=-1) - prob  # the first token is always kept
        least = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        scaled_BV = jnp.where(scaled_BV >= least, scaled_BV, -jnp.inf)
    return scaled_BV


def _inverse_cdf(weight_BV, uniform_B):
    """Returns for each row the token whose interval of the CDF of `weight` (not normalised) holds `uniform`.

    Two levels, blocks and then one block's entries: a cumulative sum over a 49k vocabulary, or Gumbel noise over it,
    costs thirty times as much on a CPU.
    """
    B, V = weight_BV.shape
    blocks = jnp.pad(weight_BV, ((0, 0), (0, -V % _BLOCK))).reshape(B, -1, _BLOCK)
    edge = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform_B * edge[:, -1]
    block = _first_past(edge, blocks.max(axis=-1), target)
    inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    before = jnp.where(block > 0, jnp.take_along_axis(edge, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    return block * _BLOCK + _first_past(jnp.cumsum(inner, axis=-1), inner, target - before)


def _first_past(edge_BN, weight_BN, target_B):
    """Returns the first entry of positive weight whose upper edge lies past the target, or the last of positive weight.

    XLA adds up in a tree, so an edge can be an ulp above the one before although its entry weighs nothing: weights
    are looked at, not only edges. Rounding may also put the target at or past the last edge.
    """
    index = jnp.arange(weight_BN.shape[-1])
    last_B = jnp.max(jnp.where(weight_BN > 0, index, 0), axis=-1)
    past = (edge_BN > target_B[:, None]) & (weight_BN > 0)
    return jnp.minimum(jnp.min(jnp.where(past, index, index.size), axis=-1), last_B)


def sample(
    logits_BV, uniform_B, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      logits_BV: logits.
      uniform_B: one uniform in [0, 1) a row; the draw is the inverse CDF there.
      temperature: softmax temperature; 0 takes the most likely token.
      top_p: keep the smallest set of tokens with at least this mass; 1 keeps all.
      top_k: keep this many tokens; 0 keeps all.

    Returns:
      (`[B]` int32 tokens, `[B]` float32 log-probabilities (nats) of them under the *untruncated*
      `softmax(logits / temperature)`, for temperature 0 under `softmax(logits)`)

    Example:
      >>> sample(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0.3]))  # 0.3 lies past token 0's interval [0, 0.25)
      (Array([1], dtype=int32), Array([-0.2876821], dtype=float32))
    """
    scaled = logits_BV.astype(jnp.float32) / (temperature or 1.0)
    if temperature == 0:
        token = jnp.argmax(scaled, axis=-1)
    else:
        kept = _truncate(scaled, top_p, top_k) if (top_p < 1.0 or top_k > 0) else scaled
        token = _inverse_cdf(jnp.exp(kept - kept.max(axis=-1, keepdims=True)), uniform_B)
    picked = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), picked - jax.nn.logsumexp(scaled, axis=-1)
