"""Model folders made here from random parameters: what is read back is what was written, and every fault is named."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cgrpo_jax import hf, model
from cgrpo_jax.errors import UserError

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "intermediate_size": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)

    def fill(tree):
        if isinstance(tree, dict):
            return {key: fill(value) for key, value in tree.items()}
        return rng.standard_normal(tree.shape).astype(np.float32)

    return fill(model.param_shapes(config))


def stored_tensors(params, config):
    """The checkpoint of `params`: torch's `[outputs, inputs]`, heads flattened, one tensor a layer."""
    tensors = {}
    for entry, layer, name in hf.checkpoint_names(model.param_shapes(config)):
        ours = params
        for key in entry.path:
            ours = ours[key]
        ours = ours if layer is None else ours[layer]
        if entry.inputs is not None:
            ours = ours.reshape(*((-1,) if not entry.inputs else (np.prod(ours.shape[: entry.inputs]), -1))).T
        tensors[name] = np.ascontiguousarray(ours)
    return tensors


def write_folder(path, settings, tensors, *, shards=1):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    if shards == 1:
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
        return path
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: t for n, t in tensors.items() if files[n] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return path


@pytest.fixture
def folder(tmp_path):
    """A small untied Llama in one file, and what is in it."""
    write_folder(tmp_path / "config", LLAMA, {})
    config = hf.read_config(tmp_path / "config")
    tensors = stored_tensors(random_params(config), config)
    return write_folder(tmp_path / "model", LLAMA, tensors), config, tensors


