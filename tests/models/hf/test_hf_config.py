"""config.json and ModelConfig: every family both ways, real releases' spellings, and what none expresses."""

import dataclasses
import math

import pytest
from hf_folders import (
    GEMMA2,
    GEMMA3,
    GEMMA3_ROPE,
    GEMMA3_TEXT,
    LINEAR_SCALING,
    LLAMA,
    LLAMA3_SCALING,
    MISTRAL,
    MIXED,
    QWEN2,
    QWEN3,
    VARIANTS,
    read,
)

from cgrpo_jax.errors import UserError
from cgrpo_jax.models import params
from cgrpo_jax.models.hf import config as hf_config


@pytest.mark.parametrize("key", hf_config.LARGEST)
@pytest.mark.parametrize("times", [1, 10**9, 10**300])
def test_a_size_that_no_model_comes_near_is_refused_before_anything_is_made_of_it(tmp_path, key, times):
    value = (hf_config.LARGEST[key] + 1) * times
    with pytest.raises(
        UserError, match=f"config.json: {key} is .*; no model has more than|it must be a positive number"
    ) as caught:
        read(tmp_path, LLAMA, **{key: value})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["model_type", "architectures", "quantization_config", "layer_types", "hidden_act"])
@pytest.mark.parametrize("value", ["x" * 10**5, ["x" * 10**5], [["x"] * 10**4]])
def test_a_message_quotes_no_more_than_the_beginning(tmp_path, key, value):
    with pytest.raises(UserError, match=key) as caught:
        read(tmp_path, LLAMA, **{key: value})
    assert len(str(caught.value)) < 500


def test_fields(tmp_path):
    expected = params.ModelConfig(
        vocab_size=11,
        num_layers=2,
        embed_dim=12,
        num_heads=6,
        num_kv_heads=3,
        head_dim=4,
        mlp_dim=10,
        rope_theta=500.0,
        norm_eps=1e-5,
        tie_embeddings=False,
        max_context=64,
    )
    replace = dataclasses.replace
    assert read(tmp_path, LLAMA) == read(tmp_path, MISTRAL) == expected
    assert read(tmp_path, LLAMA, num_key_value_heads=...) == replace(expected, num_kv_heads=6)
    assert read(tmp_path, LLAMA, head_dim=None) == replace(expected, head_dim=2)
    assert read(tmp_path, LLAMA, tie_word_embeddings=True) == replace(expected, tie_embeddings=True)
    assert read(tmp_path, LLAMA, rms_norm_eps=...).norm_eps == 1e-6
    assert read(tmp_path, QWEN2, sliding_window=8) == replace(expected, attention_bias=True)
    assert read(tmp_path, QWEN3) == replace(expected, qk_norm=True, tie_embeddings=True)
    assert read(tmp_path, QWEN3, head_dim=...).head_dim == 128  # the family's default
    gemma = replace(
        expected,
        query_scale=6**-0.5,
        local_layers=(True, False),
        window=8,
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        scale_embeddings=True,
        attention_softcap=50.0,
        logit_softcap=30.0,
        tie_embeddings=True,
    )
    assert read(tmp_path, GEMMA2) == gemma
    assert read(tmp_path, GEMMA2, query_pre_attn_scalar=4) == replace(gemma, query_scale=None)  # the head's size
    gemma3 = replace(
        gemma,
        num_layers=7,
        local_rope_theta=10000.0,
        qk_norm=True,
        local_layers=(True,) * 5 + (False, True),
        attention_softcap=0.0,
        logit_softcap=0.0,
    )
    assert read(tmp_path, GEMMA3_TEXT) == read(tmp_path, GEMMA3) == gemma3


