"""What the tests of models/test_params share with those that take longer."""

import functools

import jax
import numpy as np
import pytest
from tiny import FAMILIES

from cgrpo_jax.models.transformer import hidden_states, logits

QWEN3 = FAMILIES["qwen3"]
families = pytest.mark.parametrize("family", FAMILIES)


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, config, tokens, positions, segments):
    return logits(params, config, hidden_states(params, config, tokens, positions, segments))


def full(params, config, tokens_S):
    """Logits of one row that is one segment; padded to one size for all tests, since the future is not seen."""
    tokens = np.zeros((1, 20), np.int32)
    tokens[0, : len(tokens_S)] = tokens_S
    every = logits_of(params, config, tokens, np.arange(20)[None], np.ones((1, 20), np.int32))
    return np.asarray(every)[0, : len(tokens_S)]


def random_tokens(config, shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)
