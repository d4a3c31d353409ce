"""One decoder-only transformer for every supported family (Llama, Mistral, Qwen, SmolLM2, Gemma): a family is a config.

Flax NNX holds the parameter structure: names, shapes, initialisation, logical axes; arrays of all layers are stacked on
a leading axis. `forward` computes with the nested dict of arrays that `init_params` returns.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from cgrpo_jax.errors import UserError

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are slowed for a longer context.

    Attributes:
      factor: by how much, at most.
      low_freq_factor, high_freq_factor: turns over the original context (Llama 3: frequencies of fewer than `low` are
        slowed by the whole factor, of more than `high` are kept, of those between blended). Both 0: all are slowed
        (linear scaling, Gemma 3).
      original_max_position: tokens of the original context; 0 for linear scaling.
    """

    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_position: int = 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. The defaults are Llama's; the fields named after a family are what sets it apart.

    Attributes:
      rope_theta, rope_scaling: of the rotary embeddings.
      local_rope_theta: base of those of local layers, never scaled (Gemma 3); None: as the other layers'.
      attention_bias: biases on q, k and v (Qwen2.5).
      qk_norm: RMS norm over each head of q and k (Qwen3, Gemma 3).
      query_scale: multiplies q before attention; None is `head_dim ** -0.5` (Gemma has its own).
      local_layers: one bool a layer, true where it sees the last `window` tokens only, itself included (Mistral 7B
        v0.1, Gemma); empty: no layer is local.
      window: tokens that a local layer sees.
      activation: of the gated MLP, "silu" or "gelu_tanh" (Gemma).
      norm_offset: added to every norm's scale (Gemma: 1, so that stored scales are centred at 0).
      post_norms: RMS norms also after attention and after the MLP, before they join the residual stream (Gemma).
      scale_embeddings: token embeddings are multiplied by `sqrt(embed_dim)` (Gemma).
      attention_softcap, logit_softcap: `c tanh(x / c)` over attention scores and over logits (Gemma 2); 0: none.
      max_context: the longest sequence (tokens) that the model was made for.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    norm_eps: float = 1e-6
    attention_bias: bool = False
    qk_norm: bool = False
    query_scale: float | None = None
    local_layers: tuple[bool, ...] = ()
    window: int = 0
    activation: str = "silu"
    norm_offset: float = 0.0
    post_norms: bool = False
    scale_embeddings: bool = False
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    tie_embeddings: bool = True
    max_context: int = 2048

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}; use a divisor of it."
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even one.")
        if self.local_layers and (len(self.local_layers) != self.num_layers or self.window < 1):
            raise UserError(
                f"local_layers names {len(self.local_layers)} of {self.num_layers} layers, with a window of "
                f"{self.window} tokens; name each layer, with a window of at least 1."
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation {self.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}.")


class Transformer(nnx.Module):
    """The parameters of a model: one `nnx.Param` a tensor, those of the layers stacked on a leading axis.

    Every parameter carries its logical axis names as metadata (`logical_axes`), which a sharding table maps to a mesh.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        c = config

        def param(shape, axes, fan_in=None):
            if fan_in is None:  # a norm's scale
                return nnx.Param(jnp.full(shape, 1.0 - c.norm_offset, jnp.float32), logical_axes=axes)
            init = jax.nn.initializers.normal(fan_in**-0.5)
            return nnx.Param(init(rngs.params(), shape), logical_axes=axes)

        def bias(shape, axes):
            return nnx.Param(jnp.zeros(shape), logical_axes=axes)

        def heads(n, name):
            return (c.num_layers, c.embed_dim, n, c.head_dim), ("layers", "embed", name, "head_dim"), c.embed_dim

        per_layer = (c.num_layers, c.embed_dim)
        # Written in the order in which a layer uses them.
        layers = {
            "attn_norm": param(per_layer, ("layers", "norm")),
            "q": param(*heads(c.num_heads, "heads")),
            "k": param(*heads(c.num_kv_heads, "kv_heads")),
            "v": param(*heads(c.num_kv_heads, "kv_heads")),
        }
        if c.attention_bias:
            layers["q_bias"] = bias((c.num_layers, c.num_heads, c.head_dim), ("layers", "heads", "head_dim"))
            for name in ("k_bias", "v_bias"):
                layers[name] = bias((c.num_layers, c.num_kv_heads, c.head_dim), ("layers", "kv_heads", "head_dim"))
        if c.qk_norm:
            layers["q_norm"] = param((c.num_layers, c.head_dim), ("layers", "head_dim"))
            layers["k_norm"] = param((c.num_layers, c.head_dim), ("layers", "head_dim"))
        # The two projections that write to the residual stream start smaller by sqrt(2 L), so that its variance at
        # the last layer does not depend on depth (GPT-2).
        residual = 2 * c.num_layers
        o_shape = (c.num_layers, c.num_heads, c.head_dim, c.embed_dim)
        o_axes = ("layers", "heads", "head_dim", "embed")
        layers["o"] = param(o_shape, o_axes, c.num_heads * c.head_dim * residual)
        if c.post_norms:
            layers["post_attn_norm"] = param(per_layer, ("layers", "norm"))
        layers["mlp_norm"] = param(per_layer, ("layers", "norm"))
        layers["gate"] = param((*per_layer, c.mlp_dim), ("layers", "embed", "mlp"), c.embed_dim)
        layers["up"] = param((*per_layer, c.mlp_dim), ("layers", "embed", "mlp"), c.embed_dim)
        layers["down"] = param((c.num_layers, c.mlp_dim, c.embed_dim), ("layers", "mlp", "embed"), c.mlp_dim * residual)
        if c.post_norms:
            layers["post_mlp_norm"] = param(per_layer, ("layers", "norm"))

        self.embed = param((c.vocab_size, c.embed_dim), ("vocab", "embed"), 50**2)  # normal(0.02)
        self.layers = nnx.Dict(layers)
        self.final_norm = param((c.embed_dim,), ("norm",))
        if not c.tie_embeddings:
            self.unembed = param((c.vocab_size, c.embed_dim), ("vocab", "embed"), c.embed_dim)


def init_params(config: ModelConfig, *, seed: int, shardings: dict | None = None) -> dict:
    """Returns freshly initialised float32 parameters as a nested dict of arrays.

    Args:
      config: the model's shape.
      seed: of the random numbers, which are the same wherever they lie.
      shardings: a `jax.sharding.Sharding` for each parameter; by default all lie on the default device.
    """

    def make():
        return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=seed)), nnx.Param))

    return make() if shardings is None else jax.jit(make, out_shardings=shardings)()


def param_shapes(config: ModelConfig) -> dict:
    """Returns the structure of `init_params` with `jax.ShapeDtypeStruct` leaves; allocates nothing."""
    return jax.eval_shape(lambda: init_params(config, seed=0))


def num_params(config: ModelConfig) -> int:
    """Returns the number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config)))


