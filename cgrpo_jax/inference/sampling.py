"""Drawing tokens: keys that depend on what is sampled and not on when, and the draw itself.

A token is drawn by Gumbel noise, in two levels: a block of 256 tokens, then one of them. Noise over a vocabulary of 49k
costs a CPU as much as all else in a step; this is 448 numbers. Two programs whose logits differ by a rounding error, as
those of two batch sizes do, draw the same token unless the two best are as close as that. The inverse of a CDF, though
as cheap, has an edge for each token, and rounding moves all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.records import RowIndex

_BLOCK = 256  # tokens


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the arguments of `sample`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def index_array(indices: list[RowIndex]) -> np.ndarray:
    """Returns `[B, 6]` int32: the fields of each row's index in the order in which they enter its key."""
    fields = [(i.question, i.response, i.critique, i.refinement, int(i.stage), i.attempt) for i in indices]
    return np.asarray(fields, np.int32).reshape(-1, 6)


def row_keys(seed, iteration, index_B6) -> jax.Array:
    """Returns one PRNG key a row, folded from seed, iteration and the six fields of `RowIndex`.

    The key does not depend on how rows are batched or scheduled, a retry has another one, and so has the same
    question drawn twice (it is at two places in its batch).
    """

    def fold(seed, iteration, index_6):
        key = jax.random.fold_in(jax.random.key(seed), iteration)
        for field in index_6:
            key = jax.random.fold_in(key, field)
        return key

    # For each row, or XLA:TPU would compute what they give by a hundred operations on single numbers.
    seed_B, iteration_B = jax.lax.optimization_barrier([jnp.broadcast_to(x, len(index_B6)) for x in (seed, iteration)])
    return jax.vmap(fold)(seed_B, iteration_B, index_B6)


def token_keys(keys_B, position_B) -> jax.Array:
    """Returns the key of the token at a position of each row's text; the position may be the same for all."""
    return jax.vmap(jax.random.fold_in)(keys_B, jnp.broadcast_to(position_B, keys_B.shape))


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
        own_B1 = jnp.where(here_B1, own_B1, 0)
        found_B1 = jnp.take_along_axis(x_BV, own_B1, axis=-1, mode="promise_in_bounds")
        return self.sum(jnp.where(here_B1, found_B1, 0))[:, 0]


def _truncate(vocabulary: _Vocabulary, scaled_BV, top_p: float, top_k: int):
    """Sets logits outside the top k, and outside the smallest set with mass top_p, to minus infinity.

    The least logit that stays is found by bisection. It needs sums alone: no sort, and no exchange of logits.
    """
    max_B1 = vocabulary.max(scaled_BV)
    if top_k > 0:
        scaled_BV = jnp.where(scaled_BV >= _kth(vocabulary, scaled_BV, max_B1, top_k), scaled_BV, -jnp.inf)
    if top_p < 1.0:
        scaled_BV = jnp.where(scaled_BV >= _nucleus(vocabulary, scaled_BV, max_B1, top_p), scaled_BV, -jnp.inf)
    return scaled_BV


def _kth(vocabulary: _Vocabulary, scaled_BV, max_B1, top_k) -> jax.Array:
    """Returns the k-th largest logit of each row: the least number that fewer than k logits exceed."""
    return _least(lambda bound_B1: vocabulary.sum((scaled_BV > bound_B1).astype(jnp.int32)) < top_k, max_B1)


def _nucleus(vocabulary: _Vocabulary, scaled_BV, max_B1, top_p) -> jax.Array:
    """Returns the least logit that stays: those above it have less mass than top_p; so the first always does."""
    mass_BV = jnp.exp(scaled_BV - max_B1)
    wanted_B1 = top_p * vocabulary.sum(mass_BV)
    return _least(lambda b_B1: vocabulary.sum(jnp.where(scaled_BV > b_B1, mass_BV, 0)) < wanted_B1, max_B1)


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


def _draw(vocabulary: _Vocabulary, weight_BV, keys_B):
    """Returns for each row a token, drawn in proportion to its weight: a block first, then an entry of it.

    Blocks are of consecutive tokens of the whole vocabulary, so a draw does not depend on how that is cut.
    """
    num_blocks = -(-vocabulary.size // _BLOCK)
    wait_BN = _waits(jax.vmap(lambda key: jax.random.bits(key, (num_blocks + _BLOCK,)))(keys_B))
    blocks, first = _blocks(vocabulary, weight_BV)
    total_BN = blocks.sum(axis=-1)
    if vocabulary.cut:
        every_BN = jnp.zeros((len(weight_BV), num_blocks + total_BN.shape[-1]))  # the last may lie past the end
        every_BN = sharding.varying_like(every_BN, total_BN)
        every_BN = jax.lax.dynamic_update_slice_in_dim(every_BN, total_BN, first, axis=1, allow_negative_indices=False)
        total_BN = jax.lax.psum(every_BN, sharding.TENSOR)[:, :num_blocks]
    block_B = _winner(wait_BN[:, :num_blocks], total_BN)
    own_B = jnp.clip(block_B - first, 0, blocks.shape[1] - 1)
    entries = jnp.take_along_axis(blocks, own_B[:, None, None], axis=1, mode="promise_in_bounds")[:, 0]
    if vocabulary.cut:
        entries = jax.lax.psum(jnp.where((own_B == block_B - first)[:, None], entries, 0.0), sharding.TENSOR)
    return block_B * _BLOCK + _winner(wait_BN[:, num_blocks:], entries)


def _blocks(vocabulary: _Vocabulary, weight_BV):
    """Returns `[B, blocks, 256]` weights: those blocks of the whole vocabulary that this device has tokens of.

    And which of all blocks is the first of them.
    """
    if not vocabulary.cut:
        padded = jnp.pad(weight_BV, ((0, 0), (0, -vocabulary.part % _BLOCK)))
        return padded.reshape(len(weight_BV), -1, _BLOCK), 0
    size = -(-(vocabulary.part + _BLOCK - 1) // _BLOCK) * _BLOCK  # wherever in a block the part begins
    padded = sharding.varying_like(jnp.zeros((len(weight_BV), size)), weight_BV)
    first = jnp.int32(vocabulary.first())  # never negative: `//` and `%` would look whether it is
    at = jax.lax.rem(first, jnp.int32(_BLOCK))
    padded = jax.lax.dynamic_update_slice_in_dim(padded, weight_BV, at, axis=1, allow_negative_indices=False)
    return padded.reshape(len(weight_BV), -1, _BLOCK), jax.lax.div(first, jnp.int32(_BLOCK))


def _waits(bits) -> jax.Array:
    """Returns draws of an exponential distribution of mean 1, of 32 random bits each.

    A float of that many bits is precise where it is small, and so are short waits, which win.
    """
    uniform = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24))


