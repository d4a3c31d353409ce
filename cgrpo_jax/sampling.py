"""Drawing tokens: keys that depend on what is sampled and not on when, and the inverse-CDF draw itself."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import sharding
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


def uniforms(keys_B, position_B) -> jax.Array:
    """Returns one uniform in [0, 1) a row for the token at a position of its text, which may be the same for all."""
    position_B = jnp.broadcast_to(position_B, keys_B.shape)
    return jax.vmap(lambda key, position: jax.random.uniform(jax.random.fold_in(key, position)))(keys_B, position_B)


# --- the draw: these see the logits of one device's part of the vocabulary, or of all of it -------------------------


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """How a device's part relates to the whole; where nothing is cut, the part is the whole."""

    part: int
    size: int

    @property
    def cut(self) -> bool:
        return self.part < self.size

    def first(self):
        return sharding.part_of(self.part, self.size)

    def sum(self, x_BV):
        """`[B, 1]` sums over the whole vocabulary."""
        return sharding.sum_if_cut(x_BV.sum(axis=-1, keepdims=True), self.part, self.size)

    def max(self, x_BV):
        max_B1 = x_BV.max(axis=-1, keepdims=True)
        return jax.lax.pmax(max_B1, sharding.TENSOR) if self.cut else max_B1

    def of_token(self, x_BV, token_B):
        """`[B]` entries of one token a row, each from the device that has it."""
        own_B1 = (token_B - self.first())[:, None]
        here_B1 = (own_B1 >= 0) & (own_B1 < self.part)
        return self.sum(jnp.where(here_B1, jnp.take_along_axis(x_BV, jnp.where(here_B1, own_B1, 0), axis=-1), 0))[:, 0]


def _truncate(vocabulary: _Vocabulary, scaled_BV, top_p: float, top_k: int):
    """Sets logits outside the top k, and outside the smallest set with mass top_p, to minus infinity.

    The least logit that stays is found by bisection. It needs sums alone: no sort, and no exchange of logits.
    """
    max_B1 = vocabulary.max(scaled_BV)
    if top_k > 0:
        # The k-th largest is the least number that fewer than k logits exceed.
        kth_B1 = _least(lambda bound_B1: vocabulary.sum((scaled_BV > bound_B1).astype(jnp.int32)) < top_k, max_B1)
        scaled_BV = jnp.where(scaled_BV >= kth_B1, scaled_BV, -jnp.inf)
    if top_p < 1.0:
        # A token stays if those above it have less mass than top_p; so the first always does.
        mass_BV = jnp.exp(scaled_BV - max_B1)
        wanted_B1 = top_p * vocabulary.sum(mass_BV)
        least_B1 = _least(lambda b_B1: vocabulary.sum(jnp.where(scaled_BV > b_B1, mass_BV, 0)) < wanted_B1, max_B1)
        scaled_BV = jnp.where(scaled_BV >= least_B1, scaled_BV, -jnp.inf)
    return scaled_BV


