"""The families of models that are supported: a row each in `FAMILIES`; `config` reads and writes by it.

To add a family that the transformer can compute, add its row: the name of transformers' class, what its
`config.json` means where a key is left out, and the fields of `ModelConfig` that are the same for all of it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """What sets a family of models apart.

    Attributes:
      architecture: the name of transformers' class.
      defaults: what a `config.json` key means where the file leaves it out, as in transformers' configuration class.
        A key outside `SIZES` is read and written for those families only that have it here.
      fixed: fields of `ModelConfig` that are the same for the whole family.
      text: of a multimodal family, the family of its `text_config`; only that part of it is read, and written.
    """

    architecture: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str = ""


# Fields that config.json holds as they are.
SIZES = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "embed_dim",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "max_context",
}
# What no model comes near: a file that says more is damaged or hostile, and nothing is made of its size.
LARGEST = {
    "vocab_size": 1 << 24,
    "num_hidden_layers": 1 << 12,
    "hidden_size": 1 << 20,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 22,
    "max_position_embeddings": (1 << 31) - 1,  # positions are numbers of 32 bits
}
SOFTCAPS = {"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "logit_softcap"}
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # ours, theirs

_COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "hidden_act": "silu"}
_QWEN = {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}
_GEMMA_MATHS = {"activation": "gelu_tanh", "norm_offset": 1.0, "post_norms": True, "scale_embeddings": True}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _COMMON),
    "mistral": Family("MistralForCausalLM", _COMMON | {"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", _COMMON | _QWEN, {"attention_bias": True}),
    "qwen3": Family("Qwen3ForCausalLM", _COMMON | _QWEN | {"head_dim": 128}, {"qk_norm": True}),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA
        | {
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
        },
        _GEMMA_MATHS,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA
        | {
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window_pattern": 6,
        },
        _GEMMA_MATHS | {"qk_norm": True},
    ),
    "gemma3": Family("Gemma3ForConditionalGeneration", text="gemma3_text"),
}
