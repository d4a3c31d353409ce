"""Low-rank adapters (LoRA): frozen weights, and for each adapted projection two small matrices that are trained.

`y = x W + (alpha / rank) (x A) B`, with A drawn at random and B zero, so that training starts from the frozen model
(Hu et al., https://arxiv.org/abs/2106.09685, section 4.1). Adapters are a pytree of their own, keyed like the weights:
what trains them (gradients, optimiser, checkpoints) sees nothing else.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import struct

from cgrpo_jax.errors import UserError
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.runtime import files

# Our name of each projection that can have an adapter, and Hugging Face's within a layer.
TARGETS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NAMES = {path.rpartition(".")[2]: name for name, path in TARGETS.items()}
_A, _B = "_lora_a", "_lora_b"


def our_targets(given: Sequence[str]) -> tuple[str, ...]:
    """Returns targets by our names, each once; what no projection is called stays as it is.

    Example:
      >>> our_targets(["q_proj", "v"]), our_targets(["all-linear"])
      (('q', 'v'), ('q', 'k', 'v', 'o', 'gate', 'up', 'down'))
    """
    if list(given) == ["all-linear"]:
        return tuple(TARGETS)
    return tuple(dict.fromkeys(_NAMES.get(name, name) for name in given))


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Which projections have an adapter, and how strong it is.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the product is multiplied by `scale = alpha / rank`, so that another rank needs no other learning rate.
      targets: names from `TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"LoRA rank {self.rank} is below 1; use a small positive one, such as 16.")
        if self.alpha <= 0:
            raise UserError(f"LoRA alpha {self.alpha} is not above 0; use a positive one, such as the rank.")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            given = f"target {unknown[0]!r} is unknown" if unknown else "has no targets"
            raise UserError(f"LoRA {given}; use some of {', '.join(TARGETS)}, or all-linear.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapters(config: params_lib.ModelConfig, settings: LoraSettings, *, seed: int) -> dict:
    """Returns fresh float32 adapters as a nested dict of arrays, A random and B zero.

    For a target `q` they are `layers["q_lora_a"]` `[L, *inputs, r]` and `layers["q_lora_b"]` `[L, r, *outputs]`.
    """
    weights, layers = params_lib.param_shapes(config)["layers"], {}
    keys = jax.random.split(jax.random.key(seed), len(TARGETS))
    for name, key in zip(TARGETS, keys, strict=True):
        if name in settings.targets:
            (L, *inputs), outputs = params_lib.split_axes(name, weights[name].shape)
            bound = np.prod(inputs) ** -0.5  # as peft draws it: Kaiming's uniform distribution with a = sqrt(5)
            layers[name + _A] = jax.random.uniform(key, (L, *inputs, settings.rank), minval=-bound, maxval=bound)
            layers[name + _B] = jnp.zeros((L, settings.rank, *outputs))
    return {"layers": layers}


def adapter_shapes(config: params_lib.ModelConfig, settings: LoraSettings) -> dict:
    """Returns the structure of `init_adapters` with `jax.ShapeDtypeStruct` leaves; allocates nothing."""
    return jax.eval_shape(lambda: init_adapters(config, settings, seed=0))


@struct.dataclass
class Base:
    """A frozen model that adapters belong to.

    Attributes:
      params: its weights, as `params.init_params` returns them, in any float dtype.
      scale: of the adapters, `LoraSettings.scale`.

    Example:
      base = Base(params, settings.scale)
      state = optimizer.init_state(init_adapters(config, settings, seed=0), optimizer)
      state, _ = update.update(state, rows, base=base, ...)
      generate(base.merge(state.params), ...)
    """

    params: dict
    scale: float = struct.field(pytree_node=False)

    def attach(self, adapters: dict) -> dict:
        """Returns weights whose forward pass computes `x W + (x A) (scale B)`, in the dtype of W.

        Differentiable with respect to `adapters`, of any float dtype.
        """
        layers = dict(self.params["layers"])
        for name, a, b in _pairs(adapters):
            dtype = layers[name].dtype
            layers |= {name + _A: a.astype(dtype), name + _B: (self.scale * b).astype(dtype)}
        return self.params | {"layers": layers}

    def merge(self, adapters: dict) -> dict:
        """Returns weights of the base's structure and dtype that compute the same: `W + scale A B`, for generation."""
        layers = dict(self.params["layers"])
        for name, a, b in _pairs(adapters):
            layers[name] = merge_one(layers[name], a, b, self.scale)
        return self.params | {"layers": layers}


