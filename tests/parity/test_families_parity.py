"""What transformers makes of the config.json and the weights that we write. Needs the extra `parity`."""

import functools
import json
import operator

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hf_folders import GEMMA3_ROPE, LINEAR_SCALING, LLAMA3_SCALING, THEIR_VISION, VARIANTS, read

from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models import transformer
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export, families, load


def theirs(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return transformers.AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_source", [True, False])
def test_transformers_reads_the_same_model(tmp_path, variant, with_source):
    source = VARIANTS[variant]
    config = read(tmp_path, source)
    settings = hf_config.config_json(config, dtype="bfloat16", source=source if with_source else None)
    their = theirs(tmp_path, settings)
    assert str(their.dtype) in ("bfloat16", "torch.bfloat16")
    assert (their.vocab_size, their.num_hidden_layers, their.hidden_size) == (11, config.num_layers, 12)
    assert (their.num_attention_heads, their.num_key_value_heads, their.head_dim) == (6, 3, 4)
    assert (their.tie_word_embeddings, their.rms_norm_eps) == (config.tie_embeddings, config.norm_eps)
    assert (getattr(their, "attn_logit_softcapping", None) or 0.0) == config.attention_softcap
    assert (getattr(their, "final_logit_softcapping", None) or 0.0) == config.logit_softcap
    if config.query_scale is not None:
        assert their.query_pre_attn_scalar**-0.5 == config.query_scale
    assert getattr(their, "hidden_activation", None) == (
        "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else None
    )
    if config.local_layers:
        assert their.sliding_window == config.window
        if their.model_type != "mistral":  # where the window is every layer's
            assert [kind == "sliding_attention" for kind in their.layer_types] == [*config.local_layers]
    elif their.model_type == "mistral":
        assert their.sliding_window is None
    else:
        assert "sliding_attention" not in (getattr(their, "layer_types", None) or ())
    rope = their.rope_parameters
    if config.local_rope_theta is not None:
        assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": config.local_rope_theta}
        rope = rope["full_attention"]
    expected = {"rope_type": "default"}
    if config.rope_scaling is not None:
        expected = LINEAR_SCALING if not config.rope_scaling.original_max_position else LLAMA3_SCALING
    assert rope == expected | {"rope_theta": config.rope_theta}


THEIR_SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large enough for attention to be far from uniform
    "pad_token_id": 0,
}
THEIR_SETTINGS = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 10},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 10, "rope_parameters": GEMMA3_ROPE},
}


def their_random_model(family):
    """One of transformers' models, small, with norms and biases that are not all alike."""
    torch.manual_seed(0)
    if family == "gemma3":
        text = transformers.Gemma3TextConfig(**THEIR_SMALL, **THEIR_SETTINGS["gemma3_text"])
        config = transformers.Gemma3Config(text_config=text, vision_config=THEIR_VISION, image_token_index=90)
        net = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    else:
        config = transformers.AutoConfig.for_model(family, **THEIR_SMALL, **THEIR_SETTINGS[family])
        net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if "norm" in name or "bias" in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return net.eval()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_through_us_and_back(tmp_path, family):
    """What transformers saved, imported and exported, is to transformers the same model to the last bit."""
    net = their_random_model(family)
    net.save_pretrained(tmp_path / "theirs")
    source = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config = hf_config.read_config(tmp_path / "theirs")
    params = load.load_params(tmp_path / "theirs", config)
    tokens = [[int(token) for token in torch.randint(1, 90, (40,))]]
    hidden = transformer.hidden_states(
        params, config, jnp.array(tokens), jnp.arange(40)[None], jnp.ones((1, 40), jnp.int32)
    )

    out = tmp_path / "ours"
    out.mkdir()
    export.save_params(
        out,
        config,
        lambda path: functools.reduce(operator.getitem, path, params),
        dtype="float32",
        max_shard_bytes=20_000,
    )
    (out / "config.json").write_text(json.dumps(hf_config.config_json(config, dtype="float32", source=source)))
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, attn_implementation="eager"
    )
    assert not [key for key, found in report.items() if found]  # no tensor missing, unexpected or of another shape
    with torch.no_grad():
        wanted, got = (one(input_ids=torch.tensor(tokens)).logits[0].numpy() for one in (net, back.eval()))
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(transformer.logits(params, config, hidden)[0], wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", families.TEXT_FAMILIES)
def test_a_model_that_a_configuration_describes_is_theirs_too(tmp_path, family):
    """Drawn at random, and written as a run's export is: without a folder that it came from."""
    sizes = THEIR_SMALL | {"tie_word_embeddings": True, "query_pre_attn_scalar": 8}
    sizes |= {} if family == "llama" else {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}
    config = hf_config.described(family, sizes)
    params = params_lib.init_params(config, seed=0)
    tokens = jnp.array([[int(token) for token in torch.randint(1, 90, (40,))]])
    hidden = transformer.hidden_states(params, config, tokens, jnp.arange(40)[None], jnp.ones((1, 40), jnp.int32))
    read = lambda path: functools.reduce(operator.getitem, path, params)  # noqa: E731
    export.save_params(tmp_path, config, read, dtype="float32", max_shard_bytes=1 << 30)
    (tmp_path / "config.json").write_text(json.dumps(hf_config.config_json(config, dtype="float32")))
    net, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not [key for key, found in report.items() if found] and net.config.model_type == family
    with torch.no_grad():
        wanted = net.eval()(input_ids=torch.tensor(np.array(tokens))).logits[0].numpy()
    np.testing.assert_allclose(transformer.logits(params, config, hidden)[0], wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", [name for name, row in families.FAMILIES.items() if not row.text])
def test_the_defaults_are_those_of_transformers(family):
    their = transformers.AutoConfig.for_model(family)
    for key, value in families.FAMILIES[family].defaults.items():
        if key == "rope_theta":
            rope = their.rope_parameters
            assert rope.get("full_attention", rope)["rope_theta"] == value
        elif key == "rope_local_base_freq":
            assert their.rope_parameters["sliding_attention"]["rope_theta"] == value
        elif key == "sliding_window_pattern":
            assert [kind == "full_attention" for kind in their.layer_types] == [
                (layer + 1) % value == 0 for layer in range(their.num_hidden_layers)
            ]
        elif key == "sliding_window" and "use_sliding_window" in families.FAMILIES[family].defaults:
            assert type(their)(use_sliding_window=True).sliding_window == value
        elif key != "layer_types":
            assert getattr(their, key) == value, key
