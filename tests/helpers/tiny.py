"""Tiny models of every supported family, and a transformer written out plainly to hold them to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.models.params import ModelConfig, RopeScaling, param_shapes

_SMALL = ModelConfig(
    vocab_size=61,
    num_layers=2,
    embed_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    max_context=64,
)
_GEMMA = dataclasses.replace(
    _SMALL, activation="gelu_tanh", norm_offset=1.0, post_norms=True, scale_embeddings=True, window=5
)
FAMILIES = {
    "smollm2": _SMALL,
    "llama": dataclasses.replace(
        # The original context is short enough for frequencies to be kept, blended and slowed.
        _SMALL,
        rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16),
        tie_embeddings=False,
        norm_eps=1e-5,
    ),
    "qwen2.5": dataclasses.replace(_SMALL, attention_bias=True, rope_theta=1e6),
    "qwen3": dataclasses.replace(_SMALL, qk_norm=True, rope_theta=1e6, tie_embeddings=False),
    "mistral": dataclasses.replace(_SMALL, local_layers=(True, True), window=4, tie_embeddings=False),
    "gemma2": dataclasses.replace(
        _GEMMA,
        query_scale=12**-0.5,
        local_layers=(True, False),
        attention_softcap=2.0,
        logit_softcap=3.0,
    ),
    "gemma3": dataclasses.replace(
        _GEMMA,
        num_layers=3,
        qk_norm=True,
        local_layers=(True, False, True),
        rope_theta=1e6,
        rope_scaling=RopeScaling(factor=8.0),
        local_rope_theta=1e4,
    ),
}
# No family has all of this; a test that compiles much uses it in place of every family.
EVERYTHING = dataclasses.replace(
    FAMILIES["llama"],
    attention_bias=True,
    qk_norm=True,
    post_norms=True,
    local_layers=(True, False),
    window=5,
    local_rope_theta=1e3,
    attention_softcap=5.0,
    logit_softcap=6.0,
)


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Weights far from their initial values: norms not 1, biases not 0, attention and output far from uniform."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name.endswith("norm"):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape) - config.norm_offset, jnp.float32)
        if name.endswith("bias"):
            return jnp.asarray(rng.normal(0, 1, shape), jnp.float32)
        fan_in = shape[1] if name in "qkv" else np.prod(shape[1:-1])
        scale = 0.4 if "embed" in name else 2 / np.sqrt(fan_in)
        return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, _shapes(config))


_shapes = functools.cache(param_shapes)


def plain_logits(params: dict, config: ModelConfig, tokens) -> np.ndarray:
    """`[S, V]` logits of one sequence: one head at a time, rotations as complex numbers, no cache, no packing.

    NumPy in float64: nothing is compiled, and finite differences of it are exact to many digits.
    """
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    distance = np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens)))

    def turns(local):
        own_base = local and config.local_rope_theta
        theta = config.local_rope_theta if own_base else config.rope_theta
        frequency = theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        s = config.rope_scaling
        if s and not own_base and not s.original_max_position:
            frequency = frequency / s.factor
        elif s and not own_base:
            wavelength = 2 * np.pi / frequency
            smooth = s.original_max_position / wavelength - s.low_freq_factor
            smooth = smooth / (s.high_freq_factor - s.low_freq_factor)
            blended = (1 - smooth) * frequency / s.factor + smooth * frequency
            slow = wavelength > s.original_max_position / s.low_freq_factor
            fast = wavelength < s.original_max_position / s.high_freq_factor
            frequency = np.where(slow, frequency / s.factor, np.where(fast, frequency, blended))
        return np.exp(1j * np.outer(np.arange(len(tokens)), frequency))

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * (config.norm_offset + scale)

    def capped(x, cap):
        return cap * np.tanh(x / cap) if cap else x

    def activation(x):
        if config.activation == "silu":
            return x / (1 + np.exp(-x))
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def rotated(x, turn):
        z = (x[:, : config.head_dim // 2] + 1j * x[:, config.head_dim // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=1)

    def softmax(x):
        weight = np.exp(x - x.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)

    x = params["embed"][np.asarray(tokens)] * (config.embed_dim**0.5 if config.scale_embeddings else 1)
    query_scale = config.query_scale or config.head_dim**-0.5
    for i in range(config.num_layers):
        p = {name: value[i] for name, value in params["layers"].items()}
        local = bool(config.local_layers) and config.local_layers[i]
        unseen, turn = (distance < 0) | (local & (distance >= config.window)), turns(local)
        h, update = norm(x, p["attn_norm"]), 0
        for head in range(config.num_heads):
            shared = head * config.num_kv_heads // config.num_heads
            q, k, v = h @ p["q"][:, head], h @ p["k"][:, shared], h @ p["v"][:, shared]
            if config.attention_bias:
                q, k, v = q + p["q_bias"][head], k + p["k_bias"][shared], v + p["v_bias"][shared]
            if config.qk_norm:
                q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
            score = capped(rotated(q, turn) @ rotated(k, turn).T * query_scale, config.attention_softcap)
            update = update + softmax(np.where(unseen, -np.inf, score)) @ v @ p["o"][head]
        x = x + (norm(update, p["post_attn_norm"]) if config.post_norms else update)
        h = norm(x, p["mlp_norm"])
        update = (activation(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
        x = x + (norm(update, p["post_mlp_norm"]) if config.post_norms else update)
    unembed = params["embed"] if config.tie_embeddings else params["unembed"]
    return capped(norm(x, params["final_norm"]) @ unembed.T, config.logit_softcap)


def plain_logprobs(params: dict, config: ModelConfig, context, target, temperature: float = 1.0) -> np.ndarray:
    """`[T]` log-probabilities (nats) of `target` after `context`, from the whole logits."""
    tokens = np.concatenate([context, target])
    logits = plain_logits(params, config, tokens)[len(context) - 1 : -1] / temperature
    logits = logits - logits.max(-1, keepdims=True)
    return logits[np.arange(len(target)), np.asarray(target)] - np.log(np.exp(logits).sum(-1))
