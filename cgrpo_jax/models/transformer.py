"""What a transformer computes, as pure functions of `(params, tokens)`; decoding.py does it with a cache.

Layers are scanned, so compile time does not grow with depth. All that differs between families is in `ModelConfig`.

On a mesh (sharding.py) these functions run in `jax.shard_map` on one device's part of the weights and rows. What fsdp
cut is gathered before a layer uses it. What tensor cut is computed in parts: heads and MLP are added up after `o` and
`down`, and each device has the logits of its part of the vocabulary. In training and scoring a device of the tensor
axis has only its share of the tokens between these products, where they divide (sequence parallelism, arXiv
2205.05198), so that norms, residuals and what is stored of them are cut as well: tokens are gathered before a product,
and its parts are added up and dealt out at once.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from cgrpo_jax import sharding
from cgrpo_jax.models.attention import ATTENDED, choose, packed_attention, softcap
from cgrpo_jax.models.params import ModelConfig, axes_like

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}
# Names of what a layer's products with its weights give: those wide ones of the MLP, and the others.
_WIDE, _PRODUCT = "wide", "product"
# What the forward pass stores of a layer besides its input, by `remat`; the rest is computed again: `hidden_states`.
_STORED = {"none": (ATTENDED, _PRODUCT, _WIDE), "mlp": (ATTENDED, _PRODUCT), "layer": ()}
REMAT = tuple(_STORED)


def unembedding(params: dict, config: ModelConfig, dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
    """Returns the `[V, D]` matrix that maps final hidden states to logits, before the soft-cap if there is one.

    In its own dtype, or in the one given.
    """
    table = _cast(params["unembed"] if "unembed" in params else params["embed"], dtype)
    return sharding.gather(table, ("vocab", "embed"), config.embed_dim)


def _cast(tree, dtype: jax.typing.DTypeLike | None):
    return tree if dtype is None else jax.tree.map(lambda x: x.astype(dtype), tree)


def logits(params: dict, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Returns the float32 logits `[..., V]` of final hidden states `[..., D]`."""
    z = jnp.einsum("...d,vd->...v", hidden, unembedding(params, config), preferred_element_type=jnp.float32)
    return softcap(z, config.logit_softcap)


# --- the maths of one layer ---------------------------------------------------------------------------------------


def rms_norm(config: ModelConfig, x, scale):
    """Returns `x / rms(x)`, scaled."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.norm_eps)
    if config.norm_offset:  # added and multiplied in float32, as Gemma was trained
        return (x32 * (scale.astype(jnp.float32) + config.norm_offset)).astype(x.dtype)
    return x32.astype(x.dtype) * scale


def rope_frequencies(config: ModelConfig, *, local: bool = False):
    half = config.head_dim // 2
    own_theta = config.local_rope_theta if local else None
    theta = config.rope_theta if own_theta is None else own_theta
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    s = config.rope_scaling if own_theta is None else None
    if s is None:
        return frequency
    if not s.original_max_position:
        return frequency / s.factor
    # Rotations that complete more than `high` turns over the original context are kept, those that complete fewer
    # than `low` are slowed by `factor`, and those between are blended (Llama 3.1, section 3.4.1 of its report).
    turns = s.original_max_position * frequency / (2 * math.pi)
    keep = jnp.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    return frequency * (keep + (1 - keep) / s.factor)


def rotate(x_BSHK, cos_BSK, sin_BSK):
    """Applies rotary embeddings; the two halves of a head form the pairs, as in Llama's released weights."""
    left, right = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BSK[:, :, None], sin_BSK[:, :, None]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x_BSHK.dtype)