def test_what_gemma_3_4b_leaves_out(tmp_path):
    """Its whole text_config; the rest is transformers' default."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = read(tmp_path, {"model_type": "gemma3", "text_config": text})
    assert config == params.ModelConfig(
        vocab_size=262208,
        num_layers=34,
        embed_dim=2560,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        mlp_dim=10240,
        rope_theta=1e6,
        rope_scaling=params.RopeScaling(factor=8.0),
        local_rope_theta=1e4,
        qk_norm=True,
        local_layers=tuple((layer + 1) % 6 != 0 for layer in range(34)),
        window=1024,
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        scale_embeddings=True,
        tie_embeddings=True,
        max_context=131072,
    )


def test_windows(tmp_path):
    def local(settings, **changes):
        config = read(tmp_path, settings, **changes)
        return config.local_layers, config.window

    assert local(MISTRAL) == local(LLAMA, sliding_window=8) == ((), 0)
    assert local(MISTRAL, sliding_window=8) == ((True, True), 8)
    assert local(MISTRAL, sliding_window=...) == ((True, True), 4096)  # the family's default
    upper = {"use_sliding_window": True, "sliding_window": 8}
    assert local(QWEN2, **upper, max_window_layers=1) == ((False, True), 8)
    assert local(QWEN2, **upper) == ((), 0)  # 28 layers without, by default
    assert local(QWEN2, sliding_window=8, max_window_layers=1) == ((), 0)
    assert local(QWEN3, **upper, max_window_layers=0, layer_types=MIXED) == ((False, True), 8)  # layer_types win
    assert local(GEMMA3_TEXT, sliding_window_pattern=2)[0] == (True, False, True, False, True, False, True)


def test_rope_in_old_and_new_spelling(tmp_path):
    scaling = params.RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
    old = read(tmp_path, LLAMA, rope_scaling=LLAMA3_SCALING)
    assert (old.rope_theta, old.rope_scaling) == (500.0, scaling)
    assert read(tmp_path, LLAMA, rope_theta=..., rope_parameters=LLAMA3_SCALING | {"rope_theta": 500.0}) == old
    new = read(tmp_path, LLAMA, rope_theta=..., rope_parameters={"rope_theta": 700.0, "rope_type": "default"})
    assert (new.rope_theta, new.rope_scaling) == (700.0, None)
    old = {"rope_theta": 9000.0, "rope_local_base_freq": 70.0, "rope_scaling": {"type": "linear", "factor": 8.0}}
    gemma = read(tmp_path, GEMMA3_TEXT, **old)
    assert (gemma.rope_theta, gemma.local_rope_theta, gemma.rope_scaling) == (9000.0, 70.0, params.RopeScaling(8.0))
    assert read(tmp_path, GEMMA3_TEXT, rope_theta=..., rope_parameters=GEMMA3_ROPE) == gemma


LOCAL_YARN = GEMMA3_ROPE | {"sliding_attention": LINEAR_SCALING}


@pytest.mark.parametrize(
    "settings, changes, message",
    [
        (LLAMA, {"model_type": "gpt2"}, "model_type 'gpt2' is not supported; use one of llama, mistral, .*, gemma3"),
        (LLAMA, {"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "architectures .*Sequence.* must be .*CausalLM"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for llama; it must be 'silu'"),
        (GEMMA2, {"hidden_activation": "gelu"}, "hidden_activation 'gelu' .*; it must be 'gelu_pytorch_tanh'"),
        (LLAMA, {"attention_bias": True}, "attention_bias True is not supported"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias True is not supported"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config .*bits.* is not supported"),
        (GEMMA3, {"quantization_config": {"bits": 4}}, "quantization_config .*bits.* is not supported"),
        (LLAMA, {"attention_chunk_size": 8}, "attention_chunk_size 8 is not supported"),
        (LLAMA, {"num_local_experts": 8}, "num_local_experts 8 is not supported"),
        (GEMMA3_TEXT, {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        (GEMMA3, {"text_config": {"model_type": "gemma2"}}, "text_config of model_type 'gemma2' is not supported"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not supported"),
        (LLAMA, {"rope_scaling": {"type": "llama3"}}, "llama3 rope scaling has no factor"),
        (LLAMA, {"rope_parameters": GEMMA3_ROPE}, "rope_parameters .* it must be one set for all layers"),
        (GEMMA3_TEXT, {"rope_parameters": LINEAR_SCALING}, "rope_parameters .* one set each for full_attention and"),
        (GEMMA3_TEXT, {"rope_parameters": LOCAL_YARN}, "rope scaling of sliding_attention is not supported"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        (LLAMA, {"vocab_size": ...}, "has no vocab_size"),
        (LLAMA, {"vocab_size": "11"}, "vocab_size is '11'; it must be a positive number"),
        (QWEN3, {"layer_types": MIXED}, "layer_types names sliding_attention, but sliding windows are off"),
        (QWEN3, {"layer_types": MIXED[:1]}, "layer_types 'of 1 layers' is not supported for qwen3; it must name each"),
        (QWEN3, {"layer_types": ["full_attention", "linear_attention"]}, "layer_types 'linear_attention' is not"),
        (MISTRAL, {"layer_types": MIXED}, "layer_types contradicts sliding_window for mistral"),
    ],
)
def test_unsupported_configs_are_named(tmp_path, settings, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, settings, **changes)
    assert "\n" not in str(caught.value)


LLAMA3 = LLAMA | {"rope_scaling": LLAMA3_SCALING}


@pytest.mark.parametrize(
    "settings, key, values, message",
    [
        (LLAMA, "num_hidden_layers", ["2", 2.0, -1, True, [2], 10**400], "it must be a positive number"),
        (LLAMA, "rms_norm_eps", [math.nan, math.inf, -1e-6, "1e-6", 10**400], "it must be a positive number"),
        (LLAMA, "rope_theta", ["abc", -5, 0, math.nan], "it must be a positive number"),
        (LLAMA, "tie_word_embeddings", ["false", 0.0, []], "it must be true or false"),
        (LLAMA, "rope_scaling", ["linear", 3, ["linear"]], "rope_scaling is .*; it must be an object"),
        (LLAMA, "rope_parameters", [["default"], "default"], "rope_parameters is .*; it must be an object"),
        (LLAMA3, "rope_scaling.factor", ["abc", 0, -8.0, math.nan], "llama3 rope scaling: factor is .* positive"),
        (LLAMA3, "rope_scaling.low_freq_factor", [4.0, 5.0], "low_freq_factor .* is not below high_freq_factor 4.0"),
        (LLAMA3, "rope_scaling.original_max_position_embeddings", ["x", 0], "it must be a positive number"),
        (LLAMA3, "rope_scaling.rope_type", [["llama3"], 3], "rope scaling .* is not supported"),
        (LLAMA, "num_key_value_heads", [4], "config.json: num_kv_heads 4 does not divide num_heads 6"),
        (LLAMA, "head_dim", [3], "config.json: head_dim 3 is odd"),
        (QWEN3, "layer_types", [3, "full_attention", {}], "layer_types is .*; it must name each of 2 layers"),
        (QWEN3, "use_sliding_window", ["false"], "it must be true or false"),
        (QWEN3, "max_window_layers", ["1", -1], "max_window_layers is .*; it must be a number of at least 0"),
        (GEMMA2, "sliding_window_pattern", ["2", -1, 0], "it must be a positive number"),
        (GEMMA2, "attn_logit_softcapping", ["30", -30, math.nan], "it must be a number of at least 0"),
        (GEMMA3, "text_config", ["x", [1]], "text_config is .*; it must be an object"),
        (GEMMA3_TEXT, "rope_parameters", [{"full_attention": {}, "sliding_attention": "x"}], "it must be an object"),
        (GEMMA3_TEXT, "rope_local_base_freq", ["x", -1], "it must be a positive number"),
    ],
)
def test_values_that_are_none(tmp_path, settings, key, values, message):
    outer, _, inner = key.partition(".")
    for value in values:
        change = {outer: settings[outer] | {inner: value} if inner else value}
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path, settings, **change)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))


def test_null_is_as_missing(tmp_path):
    for settings, key in (
        (QWEN3 | {"use_sliding_window": True, "sliding_window": 8}, "max_window_layers"),
        (GEMMA2, "sliding_window_pattern"),
        (LLAMA, "rope_theta"),
        (GEMMA3_TEXT, "rope_local_base_freq"),
    ):
        assert read(tmp_path, settings, **{key: None}) == read(tmp_path, settings, **{key: ...})


def test_config_missing(tmp_path):
    with pytest.raises(UserError, match="config.json does not exist"):
        hf_config.read_config(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_source", [True, False])
def test_written_and_read_again(tmp_path, variant, with_source):
    source = VARIANTS[variant] | {"eos_token_id": [1, 6], "use_cache": True}
    config = read(tmp_path, source)
    settings = hf_config.config_json(config, dtype="bfloat16", source=source if with_source else None)
    assert read(tmp_path, settings) == config
    assert (settings["dtype"], settings["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert settings["eos_token_id"] == ([1, 6] if with_source else None)
    assert "rope_parameters" not in settings  # transformers 5's spelling, which 4 would not read
    assert "text_config" not in settings and "vision_config" not in settings
    text = {"gemma3": "gemma3_text"}.get(source["model_type"], source["model_type"])
    if with_source or "mistral" not in variant or "0.1" in variant:  # without windows, Mistral is a Llama
        assert settings["model_type"] == text


def test_written_token_ids(tmp_path):
    settings = hf_config.config_json(read(tmp_path, LLAMA), dtype="float32", token_ids={"eos_token_id": 3})
    assert (settings["eos_token_id"], settings["bos_token_id"], settings["pad_token_id"]) == (3, None, None)


@pytest.mark.parametrize(
    "changes, source, message",
    [
        (
            {"qk_norm": True, "attention_bias": True},
            None,
            "can't be written as .* of llama or mistral or .*gemma3_text",
        ),
        ({"query_scale": 0.3}, None, "can't be written as"),
        ({"norm_offset": 1.0}, LLAMA, "can't be written as a Hugging Face model of llama;"),
    ],
)
def test_what_no_family_expresses(tmp_path, changes, source, message):
    config = dataclasses.replace(read(tmp_path, LLAMA), **changes)
    with pytest.raises(UserError, match=message):
        hf_config.config_json(config, dtype="float32", source=source)
    with pytest.raises(UserError, match="dtype 'int8' can't be written; use one of float32, bfloat16, float16"):
        hf_config.config_json(config, dtype="int8", source=source)
