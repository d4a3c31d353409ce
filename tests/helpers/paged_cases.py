"""What the tests of the paged cache share: a data group's pages, driven call by call."""

import functools

import jax
import numpy as np
from tiny import EVERYTHING, random_params

from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged import decoding as paged_decoding
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.decoding import Chunks
from cgrpo_jax.models import transformer


class Paged:
    """Slots whose texts have the pages that a test gives them."""

    def __init__(self, config=EVERYTHING, *, split=True, size=8, number=24, tokens=16, slots=4, fill=0.0):
        self.config, params = config, random_params(config)
        self.params = kv_cache.split_layers(params) if split else params
        self.pages = Pages(number, size, tokens=tokens, prompts=3, kernel=False)
        pool = paged_cache.empty_pool(config, self.pages, groups=1, tensor=1, dtype="float32", split=split)
        self.pool = jax.tree.map(lambda x: x + fill, pool)
        self.slots, self.each = slots, 6

    def table(self, pages):
        return np.resize(np.append(pages, np.full(self.each, 0)), self.each).astype(np.int32)

    def chunks(self, parts):
        """Parts of prompts as `(tokens, start, pages)`."""
        N, Q = self.pages.tokens, self.pages.prompts
        made = Chunks(*(np.zeros(N, np.int32) for _ in range(3)), np.zeros(Q, np.int32), np.ones(Q, np.int32),
                      np.zeros((Q, self.each), np.int32))  # fmt: skip
        at = 0
        for q, (tokens, start, pages) in enumerate(parts):
            here, position = slice(at, at + len(tokens)), start + np.arange(len(tokens))
            made.token_N[here], made.position_N[here] = tokens, position
            made.place_N[here] = np.asarray(pages)[position // self.pages.size] * self.pages.size
            made.place_N[here] += position % self.pages.size
            made.queries_Q[q], made.length_Q[q] = len(tokens), start + len(tokens)
            made.table_QP[q] = self.table(pages)
            at += len(tokens)
        return made

    def step(self, token=(), length=(), pages=(), parts=None):
        """Feeds a token to each of the first slots, and writes parts; returns the logits of these slots."""
        S = self.slots
        row = lambda x: np.array([*x, *[0] * (S - len(x))], np.int32)  # noqa: E731
        live = np.arange(S) < len(token)
        table = np.stack([self.table(pages[s]) if s < len(token) else self.table([0]) for s in range(S)])
        chunks = None if parts is None else self.chunks(parts)
        logits, self.pool = _step(
            self.params, self.config, self.pool, row(token), row(length), live, table, chunks, pages=self.pages
        )
        return np.asarray(logits)[: len(token)]


@functools.partial(jax.jit, static_argnames=("config", "pages"))
def _step(params, config, pool, token, length, live, table, chunks, *, pages):
    hidden, pool = paged_decoding.step(
        params, config, pool, token, length, live, table, chunks, pages=pages, number=live.sum()
    )
    return transformer.logits(params, config, hidden), pool