def _einsum(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns `einsum(spec, x, w)`, whose gradient takes the operands in an order that suits CPUs.

    JAX would take the gradient of w as `g^T x`, transposed: XLA:CPU then computes what g is made of column by column.
    """
    return jnp.einsum(spec, x, w)


def _product_forward(spec, x, w):
    return _product(spec, x, w), (x, w)


def _product_backward(spec, operands, g):
    x, w = operands
    inputs, result = spec.split("->")
    rows, weight = inputs.split(",")
    return jnp.einsum(f"{result},{weight}->{rows}", g, w), jnp.einsum(f"{rows},{result}->{weight}", x, g)


_product = jax.custom_vjp(_einsum, nondiff_argnums=(0,))
_product.defvjp(_product_forward, _product_backward)


def _project(spec: str, p: dict, name: str, x, *, stored_as: str = _PRODUCT):
    """Returns `x W`, with LoRA `x W + (x A) B`: A maps the inputs of `spec` to r numbers, B those to its outputs."""
    out = _product(spec, sharding.varying_like(x, p[name]), sharding.varying_like(p[name], x))
    if f"{name}_lora_a" not in p:
        return checkpoint_name(out, stored_as)
    inputs, result = spec.split("->")
    rows, weight = inputs.split(",")
    contracted = "".join(axis for axis in weight if axis not in result)
    outputs = weight.replace(contracted, "")
    low = jnp.einsum(f"{rows},{contracted}r->bsr", x, p[f"{name}_lora_a"])
    return checkpoint_name(out + jnp.einsum(f"bsr,r{outputs}->{result}", low, p[f"{name}_lora_b"]), stored_as)


def _sum_of_parts(out_BSD, own: int, whole: int, like_BSD):
    """Returns products summed over the devices that have a part each, for the tokens that `like_BSD` has.

    Stored, or backward would add them up again.
    """
    if like_BSD.shape[:2] == out_BSD.shape[:2]:
        return checkpoint_name(sharding.sum_if_cut(out_BSD, own, whole), _PRODUCT)
    return checkpoint_name(sharding.share_of_sum(out_BSD, own, whole, like_BSD.shape[1]), _PRODUCT)


def _project_to_heads(p: dict, name: str, x_BSD, *, as_stored: bool):
    """Returns `x W` by heads; as_stored, with the weights read in the order in which they lie.

    What is done with each head afterwards, XLA:TPU would fuse with the product, for which it wants the heads first: it
    would hold those weights of all layers once more. Flat, and with a barrier behind it, the product is by itself.
    """
    if not as_stored:
        return _project("bsd,dhk->bshk", p, name, x_BSD)
    out = jax.lax.optimization_barrier(_flat_product(p, name, x_BSD))
    return out.reshape(*out.shape[:2], *p[name].shape[1:])


def _flat_product(p: dict, name: str, x_BSD):
    w_DHK = p[name]
    return jnp.einsum("bsd,df->bsf", x_BSD, w_DHK.reshape(len(w_DHK), -1))


def apply_layer(config: ModelConfig, p: dict, x_BSD, rope, attend: Callable, *, as_stored: bool = False):
    """One transformer layer. `attend(q, k, v) -> (out, aux)` is all that differs between training and decoding.

    `x_BSD` may be this device's share of the tokens that `rope` is of, `[1, N, D]`: then so is the result.

    With as_stored, for stacked weights without adapters, the weights of q, k and v are not laid out again.
    """
    p = _own_kv_heads(config, p)
    h = sharding.gather_tokens(rms_norm(config, x_BSD, p["attn_norm"]), rope[0].shape[:2])
    q = _project_to_heads(p, "q", h, as_stored=as_stored)
    k = _project_to_heads(p, "k", h, as_stored=as_stored)
    v = _project_to_heads(p, "v", h, as_stored=as_stored)
    if config.attention_bias:
        q, k, v = q + p["q_bias"], k + p["k_bias"], v + p["v_bias"]
    if as_stored:
        q, k = _normed_together(config, p, q, k, rope)
    else:
        if config.qk_norm:
            q, k = rms_norm(config, q, p["q_norm"]), rms_norm(config, k, p["k_norm"])
        q, k = rotate(q, *rope), rotate(k, *rope)
    out, aux = attend(q, k, v)
    return _after_attention(config, p, x_BSD, out, rope[0].shape[:2]), aux


def apply_flat_layer(config: ModelConfig, p: dict, x_BSD, attend: Callable):
    """The same, for stacked weights without adapters, with an `attend` that norms and rotates by itself.

    It is called with the layer's weights and its products as they are, `[B, S, heads * head_dim]`.
    """
    p = _own_kv_heads(config, p)
    h = rms_norm(config, x_BSD, p["attn_norm"])
    flat = [_flat_product(p, name, h) for name in "qkv"]
    if config.attention_bias:
        flat = [x + p[f"{name}_bias"].reshape(-1) for name, x in zip("qkv", flat, strict=True)]
    out, aux = attend(p, *flat)
    return _after_attention(config, p, x_BSD, out, x_BSD.shape[:2]), aux


def _after_attention(config: ModelConfig, p: dict, x_BSD, out, rows):
    """Returns what a layer gives, from what its attention does."""
    norm = functools.partial(rms_norm, config)
    out = _sum_of_parts(_project("bshk,hkd->bsd", p, "o", out), p["o"].shape[0], config.num_heads, x_BSD)
    x_BSD = x_BSD + (norm(out, p["post_attn_norm"]) if config.post_norms else out)
    h = sharding.gather_tokens(norm(x_BSD, p["mlp_norm"]), rows)
    gate, up = (_project("bsd,df->bsf", p, name, h, stored_as=_WIDE) for name in ("gate", "up"))
    h = _ACTIVATIONS[config.activation](gate) * up
    out = _sum_of_parts(_project("bsf,fd->bsd", p, "down", h), p["down"].shape[0], config.mlp_dim, x_BSD)
    return x_BSD + (norm(out, p["post_mlp_norm"]) if config.post_norms else out)


def _normed_together(config: ModelConfig, p: dict, q_BSHK, k_BSGK, rope):
    """Returns queries and keys, normed and rotated as one array, for which a chip runs half as many operations."""
    both, H = jnp.concatenate([q_BSHK, k_BSGK], axis=2), q_BSHK.shape[2]
    if config.qk_norm:
        is_query = np.broadcast_to(np.arange(both.shape[2])[:, None] < H, both.shape[2:])
        both = rms_norm(config, both, jnp.where(is_query, p["q_norm"], p["k_norm"]))
    both = rotate(both, *rope)
    return both[:, :, :H], both[:, :, H:]


def _own_kv_heads(config: ModelConfig, p: dict) -> dict:
    """Keeps the key/value heads that this device's query heads read, where tensor cut only these."""
    own_heads, K = p["q"].shape[-2], p["k"].shape[-2]
    if own_heads == config.num_heads or K < config.num_kv_heads:
        return p
    group = config.num_heads // config.num_kv_heads
    first = sharding.part_of(own_heads, config.num_heads)
    if group % own_heads == 0:  # they all read the same one
        own = first // group + jnp.arange(1)
    else:
        own = (first + jnp.arange(own_heads)) // group
    names = [f"{name}{part}" for name in "kv" for part in ("", "_bias", "_lora_b")]
    return p | {name: jnp.take(p[name], own, axis=-2) for name in names if name in p}


def embed(params: dict, config: ModelConfig, tokens):
    """Returns the embeddings of tokens."""
    x, table_size = _own_words(params, config, tokens)
    return _scaled(config, sharding.sum_if_cut(x, table_size, config.vocab_size))


def _embed_share(params: dict, config: ModelConfig, tokens_BS, num_tokens: int):
    """Returns the embeddings `[1, num_tokens, D]` of this device's share of the tokens."""
    x_BSD, table_size = _own_words(params, config, tokens_BS)
    return _scaled(config, sharding.share_of_sum(x_BSD, table_size, config.vocab_size, num_tokens))


def _own_words(params: dict, config: ModelConfig, tokens):
    """Returns the embeddings of tokens, 0 where another device has the word, and how many words this one has."""
    table = sharding.gather(params["embed"], ("vocab", "embed"), config.embed_dim)
    own = tokens - sharding.part_of(len(table), config.vocab_size)
    here = (own >= 0) & (own < len(table))
    return jnp.where(here[..., None], table[jnp.where(here, own, 0)], 0), len(table)


def _scaled(config: ModelConfig, x):
    # Gemma rounds the factor to the weights' dtype.
    return x * jnp.asarray(math.sqrt(config.embed_dim), x.dtype) if config.scale_embeddings else x


def local_layers(config: ModelConfig):
    """Which layers are local, as an array to scan over; None where no layer is."""
    return jnp.asarray(config.local_layers) if any(config.local_layers) else None


def rotations(config: ModelConfig, positions_BS, *, needed=None) -> Callable:
    """Returns `local -> (cos_BSK, sin_BSK)`.

    Args:
      config, positions_BS: the model, and the positions of its tokens.
      needed: for layers that are written out, a traced bool: False where the result is not looked at. XLA:CPU computes
        cosines again for each head of each such layer, unless they come out of a condition.
    """

    def turns(local: bool):
        angle = positions_BS[..., None].astype(jnp.float32) * rope_frequencies(config, local=local)
        if needed is None:
            return jnp.cos(angle), jnp.sin(angle)
        return jax.lax.cond(needed, lambda: (jnp.cos(angle), jnp.sin(angle)), lambda: (angle, angle))

    everywhere = turns(False)
    if config.local_rope_theta is None or not any(config.local_layers):
        return lambda local: everywhere
    return functools.partial(choose, if_local=turns(True), if_not=everywhere)


def gatherer(params: dict, config: ModelConfig) -> Callable[[dict], dict]:
    """Returns what gathers one layer's weights."""
    axes = axes_like(config, params)["layers"]
    return lambda p: {name: sharding.gather(leaf, axes[name][1:], config.embed_dim) for name, leaf in p.items()}


# --- training -----------------------------------------------------------------------------------------------------


def hidden_states(
    params: dict,
    config: ModelConfig,
    tokens_BS,
    positions_BS,
    segments_BS,
    *,
    prompts_BS=None,
    remat: str = "none",
    kernel: str = "blocks",
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Full forward pass over packed rows.

    Args:
      params: as `init_params` returns them.
      config: the model's shape.
      tokens_BS: int32 tokens.
      positions_BS: int32 rotary positions.
      segments_BS: int32; a token attends to earlier tokens of its own segment (0 is padding),
      prompts_BS: int32; and to those of the segment named here, where it is not 0. None: no token does.
      kernel: of attention, as for `packed_attention`.
      remat: what of a layer is computed again in the backward pass instead of being stored. "none": only what is
        element-wise, such as norms; "mlp": also the MLP's products with `gate` and `up`; "layer": all of it. What was
        gathered is never stored, but gathered again: weights over fsdp, tokens over tensor.
      dtype: what is computed in: each layer's weights are cast when it is its turn. None: in the weights' own.

    Returns:
      `[B, S, D]` hidden states after the final norm; `logits` maps them to logits.

    Raises:
      ValueError: an unknown `remat`.
    """
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r} is unknown; use one of {', '.join(REMAT)}.")
    attend = packed_attention(config, positions_BS, segments_BS, prompts_BS=prompts_BS, kernel=kernel)
    rope = rotations(config, positions_BS)
    gather = gatherer(params, config)

    def layer(x, xs):
        p, local = xs
        return apply_layer(config, gather(_cast(p, dtype)), x, rope(local), attend(local))[0], None

    # Gathered weights have no name: those of all layers would be the whole model.
    stored = jax.checkpoint_policies.save_only_these_names(*_STORED[remat])
    layer = jax.checkpoint(layer, prevent_cse=False, policy=stored)
    words = {"embed": _cast(params["embed"], dtype)}
    share = _share(params["layers"], config, tokens_BS.size)
    x = _embed_share(words, config, tokens_BS, share) if share else embed(words, config, tokens_BS)
    x, _ = jax.lax.scan(layer, x, (params["layers"], local_layers(config)))
    return sharding.gather_tokens(rms_norm(config, x, _cast(params["final_norm"], dtype)), tokens_BS.shape, alike=True)


def _share(layers: dict, config: ModelConfig, num_tokens: int) -> int:
    """Returns how many tokens a device of the tensor axis has between a layer's products; 0: all, as the others do."""
    _, own_heads, _, _ = layers["o"].shape
    _, own_mlp, _ = layers["down"].shape
    tensor = config.num_heads // own_heads
    # Where each device computes a whole product, there are no parts to add up and deal out.
    cut = tensor > 1 and own_mlp < config.mlp_dim
    return num_tokens // tensor if cut and num_tokens % tensor == 0 else 0