def _winner(wait_BN, weight_BN):
    """Returns the entry whose wait divided by its weight is least: entry i with probability `w_i / sum(w)`.

    It is where `log w + g` is greatest with Gumbel noise `g = -log(wait)` (Maddison et al., 2014, section 2).
    """
    return jnp.argmin(jnp.where(weight_BN > 0, wait_BN / weight_BN, jnp.inf), axis=-1)


def _greedy(vocabulary: _Vocabulary, scaled_BV, max_B1):
    """Returns the most likely token of each row, of equal ones the first."""
    token = jnp.argmax(scaled_BV, axis=-1) + vocabulary.first()
    if vocabulary.cut:  # of equal ones the first, as argmax
        here = scaled_BV.max(axis=-1) == max_B1[:, 0]
        token = jax.lax.pmin(jnp.where(here, token, vocabulary.size), sharding.TENSOR)
    return token


def sample(
    logits_BV,
    keys_B,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    vocab_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      logits_BV: logits.
      keys_B: one PRNG key a row, from `token_keys`; temperature 0 needs none, and takes None.
      temperature: softmax temperature; 0 takes the most likely token.
      top_p: keep the smallest set of tokens with at least this mass; 1 keeps all.
      top_k: keep this many tokens; 0 keeps all.
      vocab_size: of the whole vocabulary, where `logits_BV` are of this device's part of it within `jax.shard_map`
        (sharding.py). A few numbers a row are exchanged then, no logits.

    Returns:
      (`[B]` int32 tokens, `[B]` float32 log-probabilities (nats) of them under the *untruncated*
      `softmax(logits / temperature)`, for temperature 0 under `softmax(logits)`)

    Example:
      >>> sample(jnp.log(jnp.array([[0.25, 0.75]])), jax.random.key(0)[None])
      (Array([1], dtype=int32), Array([-0.2876821], dtype=float32))
    """
    part = logits_BV.shape[-1]
    vocabulary = _Vocabulary(part, part if vocab_size is None else vocab_size)
    scaled = logits_BV.astype(jnp.float32) / (temperature or 1.0)
    max_B1 = vocabulary.max(scaled)
    if temperature == 0:
        token = _greedy(vocabulary, scaled, max_B1)
    else:
        kept = _truncate(vocabulary, scaled, top_p, top_k) if (top_p < 1.0 or top_k > 0) else scaled
        token = _draw(vocabulary, jnp.exp(kept - max_B1), keys_B)
    logsumexp = max_B1 + jnp.log(vocabulary.sum(jnp.exp(scaled - max_B1)))
    return token.astype(jnp.int32), vocabulary.of_token(scaled, token) - logsumexp[:, 0]


def sample_each(
    logits_BV, keys_B, sampling_B, *, samplings: Sequence[Sampling], vocab_size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row, each row in its own of a few ways; arguments and results as of `sample`.

    Args:
      logits_BV, keys_B, vocab_size: as for `sample`.
      sampling_B: int32, which of `samplings` draws a row.
      samplings: the ways.
    """

    def of_each(values, dtype=jnp.float32):
        return jnp.asarray(values, dtype)[sampling_B][:, None]

    part = logits_BV.shape[-1]
    vocabulary = _Vocabulary(part, part if vocab_size is None else vocab_size)
    scaled_BV = logits_BV.astype(jnp.float32) / of_each([one.temperature or 1.0 for one in samplings])
    max_B1, kept = vocabulary.max(scaled_BV), scaled_BV
    if any(one.top_k > 0 for one in samplings):
        top_k_B1 = of_each([one.top_k for one in samplings], jnp.int32)
        kth_B1 = _kth(vocabulary, kept, max_B1, top_k_B1)
        kept = jnp.where((top_k_B1 <= 0) | (kept >= kth_B1), kept, -jnp.inf)
    if any(one.top_p < 1.0 for one in samplings):
        top_p_B1 = of_each([one.top_p for one in samplings])
        kept = jnp.where((top_p_B1 >= 1) | (kept >= _nucleus(vocabulary, kept, max_B1, top_p_B1)), kept, -jnp.inf)
    token = _draw(vocabulary, jnp.exp(kept - max_B1), keys_B)
    if any(one.temperature == 0 for one in samplings):
        greedy_B1 = of_each([one.temperature == 0 for one in samplings], jnp.bool_)
        token = jnp.where(greedy_B1[:, 0], _greedy(vocabulary, scaled_BV, max_B1), token)
    logsumexp = max_B1 + jnp.log(vocabulary.sum(jnp.exp(scaled_BV - max_B1)))
    return token.astype(jnp.int32), vocabulary.of_token(scaled_BV, token) - logsumexp[:, 0]
