"""Holds sampled texts to a reference, one text at a time, and keeps rounding apart from mistakes.

Logits of another batch size or order of sums differ in their last bits. So two right programs may draw another token
where the two best with their noise are almost alike, and all that follows differs. Such a near tie is printed; at most
one text in a hundred may have one, and any other difference fails.
"""

import functools
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.inference import sampling
from cgrpo_jax.records import RowIndex

EDGE = 1e-4  # of a logit
SHARE = 0.01
BLOCK = 256  # tokens


class Reference:
    """What a text is held to.

    Args:
      logits: tokens of one text to its `[tokens, V]` logits, in float32 or more.
      seed, iteration, temperature: as the texts were sampled.
    """

    def __init__(self, logits: Callable, *, seed: int, iteration: int, temperature: float = 1.0):
        self.logits, self.seed, self.iteration, self.temperature = logits, seed, iteration, temperature

    def distances(self, prompt, index: RowIndex, tokens) -> np.ndarray:
        """Returns how far each token was from being drawn after those before it; 0 where it is the draw itself."""
        tokens = np.asarray(tokens)
        logits = np.asarray(self.logits(np.concatenate([prompt, tokens])), np.float64)[len(prompt) - 1 : -1]
        at = np.arange(len(tokens))
        if self.temperature == 0:
            return logits.max(-1) - logits[at, tokens]
        weight = np.exp((logits - logits.max(-1, keepdims=True)) / self.temperature)
        blocks = np.pad(weight, ((0, 0), (0, -weight.shape[-1] % BLOCK))).reshape(len(tokens), -1, BLOCK)
        wait = self._waits(index, len(tokens), blocks.shape[1] + BLOCK)
        with np.errstate(divide="ignore"):
            block = np.log(wait[:, :-BLOCK]) - np.log(blocks.sum(-1))
            entry = np.log(wait[:, -BLOCK:]) - np.log(blocks[at, tokens // BLOCK])
        behind = [each[at, which] - each.min(-1) for each, which in ((block, tokens // BLOCK), (entry, tokens % BLOCK))]
        return np.maximum(*behind)

    def _waits(self, index: RowIndex, tokens: int, number: int) -> np.ndarray:
        """Returns `[tokens, number]` exponential draws in float64, from the bits that `sampling.sample` makes them of.

        They are made for a multiple of 64 tokens, so that little is compiled.
        """
        keys = sampling.index_array([index] * (-(-tokens // 64) * 64))
        bits = np.asarray(_bits(self.seed, self.iteration, keys, number=number)[:tokens], np.float64)
        return -np.log1p(-(bits + 0.5) / 2**32)

    def hold(self, prompts: Sequence, indices: Sequence, groups: Sequence) -> None:
        """Checks that every token is the draw of its key after the tokens before it: what decoding alone would draw."""
        ties, texts = [], list(_flat(prompts, indices, groups))
        for prompt, index, row in texts:
            distance = self.distances(prompt, index, row.token_ids)
            if distance.any():
                first = int(np.flatnonzero(distance)[0])
                ties.append((index, first, float(distance[first]), float(distance.max())))
        _judge(ties, len(texts))

    def hold_alike(self, prompts: Sequence, indices: Sequence, groups: Sequence, others: Sequence) -> None:
        """Checks that two samplings are the same, their log-probabilities too, up to the first near tie of a text."""
        ties, texts = [], list(_flat(prompts, indices, groups))
        for (prompt, index, row), other in zip(texts, (row for group in others for row in group), strict=True):
            a, b = row.token_ids, other.token_ids
            shorter = min(len(a), len(b))
            differs = np.flatnonzero(a[:shorter] != b[:shorter])
            first = int(differs[0]) if len(differs) else shorter
            np.testing.assert_allclose(row.logp[:first], other.logp[:first], atol=1e-4, err_msg=str(index))
            if len(differs):
                apart = max(self.distances(prompt, index, x[: first + 1])[-1] for x in (a, b))
                ties.append((index, first, float(apart), float(apart)))
            else:
                assert len(a) == len(b) and row.truncated == other.truncated, (index, a, b)
        _judge(ties, len(texts))


@functools.partial(jax.jit, static_argnames="number")
def _bits(seed, iteration, index_T6, *, number: int):
    keys_T = sampling.token_keys(sampling.row_keys(seed, iteration, index_T6), jnp.arange(len(index_T6)))
    return jax.vmap(lambda key: jax.random.bits(key, (number,)))(keys_T)


def _flat(prompts, indices, groups):
    for prompt, own, group in zip(prompts, indices, groups, strict=True):
        for index, row in zip(own, group, strict=True):
            yield prompt, index, row


def _judge(ties, number: int) -> None:
    for index, position, distance, worst in ties:
        sys.stdout.write(f"token {position} of {index} differs, by {distance:.1e} of a logit (at worst {worst:.1e})\n")
    assert all(worst < EDGE for *_, worst in ties), ties
    assert len(ties) <= SHARE * number, ties