@jax.jit
def merge_one(weight, a, b, scale) -> jax.Array:
    """Returns one projection of all layers with its adapter added, in the dtype of `weight`, rounded once.

    Args:
      weight: `[L, *inputs, *outputs]`.
      a, b: `[L, *inputs, r]` and `[L, r, *outputs]`.
      scale: as `LoraSettings.scale`.
    """

    def one_layer(weight_a_b):
        weight, a, b = (x.astype(jnp.float32) for x in weight_a_b)
        return weight + scale * jnp.tensordot(a, b, axes=1, precision="highest")

    # A layer at a time: the float32 product of all of them would be twice the size of a bfloat16 weight.
    return jax.lax.map(lambda x: one_layer(x).astype(weight.dtype), (weight, a, b))


def _pairs(adapters: dict) -> Iterator[tuple]:
    """Yields (target, A, B)."""
    layers = adapters["layers"]
    for name in TARGETS:
        if name + _A in layers:
            yield name, layers[name + _A], layers[name + _B]


# --- peft's files -------------------------------------------------------------------------------------------------


# Where a model's layers are in transformers 5: alone, or as the text part of a multimodal model.
_LAYERS, _TEXT_LAYERS = "model.layers", "model.language_model.layers"


def peft_config(settings: LoraSettings, *, base_name: str | None, multimodal: bool = False) -> dict:
    """Returns the content of peft's `adapter_config.json`; arguments as in `write_peft`."""
    projections = [TARGETS[name].split(".")[1] for name in TARGETS if name in settings.targets]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        # A list would also name the vision tower's projections; a string is a regular expression for the whole path.
        "target_modules": rf".*language_model\..*\.({'|'.join(projections)})" if multimodal else projections,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def peft_tensors(adapters: dict, *, multimodal: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor of peft's `adapter_model.safetensors`: `lora_A.weight` `[r, in]`, `lora_B.weight` `[out, r]`.

    Heads are flattened into `in` and `out` as Hugging Face flattens them in the weights.
    """
    layers = _TEXT_LAYERS if multimodal else _LAYERS
    for name, a, b in _pairs(adapters):
        for layer, (a_one, b_one) in enumerate(zip(np.asarray(a), np.asarray(b), strict=True)):
            where, rank = f"base_model.model.{layers}.{layer}.{TARGETS[name]}", b_one.shape[0]
            yield f"{where}.lora_A.weight", np.ascontiguousarray(a_one.reshape(-1, rank).T)
            yield f"{where}.lora_B.weight", np.ascontiguousarray(b_one.reshape(rank, -1).T)


def write_peft(
    folder: str | pathlib.Path,
    adapters: dict,
    settings: LoraSettings,
    *,
    base_name: str | None,
    multimodal: bool = False,
) -> None:
    """Writes adapters as a folder that `peft.PeftModel.from_pretrained(base, folder)` reads.

    Args:
      folder: is made, where it does not exist.
      adapters: as `init_adapters` returns them.
      settings: theirs.
      base_name: the base model's folder or hub name.
      multimodal: whether the base is a multimodal model, to whose text part the adapters belong.

    Raises:
      UserError: the folder can't be written.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = dict(peft_tensors(adapters, multimodal=multimodal))
        safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(peft_config(settings, base_name=base_name, multimodal=multimodal), indent=2)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise files.fault(folder, error) from None
