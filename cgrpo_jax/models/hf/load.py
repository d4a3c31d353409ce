"""The tensors of Hugging Face model folders: which is which of our parameters, and reading them onto devices.

One table says which tensor of a checkpoint is which of ours; reading and writing both follow it. Torch keeps a linear
layer as `[out, in]` with the heads flattened into `out` or `in`; we keep `[in, out]`, heads apart, layers stacked.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes  # noqa: F401 - teaches NumPy the bfloat16 that checkpoints are kept in
import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import weight_files
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.models.hf.weight_files import INDEX, SINGLE
from cgrpo_jax.runtime.json_files import shown

_FLOATS = ("F64", "F32", "F16", "BF16")

# Multimodal releases keep the text model under a name of its own (transformers 4, transformers 5), beside the others.
_TEXT = (("language_model.", ""), ("model.language_model.", "model."))
_OTHER_MODALITIES = ("vision_tower.", "multi_modal_projector.")
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPARED_BYTES = 64 * 2**20  # of each at a time


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kind of tensor: its name in a checkpoint, its path in our parameters, and how the two are laid out.

    Attributes:
      name: as Hugging Face writes it, with `{layer}` where a number is.
      path: keys into our nested dict.
      inputs: how many leading axes of our array are inputs of a torch linear layer, which is stored as
        `[outputs, inputs]`; 0 for a vector (stored flat), None for a table that is stored as we keep it.
      post_norms: the tensor has this name only in models with `ModelConfig.post_norms` so; None: in all.
    """

    name: str
    path: tuple[str, ...]
    inputs: int | None
    post_norms: bool | None = None

    @property
    def layered(self) -> bool:
        """Whether a checkpoint has one such tensor a layer, which we stack."""
        return "{layer}" in self.name

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in a checkpoint of an array that has `shape` (one layer's) with us."""
        if self.inputs is None:
            return shape
        outputs = math.prod(shape[self.inputs :])
        return (outputs, math.prod(shape[: self.inputs])) if self.inputs else (outputs,)

    def stored_block(self, block: Sequence[slice], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a block of our array (one layer's) lies in the checkpoint's tensor.

        Raises:
          ValueError: the block is no rectangle there (heads that are cut).
        """
        if self.inputs is None:
            return tuple(block)
        outputs = _flat(block[self.inputs :], shape[self.inputs :])
        return (outputs, _flat(block[: self.inputs], shape[: self.inputs])) if self.inputs else (outputs,)

    def ours(self, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A checkpoint's tensor, or a block of it, as we keep it."""
        return stored if self.inputs is None else stored.T.reshape(shape)

    def stored(self, ours: np.ndarray) -> np.ndarray:
        """Our array (one layer's) as a checkpoint keeps it; the inverse of `ours`."""
        return ours if self.inputs is None else ours.reshape(self.stored_shape(ours.shape)[::-1]).T


def _flat(block: Sequence[slice], shape: tuple[int, ...]) -> slice:
    """The range of a block on the one axis that the axes of `shape` are flattened into."""
    first, *rest = (part.indices(size)[:2] for part, size in zip(block, shape, strict=True))
    if any(bounds != (0, size) for bounds, size in zip(rest, shape[1:], strict=True)):
        raise ValueError(f"block {block} of {shape} is not contiguous in a checkpoint; shard the first axis only.")
    inner = math.prod(shape[1:])
    return slice(first[0] * inner, first[1] * inner)


_LAYER = "model.layers.{layer}."
TABLE = (
    Entry(_EMBED, ("embed",), None),
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
    Entry(_LAYER + "post_attention_layernorm.weight", ("layers", "mlp_norm"), 0, post_norms=False),
    Entry(_LAYER + "post_attention_layernorm.weight", ("layers", "post_attn_norm"), 0, post_norms=True),
    Entry(_LAYER + "pre_feedforward_layernorm.weight", ("layers", "mlp_norm"), 0, post_norms=True),
    Entry(_LAYER + "mlp.gate_proj.weight", ("layers", "gate"), 1),
    Entry(_LAYER + "mlp.up_proj.weight", ("layers", "up"), 1),
    Entry(_LAYER + "mlp.down_proj.weight", ("layers", "down"), 1),
    Entry(_LAYER + "post_feedforward_layernorm.weight", ("layers", "post_mlp_norm"), 0, post_norms=True),
    Entry("model.norm.weight", ("final_norm",), 0),
    Entry(_HEAD, ("unembed",), None),
)


def entries(config: params_lib.ModelConfig) -> list[tuple[Entry, tuple[int, ...]]]:
    """The rows of the table that a model has, each with the shape of our (stacked) array."""
    shapes = params_lib.param_shapes(config)
    return [
        (entry, at(shapes, entry.path).shape)
        for entry in TABLE
        if entry.post_norms in (None, config.post_norms) and entry.path[-1] in at(shapes, entry.path[:-1])
    ]


def checkpoint_names(config: params_lib.ModelConfig) -> Iterator[tuple[Entry, int | None, str]]:
    """Every tensor of a model's checkpoint: table entry, layer (None outside layers), name. Layer after layer."""
    rows = [entry for entry, _ in entries(config)]
    layered = [entry for entry in rows if entry.layered]
    first = rows.index(layered[0])
    for entry in rows[:first]:
        yield entry, None, entry.name
    for layer in range(config.num_layers):
        for entry in layered:
            yield entry, layer, entry.name.format(layer=layer)
    for entry in rows[first + len(layered) :]:
        yield entry, None, entry.name


def check_weights(folder: str | pathlib.Path, config: params_lib.ModelConfig) -> None:
    """Refuses a folder whose weights are not those of `config`. Reads the files' headers only.

    Raises:
      UserError: a file is missing or damaged, or a tensor is missing, superfluous, quantised or of the wrong shape.
    """
    Weights(folder, config)


def has_own_head(folder: str | pathlib.Path, shape: tuple[int, int]) -> bool:
    """Whether a folder has weights, and among them a head that is not the embedding.

    Args:
      folder: of a model.
      shape: that its `config.json` gives both; tables of another are not compared, and refused when they are loaded.

    Raises:
      UserError: a file of the weights is missing or damaged.
    """
    given = any((pathlib.Path(folder) / name).is_file() for name in (SINGLE, INDEX))
    return given and _Checkpoint(pathlib.Path(folder)).differ(_EMBED, _HEAD, shape)


def load_params(folder: str | pathlib.Path, config: params_lib.ModelConfig, **kw: Any) -> dict[str, Any]:
    """The weights of a Hugging Face folder on their devices: `Weights(folder, config).load(**kw)`.

    Example:
      >>> config = read_config(folder)
      >>> load_params(folder, config)["layers"]["q"].shape  # [L, D, H, Dh]
      (30, 576, 9, 64)
    """
    return Weights(folder, config).load(**kw)


class Weights:
    """The weights of a Hugging Face folder; made once all files are found to be whole and of the model.

    Of each of our stacked arrays, a process reads what its own devices hold, one device's shard at a time: the host
    holds no more than that shard and one layer's tensor beyond the result.

    Args:
      folder: holds `model.safetensors`, or its shards and `model.safetensors.index.json`.
      config: what `config.read_config` found there.

    Raises:
      UserError: as `check_weights`.
    """

    def __init__(self, folder: str | pathlib.Path, config: params_lib.ModelConfig):
        self._checkpoint = _Checkpoint(pathlib.Path(folder))
        self._checkpoint.check(config)
        self._rows = {entry.path: (entry, shape) for entry, shape in entries(config)}

    def read(self, path: tuple[str, ...], *, sharding: jax.sharding.Sharding, dtype: Any = np.float32) -> jax.Array:
        """One parameter, such as `("layers", "q")`; bfloat16, float16 and float32 files are converted to `dtype`."""
        return _load_stack(self._checkpoint, *self._rows[path], np.dtype(dtype), sharding)

    def load(
        self,
        *,
        dtype: Any = np.float32,
        shardings: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """All parameters: the nested dict that `params.param_shapes` describes.

        Args:
          dtype: of the result.
          shardings: a `jax.sharding.Sharding` for every parameter; None: everything on the first local device.
          progress: called with the parameters read so far and in all, after each stack.
        """
        total, done = sum(math.prod(shape) for _, shape in self._rows.values()), 0
        params: dict[str, Any] = {"layers": {}}
        for path, (_, shape) in self._rows.items():
            one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            sharding = one_device if shardings is None else at(shardings, path)
            at(params, path[:-1])[path[-1]] = self.read(path, sharding=sharding, dtype=dtype)
            done += math.prod(shape)
            if progress is not None:
                progress(done, total)
        return params


def _load_stack(checkpoint: "_Checkpoint", entry: Entry, shape, dtype: np.dtype, sharding) -> jax.Array:
    # Devices that hold the same block (replicas) share one reading of it.
    holders: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in holders.items():
        block = _read_block(checkpoint, entry, shape, [slice(*ends) for ends in bounds], dtype)
        places = [jax.sharding.SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in devices]
        shards += jax.block_until_ready([jax.device_put(block, place) for place in places])
        del block  # before the next is made
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read_block(checkpoint: "_Checkpoint", entry: Entry, shape, block: list[slice], dtype: np.dtype) -> np.ndarray:
    out = np.empty([part.stop - part.start for part in block], dtype)
    if not entry.layered:
        out[...] = entry.ours(checkpoint.read(entry.name, entry.stored_block(block, shape)), out.shape)
        return out
    layers, *inner = block
    within = entry.stored_block(inner, shape[1:])
    for row, layer in enumerate(range(layers.start, layers.stop)):
        out[row] = entry.ours(checkpoint.read(entry.name.format(layer=layer), within), out.shape[1:])
    return out


def check_vocab(tokenizer: Tokenizer, config: params_lib.ModelConfig) -> None:
    """Refuses a tokenizer that has ids without an embedding; embeddings without an id are fine (padded tables).

    Raises:
      UserError: the tokenizer's vocabulary is larger than the model's.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model embeds {config.vocab_size}; "
            "use the tokenizer that came with the model."
        )


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor is and what its file's header says of it."""

    path: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Checkpoint:
    """Which file holds which tensor of a folder, by the files' headers."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._tensors: dict[str, _Stored] = {}
        for path in weight_files.of_folder(folder):
            with weight_files.opened(path) as file:
                for name in file.keys():
                    header = file.get_slice(name)
                    stored = _Stored(path, name, header.get_dtype(), tuple(header.get_shape()))
                    first = self._tensors.setdefault(_text_name(name), stored)
                    if first is not stored:
                        both = f"{_named(first.name)} of {first.path.name} and as {_named(name)} of {path.name}"
                        raise UserError(
                            f"{folder} holds {_named(_text_name(name))} twice, as {both}; remove the files that are "
                            "not of this model."
                        )

    def differ(self, one: str, other: str, shape: tuple[int, int]) -> bool:
        """Whether two tables are there, of a shape and of floats, and not equal. Reads them up to where they part."""
        both = [self._tensors[name] for name in (one, other) if name in self._tensors]
        right = all(each.shape == shape and each.dtype in _FLOATS for each in both)
        if len(both) < 2 or not right:
            return False
        count, width = shape
        step = max(1, _COMPARED_BYTES // (4 * width))
        for start in range(0, count, step):
            block = (slice(start, min(start + step, count)),)
            a, b = (self.read(name, block).astype(np.float32) for name in (one, other))
            if not np.array_equal(a, b, equal_nan=True):
                return True
        return False

    def check(self, config: params_lib.ModelConfig) -> None:
        if config.tie_embeddings and _HEAD in self._tensors:
            self._tensors.setdefault(_EMBED, self._tensors[_HEAD])
            self._check_tensor(_HEAD, expected=params_lib.param_shapes(config)["embed"].shape)
        shapes = {entry.path: shape[entry.layered :] for entry, shape in entries(config)}
        names = set()
        for entry, _, name in checkpoint_names(config):
            self._check_tensor(name, expected=entry.stored_shape(shapes[entry.path]))
            names.add(name)
        self._refuse_superfluous(names)

    def _check_tensor(self, name: str, *, expected: tuple[int, ...]) -> None:
        if name not in self._tensors:
            one = "of one model, or tie_word_embeddings be true" if name == _HEAD else "of one model"
            raise UserError(f"{self._folder} has no tensor {name}; its config.json and weights must be {one}.")
        stored = self._tensors[name]
        if stored.dtype not in _FLOATS:
            raise UserError(
                f"{stored.path}: {name} is {stored.dtype}; weights are read as one of {', '.join(_FLOATS)}, "
                "so use a model folder that is not quantised."
            )
        if stored.shape != expected:
            raise UserError(
                f"{stored.path}: {name} has shape {shown(stored.shape)}, config.json asks for {expected}; "
                "they must be of one model."
            )

    def _refuse_superfluous(self, names: set[str]) -> None:
        """A tensor that nothing reads means another model: more layers, or biases that would be dropped in silence."""
        allowed = {*names, _HEAD}  # some tied checkpoints repeat the embedding under this name
        multimodal = any(stored.name != name for name, stored in self._tensors.items())
        for name in sorted(self._tensors):
            if multimodal and name.removeprefix("model.").startswith(_OTHER_MODALITIES):
                continue
            if name not in allowed and not name.endswith("rotary_emb.inv_freq"):
                raise UserError(
                    f"{self._tensors[name].path} holds {_named(name)}, which config.json does not account for; "
                    "its config.json and weights must be of one model."
                )

    def read(self, name: str, block: tuple[slice, ...]) -> np.ndarray:
        """A block of a checked tensor.

        The file is opened for each: it is mapped into memory, and what was read would count as held until it closes.
        """
        stored = self._tensors[name]
        with weight_files.opened(stored.path) as file:
            return file.get_slice(stored.name)[block]


def _named(name: str) -> str:
    return shown(name)[1:-1]


def _text_name(name: str) -> str:
    for prefix, plain in _TEXT:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What a nested dict holds under a path of keys."""
    for key in path:
        tree = tree[key]
    return tree
