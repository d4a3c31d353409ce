"""Adapters of a small model, and its logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny import EVERYTHING

from cgrpo_jax.models import lora, transformer
from cgrpo_jax.models.lora import LoraSettings

CONFIG = dataclasses.replace(EVERYTHING, vocab_size=41, embed_dim=16, mlp_dim=24)
ALL = tuple(lora.TARGETS)
SETTINGS = LoraSettings(rank=3, alpha=6.0, targets=ALL)


def random_adapters(config=CONFIG, settings=SETTINGS, seed=0, size=0.3):
    """Neither A nor B small: what they change is as large as what the weights give."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        return jnp.asarray(rng.normal(0, size, shape.shape), jnp.float32)

    return jax.tree.map(draw, lora.adapter_shapes(config, settings))


@functools.partial(jax.jit, static_argnames="config")
def logits(weights, config, tokens_S):
    tokens_BS = jnp.asarray(tokens_S)[None]
    positions_BS, ones_BS = jnp.arange(tokens_BS.shape[1])[None], jnp.ones_like(tokens_BS)
    hidden_BSD = transformer.hidden_states(weights, config, tokens_BS, positions_BS, ones_BS)
    return transformer.logits(weights, config, hidden_BSD[0])


def tokens(config=CONFIG, length=12):
    return np.random.default_rng(7).integers(0, config.vocab_size, length)
