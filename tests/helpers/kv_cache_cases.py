"""What the tests of inference/test_kv_cache share with those that take longer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EVERYTHING, FAMILIES, random_params

from cgrpo_jax.inference import decoding, kv_cache
from cgrpo_jax.models import transformer

QWEN3 = FAMILIES["qwen3"]
LENGTH = 20
forms = pytest.mark.parametrize("split", [False, True], ids=["stacked", "split"])


def random_tokens(config, shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


class Slots:
    """Six slots of one model, driven program by program."""

    def __init__(self, config=EVERYTHING, *, split=True, dtype="float32", fill=0, length=LENGTH):
        self.config, params = config, random_params(config)
        self.params = kv_cache.split_layers(params) if split else params
        cache = kv_cache.empty_cache(config, slots=6, length=length, tensor=1, dtype=dtype, split=split)
        self.cache = jax.tree.map(lambda x: x + jnp.asarray(fill, x.dtype), cache)

    def prefill(self, slot, prompts, start=None, *, number=None, width=9, continued=False, seed=5):
        """Writes prompts, padded with garbage to a width."""
        tokens = random_tokens(self.config, (len(slot), width), seed)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        length = np.array([len(prompt) for prompt in prompts], np.int32)
        start = np.zeros(len(slot), np.int32) if start is None else np.array(start, np.int32)
        number = np.int32(len(slot) if number is None else number)
        self.cache = _prefill(
            self.params, self.config, self.cache, tokens, length, start, np.array(slot, np.int32), number,
            continued=continued,
        )  # fmt: skip

    def share(self, source, target, number=None, width=9):
        number = np.int32(len(source) if number is None else number)
        source, target = np.array(source, np.int32), np.array(target, np.int32)
        self.cache = _share(self.cache, source, target, number, width=width)

    def step(self, token, length, live=(True,) * 6, **keywords):
        """Feeds a token to each slot; returns the logits `[6, V]` that follow."""
        token, length = np.array(token, np.int32), np.array(length, np.int32)
        logits, self.cache = _step(self.params, self.config, self.cache, token, length, np.array(live), **keywords)
        return np.asarray(logits)

    def feed(self, texts, start):
        """Feeds each slot its text from a position on, token by token; returns the logits `[6, T, V]`."""
        start, out = np.array(start), []
        for t in range(min(len(text) - n for text, n in zip(texts, start, strict=True))):
            out.append(self.step([text[n + t] for text, n in zip(texts, start, strict=True)], start + t))
        return np.stack(out, axis=1)

    def of(self, slot):
        """What a slot holds, as `[head_dim, times]` after layers and heads."""

        def take(x, axes):
            x = np.moveaxis(np.asarray(x), axes.index("s"), 0)[slot]
            axes = axes.replace("s", "")
            return np.moveaxis(x, (axes.index("d"), axes.index("t")), (-2, -1))

        return jax.tree.map(take, self.cache, kv_cache.cache_axes(self.cache))


_prefill = jax.jit(decoding.prefill, static_argnames=("config", "continued"))
_share = jax.jit(kv_cache.share, static_argnames="width")


@functools.partial(jax.jit, static_argnames=("config", "blocks"))
def _step(params, config, cache, token, length, live, *, blocks=None):
    hidden, cache = decoding.step(params, config, cache, token, length, live, blocks=blocks)
    return transformer.logits(params, config, hidden), cache
