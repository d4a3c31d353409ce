"""The transformer against one written out plainly, and cached decoding against the full forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import EVERYTHING, FAMILIES, plain_logits, random_params

from cgrpo_jax import forward
from cgrpo_jax.errors import UserError
from cgrpo_jax.forward import _rope_frequencies, decode_step, hidden_states, logits, prefill, unembedding
from cgrpo_jax.model import ModelConfig, RopeScaling, Transformer, init_params, param_shapes

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


# The full forward pass.


@families
def test_equals_a_transformer_written_out_plainly(family):
    config = FAMILIES[family]
    params, tokens = random_params(config), random_tokens(config, 20)
    expected = plain_logits(params, config, tokens)
    assert np.std(expected) > 0.5  # logits that hardly differ would agree whatever is wrong
    np.testing.assert_allclose(full(params, config, tokens), expected, rtol=1e-4, atol=1e-4)


def test_llama3_scaling_keeps_blends_and_slows_by_hand():
    # Frequencies 1, 0.1, 0.01 (theta = 1000, three pairs). Over 2 pi * 40 positions they make 40, 4 and 0.4 turns.
    # Kept from 7 turns on: 1. Slowed by 8 up to 1 turn: 0.00125. Between, (4 - 1) / (7 - 1) = 1/2 of each:
    # 0.05 + 0.05 / 8 = 0.05625.
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=7.0, original_max_position=40)
    scaling = dataclasses.replace(scaling, original_max_position=2 * np.pi * 40)
    config = dataclasses.replace(QWEN3, head_dim=6, rope_theta=1000.0, rope_scaling=scaling)
    np.testing.assert_allclose(_rope_frequencies(config), [1, 0.05625, 0.00125], rtol=1e-5)


def test_linear_scaling_slows_every_frequency_of_layers_that_are_not_local():
    # Frequencies 1 and 0.01 (theta = 10000, two pairs), slowed by 8; local layers have theta = 100, never scaled.
    config = dataclasses.replace(FAMILIES["gemma3"], head_dim=4, rope_theta=1e4, local_rope_theta=100.0)
    np.testing.assert_allclose(_rope_frequencies(config), [1 / 8, 0.01 / 8], rtol=1e-5)
    np.testing.assert_allclose(_rope_frequencies(config, local=True), [1, 0.1], rtol=1e-5)


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
    monkeypatch.setattr("cgrpo_jax.forward._QUERY_BLOCK", 8)
    blocked = jax.jit(jax.value_and_grad(lambda params: total(params)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), blocked, whole)
    text = str(jax.make_jaxpr(lambda params: total(params))(params))
    assert "4,20]" in text and "20,20]" not in text


def test_the_program_does_not_grow_with_depth():
    def size(num_layers):
        config = dataclasses.replace(QWEN3, num_layers=num_layers)
        row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        traced = jax.make_jaxpr(lambda p, *x: logits_of(p, config, *x))(param_shapes(config), row, row, row)
        return str(traced).count(" = ")

    assert size(2) == size(12)


def test_computes_in_the_dtype_of_the_weights():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(QWEN3))
    tokens, positions, segments = random_tokens(QWEN3, (1, 8)), np.arange(8)[None], np.ones((1, 8), np.int32)
    hidden = jax.jit(hidden_states, static_argnums=1)
    rounded = hidden(params, QWEN3, tokens, positions, segments)
    assert rounded.dtype == jnp.bfloat16
    exact = hidden(random_params(QWEN3), QWEN3, tokens, positions, segments)
    assert np.abs(np.asarray(rounded, np.float32) - np.asarray(exact)).mean() < 0.05
    first = functools.partial(prefill, config=QWEN3, num_samples=1, max_length=2)
    last, cache = jax.eval_shape(lambda p: first(p, tokens_QP=tokens, length_Q=jnp.array([8])), params)
    assert last.dtype == cache.k.dtype == cache.prompt_k.dtype == jnp.bfloat16


# Cached decoding.


def decoded(params, config, prompts, length_Q, continuation_BT):
    """Logits `[B, T + 1, V]` of feeding a given continuation to the cache: at the prompt's end, then after each token.

    Row b continues prompt b // N.
    """
    N = len(continuation_BT) // len(prompts)
    first, each = _decoding(config, N)
    hidden_QD, cache = first(params, prompts, length_Q)
    hidden = [np.repeat(hidden_QD, N, axis=0)]
    for token_B in continuation_BT.T:
        hidden_BD, cache = each(params, token_B, cache)
        hidden.append(hidden_BD)
    return np.asarray(logits(params, config, np.stack(hidden, axis=1)))


@functools.cache
def _decoding(config, num_samples):
    """`prefill` and `decode_step`, compiled once for all tests."""
    return (
        jax.jit(lambda p, x, n: prefill(p, config, x, n, num_samples=num_samples, max_length=8)),
        jax.jit(lambda p, token_B, cache: decode_step(p, config, token_B, cache)),
    )


@families
def test_cached_decoding_equals_the_full_forward_pass(family):
    """Prompts of 1, 6 and 9 tokens in one batch, padded with garbage, two continuations each."""
    config = FAMILIES[family]
    params = random_params(config)
    lengths = np.array([1, 6, 9], np.int32)
    prompts, continuation = random_tokens(config, (3, 9)), random_tokens(config, (6, 7), seed=1)
    actual = decoded(params, config, prompts, lengths, continuation)
    for b in range(6):
        n = lengths[b // 2]
        expected = full(params, config, np.concatenate([prompts[b // 2, :n], continuation[b]]))[n - 1 :]
        np.testing.assert_allclose(actual[b], expected, rtol=1e-4, atol=1e-4)


def test_padding_is_never_attended_to():
    """Also where the padding is a token that prompts use: what is seen follows from lengths, not from ids."""
    params, lengths = random_params(QWEN3), np.array([3, 9, 5], np.int32)
    prompts, continuation = random_tokens(QWEN3, (3, 9)), random_tokens(QWEN3, (6, 4), seed=1)
    prompts[:, 2] = 0
    padding = np.arange(9) >= lengths[:, None]
    zeros, noise = np.where(padding, 0, prompts), np.where(padding, random_tokens(QWEN3, (3, 9), seed=2), prompts)
    a = decoded(params, QWEN3, zeros, lengths, continuation)
    np.testing.assert_array_equal(a, decoded(params, QWEN3, noise, lengths, continuation))
    # The real 0 in each prompt is seen.
    prompts[:, 2] = 1
    changed = decoded(params, QWEN3, np.where(padding, 0, prompts), lengths, continuation)
    assert np.abs(a - changed).max(axis=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_prompts_run_some_at_a_time_fill_the_same_cache(at_once, monkeypatch):
    params, lengths = random_params(EVERYTHING), np.array([3, 9, 5, 7, 1, 8, 2, 9], np.int32)
    prompts = random_tokens(EVERYTHING, (8, 9))
    run = functools.partial(prefill, params, EVERYTHING, prompts, lengths, num_samples=2, max_length=3)
    expected = run()
    monkeypatch.setattr(forward, "_PREFILL_TOKENS", at_once * 9 + 8)
    assert forward.prompts_at_once(8, 9) == at_once
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), run(), expected)


def test_prompts_at_once_divide_them():
    assert [forward.prompts_at_once(number, 2048) for number in (1, 7, 9, 16, 20)] == [1, 7, 3, 8, 5]
    assert forward.prompts_at_once(64, 100_000) == 1  # never less


def test_samples_share_their_prompts_cache():
    Q, N, P, T = 2, 5, 6, 4
    shape = jax.eval_shape(
        lambda p, x, n: prefill(p, QWEN3, x, n, num_samples=N, max_length=T),
        param_shapes(QWEN3),
        jax.ShapeDtypeStruct((Q, P), jnp.int32),
        jax.ShapeDtypeStruct((Q,), jnp.int32),
    )
    hidden, cache = shape
    L, K, head_dim = QWEN3.num_layers, QWEN3.num_kv_heads, QWEN3.head_dim
    assert hidden.shape == (Q, QWEN3.embed_dim)
    assert cache.prompt_k.shape == cache.prompt_v.shape == (L, Q, K, P, head_dim)
    assert cache.k.shape == cache.v.shape == (L, Q * N, K, T, head_dim)


def test_samples_of_a_prompt_do_not_see_each_other():
    params, lengths = random_params(QWEN3), np.array([3, 9, 5], np.int32)
    prompts, continuation = random_tokens(QWEN3, (3, 9)), random_tokens(QWEN3, (6, 4), seed=1)
    before = decoded(params, QWEN3, prompts, lengths, continuation)
    continuation[1] = (continuation[1] + 3) % QWEN3.vocab_size
    after = decoded(params, QWEN3, prompts, lengths, continuation)
    others = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(before[others], after[others])
    assert np.abs(before[1, 1:] - after[1, 1:]).max() > 1e-2


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
