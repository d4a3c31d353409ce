"""What takes longer than a unit test may, of tests/models/test_params.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from params_cases import QWEN3, families, full, random_tokens
from tiny import EVERYTHING, FAMILIES, plain_logits, random_params

from cgrpo_jax.models.params import init_params, param_shapes
from cgrpo_jax.models.transformer import hidden_states


@families
def test_equals_a_transformer_written_out_plainly(family):
    config = FAMILIES[family]
    params, tokens = random_params(config), random_tokens(config, 20)
    expected = plain_logits(params, config, tokens)
    assert np.std(expected) > 0.5  # logits that hardly differ would agree whatever is wrong
    np.testing.assert_allclose(full(params, config, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_long_rows_are_taken_in_blocks_and_nothing_changes(family, monkeypatch):
    """Blocks of 8 queries in a row of 20 tokens and two segments: the same hidden states and gradients."""
    config = FAMILIES[family]
    params, tokens = random_params(config), random_tokens(config, (1, 20))
    segments, positions = np.array([[1] * 13 + [2] * 7]), np.array([[*range(13), *range(7)]])
    weights = np.random.default_rng(3).normal(0, 1, (1, 20, config.embed_dim)).astype(np.float32)

    def total(params):
        return jnp.vdot(weights, hidden_states(params, config, tokens, positions, segments))

    whole = jax.jit(jax.value_and_grad(total))(params)
    monkeypatch.setattr("cgrpo_jax.models.attention._QUERY_BLOCK", 8)
    blocked = jax.jit(jax.value_and_grad(lambda params: total(params)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), blocked, whole)
    text = str(jax.make_jaxpr(lambda params: total(params))(params))
    assert "4,20]" in text and "20,20]" not in text


def test_computes_in_the_dtype_of_the_weights():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(QWEN3))
    tokens, positions, segments = random_tokens(QWEN3, (1, 8)), np.arange(8)[None], np.ones((1, 8), np.int32)
    hidden = jax.jit(hidden_states, static_argnums=1)
    rounded = hidden(params, QWEN3, tokens, positions, segments)
    assert rounded.dtype == jnp.bfloat16
    exact = hidden(random_params(QWEN3), QWEN3, tokens, positions, segments)
    assert np.abs(np.asarray(rounded, np.float32) - np.asarray(exact)).mean() < 0.05


def test_init_depends_on_its_seed_and_is_sized_by_fan_in():
    config = dataclasses.replace(EVERYTHING, embed_dim=64, mlp_dim=256)
    a, b, c = (init_params(config, seed=seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a["layers"]["q"] != c["layers"]["q"]).any()
    assert (a["layers"]["q"][0] != a["layers"]["q"][1]).any()
    # 1 / sqrt(fan-in), times 1 / sqrt(2 L) = 1/2 where a matrix writes to the residual stream.
    deviation = {name: float(np.std(x)) for name, x in a["layers"].items()}
    for name, expected in {"q": 1 / 8, "gate": 1 / 8, "o": 32**-0.5 / 2, "down": 1 / 32}.items():
        assert abs(deviation[name] / expected - 1) < 0.05, name
    assert abs(float(np.std(a["embed"])) / 0.02 - 1) < 0.05
    assert (a["final_norm"] == 1).all() and (a["layers"]["q_norm"] == 1).all() and (a["layers"]["q_bias"] == 0).all()
    # `param_shapes` describes them without making them.
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), param_shapes(config))
    assert shapes == jax.tree.map(lambda x: (x.shape, jnp.dtype("float32")), a)