def read_settings(tmp_path, **changes):
    settings = {key: value for key, value in (LLAMA | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return hf.read_config(tmp_path)


@pytest.mark.parametrize("settings", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_back(tmp_path, settings, shards):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = hf.read_config(tmp_path)
    params = random_params(config)
    write_folder(tmp_path, settings, stored_tensors(params, config), shards=shards)
    loaded = hf.load_params(tmp_path, config)
    assert {*loaded} == {*params} and {*loaded["layers"]} == {*params["layers"]}
    ours, read = params | params["layers"], loaded | loaded["layers"]
    for name in ours.keys() - {"layers"}:
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], ours[name], err_msg=name)


def test_layout_by_hand(folder):
    path, config, tensors = folder
    layers = hf.load_params(path, config)["layers"]
    q, o = (tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qo")  # [H * Dh, D], [D, H * Dh]
    assert layers["q"][1, 7, 5, 3] == q[5 * 4 + 3, 7]
    assert layers["o"][1, 5, 3, 7] == o[7, 5 * 4 + 3]
    assert layers["down"][0, 9, 7] == tensors["model.layers.0.mlp.down_proj.weight"][7, 9]


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_half_precision_checkpoints(folder, stored, wanted):
    path, config, tensors = folder
    write_folder(path, LLAMA, {name: tensor.astype(stored) for name, tensor in tensors.items()})
    embed = hf.load_params(path, config, wanted)["embed"]
    assert embed.dtype == wanted
    np.testing.assert_array_equal(embed, tensors["model.embed_tokens.weight"].astype(stored).astype(wanted))


def test_tied_checkpoint_may_repeat_the_embedding(folder):
    path, _, tensors = folder
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}  # old exports keep it
    write_folder(path, LLAMA | {"tie_word_embeddings": True}, tensors | inv_freq)
    assert "unembed" not in hf.load_params(path, hf.read_config(path))


def test_config_fields(tmp_path):
    expected = model.ModelConfig(
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
    assert read_settings(tmp_path) == expected
    replace = dataclasses.replace
    assert read_settings(tmp_path, num_key_value_heads=...) == replace(expected, num_kv_heads=6)
    assert read_settings(tmp_path, head_dim=None) == replace(expected, head_dim=2)
    assert read_settings(tmp_path, tie_word_embeddings=True) == replace(expected, tie_embeddings=True)
    assert read_settings(tmp_path, **QWEN2 | {"sliding_window": 8}) == replace(expected, attention_bias=True)
    assert read_settings(tmp_path, **QWEN3) == replace(expected, qk_norm=True, tie_embeddings=True)
    assert read_settings(tmp_path, **QWEN3 | {"head_dim": ...}).head_dim == 128  # the family's default
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    assert read_settings(tmp_path, **mistral) == expected


def test_rope_in_old_and_new_spelling(tmp_path):
    scaling = model.RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
    old = read_settings(tmp_path, rope_scaling=LLAMA3_SCALING)
    assert (old.rope_theta, old.rope_scaling) == (500.0, scaling)
    assert read_settings(tmp_path, rope_theta=..., rope_parameters=LLAMA3_SCALING | {"rope_theta": 500.0}) == old
    plain = {"rope_theta": 700.0, "rope_type": "default"}
    new = read_settings(tmp_path, rope_theta=..., rope_parameters=plain)
    assert (new.rope_theta, new.rope_scaling) == (700.0, None)
    with pytest.raises(UserError, match="llama3 rope scaling has no factor"):
        read_settings(tmp_path, rope_scaling={"type": "llama3"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; use one of llama, mistral, qwen2, qwen3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures .*Sequence.* must be .*CausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for llama; it must be 'silu'"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .*bits.* is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope scaling 'linear' is not supported"),
        ({"vocab_size": ...}, "has no vocab_size"),
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 1}, "sliding window attention True"),
        (QWEN3 | {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window attention True"),
        (
            {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8},
            "sliding window attention True is not supported for mistral",
        ),
    ],
)
def test_unsupported_configs_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_settings(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_config_missing(tmp_path):
    with pytest.raises(UserError, match="config.json does not exist"):
        hf.read_config(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_missing_tensor(folder, shards):
    path, config, tensors = folder
    (path / "model.safetensors").unlink()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_folder(path, LLAMA, tensors, shards=shards)
    with pytest.raises(UserError, match="has no tensor model.layers.1.mlp.up_proj.weight"):
        hf.load_params(path, config)


def test_wrong_shape(folder):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {"model.norm.weight": np.ones(13, np.float32)})
    with pytest.raises(UserError, match=r"model.norm.weight has shape \(13,\), config.json asks for \(12,\)"):
        hf.load_params(path, config)


def test_transposed_weight_is_not_taken(folder):
    path, config, tensors = folder
    name = "model.layers.0.mlp.gate_proj.weight"
    write_folder(path, LLAMA, tensors | {name: np.ascontiguousarray(tensors[name].T)})
    with pytest.raises(UserError, match=r"gate_proj.weight has shape \(12, 10\), config.json asks for \(10, 12\)"):
        hf.load_params(path, config)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_superfluous_tensor(folder, name):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {name: np.ones(3, np.float32)})
    with pytest.raises(UserError, match=f"holds {name}, which config.json does not account for"):
        hf.load_params(path, config)


def test_quantised_tensor(folder):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {"model.norm.weight": np.ones(12, np.int8)})
    with pytest.raises(UserError, match="model.norm.weight is I8; .* not quantised"):
        hf.load_params(path, config)


@pytest.mark.parametrize("keep", [4, 200, -3])
def test_truncated_file(folder, keep):
    path, config, _ = folder
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is truncated or not a safetensors file") as caught:
        hf.load_params(path, config)
    assert "\n" not in str(caught.value)


def test_index_that_names_a_missing_file(folder):
    path, config, tensors = folder
    (path / "model.safetensors").unlink()
    write_folder(path, LLAMA, tensors, shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="index.json names model-00002-of-00002.safetensors, which is not in"):
        hf.load_params(path, config)
    outside = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(outside))
    (path.parent / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="names ../model.safetensors, which is not in"):
        hf.load_params(path, config)


def test_pickled_weights_are_refused(folder):
    path, config, _ = folder
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights; it must hold model.safetensors"):
        hf.load_params(path, config)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\).* convert them to safetensors"):
        hf.load_params(path, config)
    with pytest.raises(UserError, match="is not a folder; give a Hugging Face model folder"):
        hf.load_params(path / "absent", config)


def test_check_vocab(folder):
    @dataclasses.dataclass
    class Vocabulary:
        vocab_size: int

    _, config, _ = folder
    hf.check_vocab(Vocabulary(10), config)
    hf.check_vocab(Vocabulary(11), config)
    with pytest.raises(UserError, match="The tokenizer has 12 tokens, the model embeds 11"):
        hf.check_vocab(Vocabulary(12), config)
