"""Hugging Face model folders: `config.json` to a `ModelConfig`, safetensors to our parameters.

One table says which tensor of a checkpoint is which of ours; reading and writing both follow it. Torch keeps a linear
layer as `[out, in]` with the heads flattened into `out` or `in`; we keep `[in, out]`, heads apart, layers stacked.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 - teaches NumPy the bfloat16 that checkpoints are kept in
import numpy as np
import safetensors

from cgrpo_jax import model
from cgrpo_jax.errors import UserError
from cgrpo_jax.tokenizer import Tokenizer, read_json

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kind of tensor: its name in a checkpoint, its path in our parameters, and how the two are laid out.

    Attributes:
      name: as Hugging Face writes it, with `{layer}` where a number stands.
      path: keys into our nested dict.
      inputs: how many leading axes of our array are inputs of a torch linear layer, which is stored as
        `[outputs, inputs]`; 0 for a vector (stored flat), None for a table that is stored as we keep it.
    """

    name: str
    path: tuple[str, ...]
    inputs: int | None

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in a checkpoint of an array that has `shape` (one layer's) with us."""
        if self.inputs is None:
            return shape
        outputs = math.prod(shape[self.inputs :])
        return (outputs, math.prod(shape[: self.inputs])) if self.inputs else (outputs,)

    def ours(self, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A checkpoint's tensor as we keep it."""
        return stored if self.inputs is None else stored.T.reshape(shape)


_LAYER = "model.layers.{layer}."
TABLE = (
    Entry("model.embed_tokens.weight", ("embed",), None),
    Entry(_LAYER + "input_layernorm.weight", ("layers", "attn_norm"), 0),
    Entry(_LAYER + "self_attn.q_proj.weight", ("layers", "q"), 1),
    Entry(_LAYER + "self_attn.k_proj.weight", ("layers", "k"), 1),
    Entry(_LAYER + "self_attn.v_proj.weight", ("layers", "v"), 1),
    Entry(_LAYER + "self_attn.o_proj.weight", ("layers", "o"), 2),
    Entry(_LAYER + "self_attn.q_proj.bias", ("layers", "q_bias"), 0),
    Entry(_LAYER + "self_attn.k_proj.bias", ("layers", "k_bias"), 0),
    Entry(_LAYER + "self_attn.v_proj.bias", ("layers", "v_bias"), 0),
    Entry(_LAYER + "self_attn.q_norm.weight", ("layers", "q_norm"), 0),
    Entry(_LAYER + "self_attn.k_norm.weight", ("layers", "k_norm"), 0),
    Entry(_LAYER + "post_attention_layernorm.weight", ("layers", "mlp_norm"), 0),
    Entry(_LAYER + "mlp.gate_proj.weight", ("layers", "gate"), 1),
    Entry(_LAYER + "mlp.up_proj.weight", ("layers", "up"), 1),
    Entry(_LAYER + "mlp.down_proj.weight", ("layers", "down"), 1),
    Entry("model.norm.weight", ("final_norm",), 0),
    Entry("lm_head.weight", ("unembed",), None),
)


def read_config(folder: str | pathlib.Path) -> model.ModelConfig:
    """The architecture of a Hugging Face model folder, from its `config.json`.

    Raises:
      UserError: the file is missing, or asks for something that this model can't compute.
    """
    path = pathlib.Path(folder) / "config.json"
    given = read_json(path)
    family = given.get("model_type")
    if family not in ARCHITECTURES:
        raise UserError(f"{path}: model_type {family!r} is not supported; use one of {', '.join(ARCHITECTURES)}.")
    _refuse_unsupported(given, path)

    def need(key: str) -> Any:
        if given.get(key) is None:
            raise UserError(f"{path} has no {key}; fetch the file again.")
        return given[key]

    heads = need("num_attention_heads")
    head_dim = given.get("head_dim") or (128 if family == "qwen3" else need("hidden_size") // heads)
    theta, scaling = _rope(given, path)
    return model.ModelConfig(
        vocab_size=need("vocab_size"),
        num_layers=need("num_hidden_layers"),
        embed_dim=need("hidden_size"),
        num_heads=heads,
        num_kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_dim=need("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=given.get("rms_norm_eps", 1e-6),
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tie_embeddings=bool(given.get("tie_word_embeddings", False)),
        max_context=need("max_position_embeddings"),
    )


def load_params(folder: str | pathlib.Path, config: model.ModelConfig, dtype: Any = np.float32) -> dict[str, Any]:
    """The weights of a Hugging Face folder as host arrays, read one tensor at a time.

    Args:
      folder: holds `model.safetensors`, or its shards and `model.safetensors.index.json`.
      config: what `read_config` found there.
      dtype: of the result; checkpoints in bfloat16, float16 or float32 are converted.

    Returns:
      The nested dict that `model.param_shapes` describes, as NumPy arrays: the caller places them on devices.

    Raises:
      UserError: a file is missing or damaged, or a tensor is missing, superfluous or of the wrong shape.

    Example:
      >>> config = read_config(folder)
      >>> load_params(folder, config)["layers"]["q"].shape  # [L, D, H, Dh]
      (30, 576, 9, 64)
    """
    folder = pathlib.Path(folder)
    shapes = model.param_shapes(config)
    with contextlib.ExitStack() as stack:
        checkpoint = _Checkpoint(folder, stack)
        checkpoint.refuse_superfluous({name for _, _, name in checkpoint_names(shapes)})
        params: dict[str, Any] = {"layers": {}}
        for entry, layer, name in checkpoint_names(shapes):
            shape = _at(shapes, entry.path).shape
            *parents, leaf = entry.path
            place = _at(params, parents)
            if leaf not in place:
                place[leaf] = np.empty(shape, dtype)
            one = shape if layer is None else shape[1:]
            stored = checkpoint.read(name, expected=entry.stored_shape(one))
            place[leaf][... if layer is None else layer] = entry.ours(stored, one)
    return params


def checkpoint_names(shapes: Mapping[str, Any]) -> Iterator[tuple[Entry, int | None, str]]:
    """Every tensor of a checkpoint that has these parameters: table entry, layer (None outside layers), name."""
    for entry in TABLE:
        *parents, leaf = entry.path
        if leaf not in _at(shapes, parents):
            continue
        if "{layer}" not in entry.name:
            yield entry, None, entry.name
            continue
        for layer in range(_at(shapes, entry.path).shape[0]):
            yield entry, layer, entry.name.format(layer=layer)


def check_vocab(tokenizer: Tokenizer, config: model.ModelConfig) -> None:
    """Refuses a tokenizer that has ids without an embedding; embeddings without an id are fine (padded tables).

    Raises:
      UserError: the tokenizer's vocabulary is larger than the model's.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model embeds {config.vocab_size}; "
            "use the tokenizer that came with the model."
        )


class _Checkpoint:
    """Which file holds which tensor of a folder; the files are opened once and read lazily."""

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
        self._folder = folder
        self._files: dict[pathlib.Path, Any] = {}
        self._file_of: dict[str, pathlib.Path] = {}
        for path in _weight_files(folder):
            try:
                self._files[path] = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is truncated or not a safetensors file ({error}); fetch the file again."
                ) from None
            self._file_of |= dict.fromkeys(self._files[path].keys(), path)

    def read(self, name: str, *, expected: tuple[int, ...]) -> np.ndarray:
        if name not in self._file_of:
            raise UserError(f"{self._folder} has no tensor {name}; its config.json and weights must be of one model.")
        path = self._file_of[name]
        stored = self._files[path].get_slice(name)
        if stored.get_dtype() not in _FLOATS:
            raise UserError(
                f"{path}: {name} is {stored.get_dtype()}; weights are read as one of {', '.join(_FLOATS)}, "
                "so use a model folder that is not quantised."
            )
        shape = tuple(stored.get_shape())
        if shape != expected:
            raise UserError(
                f"{path}: {name} has shape {shape}, config.json asks for {expected}; they must be of one model."
            )
        return self._files[path].get_tensor(name)

    def refuse_superfluous(self, names: set[str]) -> None:
        """A tensor that nothing reads means another model: more layers, or biases that would be dropped in silence."""
        allowed = {*names, "lm_head.weight"}  # some tied checkpoints repeat the embedding under this name
        for name in sorted(self._file_of):
            if name not in allowed and not name.endswith("rotary_emb.inv_freq"):
                raise UserError(
                    f"{self._file_of[name]} holds {name}, which config.json does not account for; "
                    "its config.json and weights must be of one model."
                )


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a Hugging Face model folder.")
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        shards = sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
        for shard in shards:
            if pathlib.Path(shard).name != shard or not (folder / shard).is_file():
                raise UserError(f"{folder / _INDEX} names {shard}, which is not in {folder}; fetch the missing file.")
        return [folder / shard for shard in shards]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when read; "
            "convert them to safetensors first."
        )
    raise UserError(f"{folder} has no weights; it must hold {_SINGLE}, or {_INDEX} and its shards.")


def _refuse_unsupported(given: Mapping[str, Any], path: pathlib.Path) -> None:
    family = given["model_type"]
    wanted = ARCHITECTURES[family]
    layers = given.get("num_hidden_layers") or 0
    slides = given.get("use_sliding_window", False) and given.get("max_window_layers", 28) < layers
    if family == "mistral":
        slides = given.get("sliding_window", 4096) is not None
    slides = slides or any(kind != "full_attention" for kind in given.get("layer_types") or ())
    faults = [
        ("architectures", given.get("architectures") or [wanted], [wanted]),
        ("hidden_act", given.get("hidden_act", "silu"), "silu"),
        # Qwen2 always has biases on q, k and v; this key would mean them in other places.
        ("attention_bias", bool(given.get("attention_bias", False)) and family != "qwen2", False),
        ("mlp_bias", given.get("mlp_bias", False), False),
        ("sliding window attention", bool(slides), False),
        ("quantization_config", given.get("quantization_config"), None),
        ("partial_rotary_factor", given.get("partial_rotary_factor", 1.0), 1.0),
    ]
    for key, value, supported in faults:
        if value != supported:
            raise UserError(f"{path}: {key} {value!r} is not supported for {family}; it must be {supported!r}.")


def _rope(given: Mapping[str, Any], path: pathlib.Path) -> tuple[float, model.RopeScaling | None]:
    """Rotary base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    parameters = given.get("rope_parameters") or given.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or given.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{path}: rope scaling {kind!r} is not supported; use 'default' or 'llama3'.")
    try:
        return theta, model.RopeScaling(
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_max_position=int(
                parameters.get("original_max_position_embeddings") or given["max_position_embeddings"]
            ),
        )
    except KeyError as error:
        raise UserError(f"{path}: llama3 rope scaling has no {error.args[0]}; fetch the file again.") from None


def _at(tree: Mapping[str, Any], path) -> Any:
    for key in path:
        tree = tree[key]
    return tree