def _least(holds: Callable, max_B1) -> jax.Array:
    """Returns for each row the least finite float32 for which `holds`, which is true from some number up to the max."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, which can't overflow
        true = holds(_rank(middle).view(jnp.float32))
        return jnp.where(true, low, middle), jnp.where(true, middle, high)

    high = _rank(max_B1.view(jnp.int32))
    low = _rank(jnp.full_like(max_B1, -jnp.inf).view(jnp.int32)) + jnp.zeros_like(high)
    _, least = jax.lax.fori_loop(0, 32, halve, (sharding.varying_like(low, high), high))
    return _rank(least).view(jnp.float32)


def _rank(bits):
    """Maps the bits of floats to integers of the same order, and back."""
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _inverse_cdf(vocabulary: _Vocabulary, weight_BV, uniform_B):
    """Returns for each row the token whose interval of the CDF of `weight` (not normalised) holds `uniform`.

    Two levels, blocks and then one block's entries: a cumulative sum over a 49k vocabulary, or Gumbel noise over it,
    costs thirty times as much on a CPU. Where the vocabulary is cut, its parts are a level above these.
    """
    B = len(weight_BV)
    blocks = jnp.pad(weight_BV, ((0, 0), (0, -vocabulary.part % _BLOCK))).reshape(B, -1, _BLOCK)
    edge = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    if vocabulary.cut:
        device = jax.lax.axis_index(sharding.TENSOR)
        own = jnp.arange(jax.lax.axis_size(sharding.TENSOR)) == device
        share_BP = jax.lax.psum(jnp.where(own, edge[:, -1:], 0.0), sharding.TENSOR)
        part_B, target_B = _step_into(share_BP, jnp.cumsum(share_BP, axis=-1), uniform_B)
    else:
        part_B, target_B = None, uniform_B * edge[:, -1]
    block = _first_past(edge, blocks.max(axis=-1), target_B)
    inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token_B = block * _BLOCK + _first_past(jnp.cumsum(inner, axis=-1), inner, target_B - _before(edge, block))
    if vocabulary.cut:
        token_B = jax.lax.psum(jnp.where(part_B == device, token_B + vocabulary.first(), 0), sharding.TENSOR)
    return token_B


def _step_into(weight_BN, edge_BN, uniform_B):
    """Returns the entry that holds `uniform`, and how far into its weight that lies."""
    target_B = uniform_B * edge_BN[:, -1]
    index_B = _first_past(edge_BN, weight_BN, target_B)
    return index_B, target_B - _before(edge_BN, index_B)


def _before(edge_BN, index_B):
    """Returns the lower edge of an entry."""
    lower = jnp.take_along_axis(edge_BN, jnp.maximum(index_B - 1, 0)[:, None], axis=1)[:, 0]
    return jnp.where(index_B > 0, lower, 0.0)


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
    logits_BV,
    uniform_B,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    vocab_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      logits_BV: logits.
      uniform_B: one uniform in [0, 1) a row; the draw is the inverse CDF there.
      temperature: softmax temperature; 0 takes the most likely token.
      top_p: keep the smallest set of tokens with at least this mass; 1 keeps all.
      top_k: keep this many tokens; 0 keeps all.
      vocab_size: of the whole vocabulary, where `logits_BV` are of this device's part of it within `jax.shard_map`
        (sharding.py). A few numbers a row are exchanged then, no logits.

    Returns:
      (`[B]` int32 tokens, `[B]` float32 log-probabilities (nats) of them under the *untruncated*
      `softmax(logits / temperature)`, for temperature 0 under `softmax(logits)`)

    Example:
      >>> sample(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0.3]))  # 0.3 lies past token 0's interval [0, 0.25)
      (Array([1], dtype=int32), Array([-0.2876821], dtype=float32))
    """
    part = logits_BV.shape[-1]
    vocabulary = _Vocabulary(part, part if vocab_size is None else vocab_size)
    scaled = logits_BV.astype(jnp.float32) / (temperature or 1.0)
    max_B1 = vocabulary.max(scaled)
    if temperature == 0:
        token = jnp.argmax(scaled, axis=-1) + vocabulary.first()
        if vocabulary.cut:  # of equal ones the first, as argmax
            here = scaled.max(axis=-1) == max_B1[:, 0]
            token = jax.lax.pmin(jnp.where(here, token, vocabulary.size), sharding.TENSOR)
    else:
        kept = _truncate(vocabulary, scaled, top_p, top_k) if (top_p < 1.0 or top_k > 0) else scaled
        token = _inverse_cdf(vocabulary, jnp.exp(kept - max_B1), uniform_B)
    logsumexp = max_B1 + jnp.log(vocabulary.sum(jnp.exp(scaled - max_B1)))
    return token.astype(jnp.int32), vocabulary.of_token(scaled, token) - logsumexp[:, 0]
