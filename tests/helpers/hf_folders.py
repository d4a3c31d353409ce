"""Model folders in the layout of Hugging Face, made from random parameters."""

import json

import jax
import numpy as np
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load

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
MISTRAL = LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
GEMMA2 = LLAMA | {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 6,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
GEMMA3_TEXT = GEMMA2 | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7}
GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {key: value for key, value in GEMMA3_TEXT.items() if key != "architectures"},
    "vision_config": {"hidden_size": 5},
    "eos_token_id": [1, 6],
}
FAMILIES = {
    settings["model_type"]: settings for settings in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3_TEXT, GEMMA3)
}


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)

    def fill(tree):
        if isinstance(tree, dict):
            return {key: fill(value) for key, value in tree.items()}
        return rng.standard_normal(tree.shape).astype(np.float32)

    return fill(params_lib.param_shapes(config))


def stored_tensors(params, config):
    """The checkpoint of `params`: torch's `[outputs, inputs]`, heads flattened, one tensor a layer."""
    tensors = {}
    for entry, layer, name in load.checkpoint_names(config):
        ours = params
        for key in entry.path:
            ours = ours[key]
        ours = ours if layer is None else ours[layer]
        if entry.inputs is not None:  # written out again, so that a fault in the table's own layout shows
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


def multimodal(tensors, *, new):
    """The same text model as transformers 5 (`new`) or 4 stores it, with tensors of the other modality."""
    prefix = "model.language_model." if new else "language_model.model."
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    others = ("vision_tower.vision_model.post_layernorm.bias", "multi_modal_projector.mm_soft_emb_norm.weight")
    return renamed | {("model." if new else "") + name: np.ones(5, np.float32) for name in others}


def shardings_of(config, mesh, rules):
    """A sharding a parameter: `rules` says over which axis of the mesh a logical axis goes."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, PartitionSpec(*(rules.get(axis) for axis in axes))),
        params_lib.logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_SCALING = {"rope_type": "linear", "factor": 8.0}
GEMMA3_ROPE = {
    "full_attention": LINEAR_SCALING | {"rope_theta": 9000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
}
MIXED = ["full_attention", "sliding_attention"]
# Each is read, written and read again.
VARIANTS = {
    **FAMILIES,
    "llama 3 rope": LLAMA | {"rope_scaling": LLAMA3_SCALING},
    "linear rope": LLAMA | {"rope_scaling": LINEAR_SCALING},
    "mistral 0.1": MISTRAL | {"sliding_window": 8},
    "qwen2 upper layers": QWEN2 | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3 layer types": QWEN3 | {"use_sliding_window": True, "sliding_window": 8, "layer_types": MIXED[::-1]},
    "gemma2 without caps": GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3 rope": GEMMA3_TEXT | {"rope_parameters": GEMMA3_ROPE},
    "gemma3 no local layer": GEMMA3_TEXT | {"layer_types": ["full_attention"] * 7},
    "gemma3 pattern": GEMMA3_TEXT | {"sliding_window_pattern": 3},
}


def read(tmp_path, settings, **changes):
    settings = {key: value for key, value in (settings | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return hf_config.read_config(tmp_path)


THEIR_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
