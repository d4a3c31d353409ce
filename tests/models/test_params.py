"""The transformer against one written out plainly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from params_cases import QWEN3, families, full, logits_of, random_tokens
from tiny import FAMILIES, random_params

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.params import ModelConfig, RopeScaling, Transformer, param_shapes
from cgrpo_jax.models.transformer import rope_frequencies, unembedding

# The full forward pass.


def test_llama3_scaling_keeps_blends_and_slows_by_hand():
    # Frequencies 1, 0.1, 0.01 (theta = 1000, three pairs). Over 2 pi * 40 positions they make 40, 4 and 0.4 turns.
    # Kept from 7 turns on: 1. Slowed by 8 up to 1 turn: 0.00125. Between, (4 - 1) / (7 - 1) = 1/2 of each:
    # 0.05 + 0.05 / 8 = 0.05625.
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=7.0, original_max_position=40)
    scaling = dataclasses.replace(scaling, original_max_position=2 * np.pi * 40)
    config = dataclasses.replace(QWEN3, head_dim=6, rope_theta=1000.0, rope_scaling=scaling)
    np.testing.assert_allclose(rope_frequencies(config), [1, 0.05625, 0.00125], rtol=1e-5)


def test_linear_scaling_slows_every_frequency_of_layers_that_are_not_local():
    # Frequencies 1 and 0.01 (theta = 10000, two pairs), slowed by 8; local layers have theta = 100, never scaled.
    config = dataclasses.replace(FAMILIES["gemma3"], head_dim=4, rope_theta=1e4, local_rope_theta=100.0)
    np.testing.assert_allclose(rope_frequencies(config), [1 / 8, 0.01 / 8], rtol=1e-5)
    np.testing.assert_allclose(rope_frequencies(config, local=True), [1, 0.1], rtol=1e-5)


def test_a_local_layer_sees_the_last_tokens_of_its_own_segment():
    """Two layers of a window of 4: the output at a position depends on it and the 2 * (4 - 1) before, no further."""
    config = FAMILIES["mistral"]
    params, tokens = random_params(config), random_tokens(config, 20)
    before = full(params, config, tokens)
    for changed in (12, 13):
        other = tokens.copy()
        other[changed] = (other[changed] + 5) % config.vocab_size
        moved = np.abs(full(params, config, other) - before).max(axis=1)
        reach = np.arange(20) - changed
        assert (moved[(reach >= 0) & (reach <= 6)] > 1e-3).all()
        assert (moved[(reach < 0) | (reach > 6)] == 0).all()


def test_only_distances_between_positions_matter():
    params, tokens = random_params(QWEN3), random_tokens(QWEN3, (1, 20))
    positions, segments = np.arange(20)[None], np.ones((1, 20), np.int32)
    here = logits_of(params, QWEN3, tokens, positions, segments)
    np.testing.assert_allclose(logits_of(params, QWEN3, tokens, positions + 20, segments), here, atol=1e-3)
    stretched = logits_of(params, QWEN3, tokens, 2 * positions, segments)
    assert np.abs(np.asarray(stretched) - here).max() > 0.1


def test_the_future_is_not_seen():
    params, tokens = random_params(QWEN3), random_tokens(QWEN3, 20)
    changed = tokens.copy()
    changed[7:] = (changed[7:] + 5) % QWEN3.vocab_size
    before, after = full(params, QWEN3, tokens), full(params, QWEN3, changed)
    np.testing.assert_array_equal(before[:7], after[:7])
    assert np.abs(before[7:] - after[7:]).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_segment_sees_itself_alone(family):
    """Segments of 5, 10 and 1 tokens and 4 of padding equal three rows of their own, whatever surrounds them."""
    config = FAMILIES[family]
    params, tokens = random_params(config), random_tokens(config, (1, 20))
    segments = np.array([[1] * 5 + [2] * 10 + [3] + [0] * 4])
    positions = np.array([[*range(5), *range(10), 0, *range(4)]])
    packed = np.asarray(logits_of(params, config, tokens, positions, segments))
    for part in (slice(0, 5), slice(5, 15), slice(15, 16)):
        np.testing.assert_allclose(packed[0, part], full(params, config, tokens[0, part]), rtol=1e-4, atol=1e-5)
    noise = random_tokens(config, (1, 20), seed=1)
    noise[0, 5:15] = tokens[0, 5:15]
    changed = np.asarray(logits_of(params, config, noise, positions, segments))
    np.testing.assert_array_equal(changed[0, 5:15], packed[0, 5:15])


def test_the_program_does_not_grow_with_depth():
    def size(num_layers):
        config = dataclasses.replace(QWEN3, num_layers=num_layers)
        row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        traced = jax.make_jaxpr(lambda p, *x: logits_of(p, config, *x))(param_shapes(config), row, row, row)
        return str(traced).count(" = ")

    assert size(2) == size(12)


# Parameters.


@families
def test_every_parameter_names_its_axes(family):
    def state():
        return nnx.state(Transformer(FAMILIES[family], rngs=nnx.Rngs(params=0)), nnx.Param)

    variables = jax.tree.leaves(nnx.eval_shape(state), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(variables) >= 11
    for variable in variables:
        axes = variable.get_metadata("logical_axes")
        assert len(axes) == len(variable.get_value().shape)


def test_tied_embeddings_are_stored_once():
    tied, untied = (param_shapes(FAMILIES[name]) for name in ("smollm2", "llama"))
    assert "unembed" not in tied and unembedding(tied, FAMILIES["smollm2"]) is tied["embed"]
    assert unembedding(untied, FAMILIES["llama"]) is untied["unembed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 4"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"local_layers": (True,), "window": 4}, "local_layers names 1 of 2 layers"),
        ({"local_layers": (True, True)}, "with a window of 0 tokens; name each layer"),
        ({"activation": "relu"}, "activation 'relu' is unknown; use one of silu, gelu_tanh"),
    ],
)
def test_an_impossible_shape_is_one_line(change, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**dataclasses.asdict(FAMILIES["smollm2"]) | change)
