"""Prompts that go on after what a slot holds, longer than the block of queries that attends at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EVERYTHING, random_params

from cgrpo_jax.inference import decoding, kv_cache

PARAMS = random_params(EVERYTHING)
TOKENS = np.random.default_rng(0).integers(0, EVERYTHING.vocab_size, (2, 21)).astype(np.int32)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("width", [12, 14])  # three whole blocks of 4 queries; the last one half full
def test_blocks_of_queries_change_nothing(monkeypatch, split, dtype, width):
    params = kv_cache.split_layers(PARAMS) if split else PARAMS
    empty = kv_cache.empty_cache(EVERYTHING, slots=2, length=24, tensor=1, dtype=dtype, split=split)
    length, slot, number = jnp.full(2, width), jnp.array([1, 0]), jnp.int32(2)

    def run():
        start = jnp.array([7, 3])
        held = decoding.prefill(
            params, EVERYTHING, empty, TOKENS[:, :7], jnp.full(2, 7), 0 * start, slot, number, continued=False
        )
        rest = np.stack([row[at : at + width] for row, at in zip(TOKENS, (7, 3), strict=True)])
        return decoding.prefill(params, EVERYTHING, held, rest, length, start, slot, number, continued=True)

    whole = run()
    monkeypatch.setattr(decoding, "_QUERIES", 4)
    for ours, theirs in zip(jax.tree.leaves(run()), jax.tree.leaves(whole), strict=True):
        # An int8 may be rounded the other way.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1 if ours.dtype == jnp.int8 else 1e-5)