def logical_axes(config: ModelConfig) -> dict:
    """Returns the structure of `init_params` with each array's axis names, such as `("layers", "embed", "mlp")`."""
    state = nnx.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(params=0)), nnx.Param))
    named = jax.tree.map(
        lambda variable: variable.get_metadata("logical_axes"), state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    return nnx.to_pure_dict(named)


def axes_like(config: ModelConfig, params: dict) -> dict:
    """Returns the axis names of each array of `params`, which may be weights, adapters (lora.py), or both together."""
    axes = logical_axes(config)
    layers = axes["layers"]

    def of_layer(name: str) -> tuple[str, ...]:
        weight, _, half = name.partition("_lora_")
        inputs, outputs = split_axes(weight, layers[weight])
        return {"": layers[weight], "a": (*inputs, "lora"), "b": (inputs[0], "lora", *outputs)}[half]

    split = isinstance(params["layers"], tuple)  # one dict a layer (decoding.py)
    stacked = {name: of_layer(name) for name in (params["layers"][0] if split else params["layers"])}
    one = {name: names[1:] for name, names in stacked.items()}
    return {name: axes[name] for name in params} | {"layers": (one,) * config.num_layers if split else stacked}


def split_axes(name: str, axes: tuple) -> tuple[tuple, tuple]:
    """Returns the axes of a projection `layers[name]` as (layers and inputs, outputs)."""
    count = 3 if name == "o" else 2  # o alone reads heads, which are two axes
    return axes[:count], axes[count:]
