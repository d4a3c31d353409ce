"""Decoding with a cache: a prompt enters many tokens at a time, then every text goes on by one token at a time.

Attention reads the keys and values that a slot holds (kv_cache.py says how they lie), and writes those of its tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cgrpo_jax import sharding
from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.kv_cache import Cache
from cgrpo_jax.models import attention, transformer
from cgrpo_jax.models.params import ModelConfig

_QUERIES = 256  # queries of a continued prompt that attend at once
_MASKED = -1e30  # finite: a block in which a row sees nothing must not give nan


def _scale(cached: dict, name: str, index):
    """Returns the scales of int8 keys or values as `[S, K, 1, 1, T]`."""
    axes = kv_cache.axes_of(name, index)
    return jnp.einsum(f"{axes}->skdt", cached[f"{name}_scale"])[:, :, None]


def _scores(config: ModelConfig, q_SKGWd, cached: dict, index):
    """Returns `[S, K, G, W, T]` float32 scores of queries with cached keys."""
    k = cached["k"].astype(q_SKGWd.dtype)
    score = jnp.einsum(f"skgwd,{kv_cache.axes_of('k', index)}->skgwt", q_SKGWd, k, preferred_element_type=jnp.float32)
    if "k_scale" in cached:
        score *= _scale(cached, "k", index)
    return attention.softcap(score, config.attention_softcap)


def _weigh(weight, cached: dict, index, dtype):
    """Returns `[S, K, G, W, head_dim]` float32 sums of cached values."""
    if "v_scale" in cached:
        weight = weight * _scale(cached, "v", index)
    spec = f"skgwt,{kv_cache.axes_of('v', index)}->skgwd"
    return jnp.einsum(spec, weight.astype(dtype), cached["v"].astype(dtype), preferred_element_type=jnp.float32)


def _seen(config: ModelConfig, local, at_BW, position_T):
    """Returns `[B, 1, 1, W, T]`: whether a query at a position of its text sees another position of it."""
    back = at_BW[:, :, None] - position_T
    seen = back >= 0
    return attention.choose(local, seen & (back < config.window), seen)[:, None, None]


def _grouped(config: ModelConfig, q_BWHd, K: int):
    """Returns queries as `[B, K, G, W, head_dim]`, scaled."""
    B, W, H, head_dim = q_BWHd.shape
    q = (q_BWHd * attention.query_scale(config)).reshape(B, W, K, H // K, head_dim)
    return q.transpose(0, 2, 3, 1, 4)


def _attend_token(config: ModelConfig, q_S1Hd, entry: dict, index, length_S, local, blocks):
    """Returns `[S, 1, H, head_dim]`: attention of one token a slot, at position `length`, to its text up to itself."""
    T, read = kv_cache.length_of(entry, index), kv_cache.read_at_once(split=index is None)
    q = _grouped(config, q_S1Hd, kv_cache.heads_of(entry, index))
    if T <= read:
        cached = kv_cache.read(entry, index, 0, T)
        seen = _seen(config, local, length_S[:, None], jnp.arange(T))
        weight = jax.nn.softmax(jnp.where(seen, _scores(config, q, cached, index), _MASKED), axis=-1)
        out = _weigh(weight, cached, index, q.dtype)
    else:

        def block(i, carry):
            top, mass, out = carry
            cached = kv_cache.read(entry, index, i * read, read)
            seen = _seen(config, local, length_S[:, None], i * read + jnp.arange(read))
            score = jnp.where(seen, _scores(config, q, cached, index), _MASKED)
            new_top = jnp.maximum(top, score.max(-1, keepdims=True))
            weight, kept = jnp.exp(score - new_top), jnp.exp(top - new_top)
            return (
                new_top,
                mass * kept + weight.sum(-1, keepdims=True),
                out * kept + _weigh(weight, cached, index, q.dtype),
            )

        one = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        start = sharding.varying_like((one + _MASKED, one, jnp.zeros(q.shape, jnp.float32)), q, entry["k"])
        _, mass, out = jax.lax.fori_loop(0, blocks, block, start)
        out = out / mass
    return out.astype(q_S1Hd.dtype).reshape(len(q), 1, -1, q.shape[-1])


def _attend_prompt(config: ModelConfig, q_QWHd, new: dict, entry: dict, index, slot_Q, start_Q, local):
    """Returns attention of W new tokens a row to those before them, and to what the slot held before they came."""
    Q, W, H, head_dim = q_QWHd.shape
    T = kv_cache.length_of(entry, index)
    q = _grouped(config, q_QWHd, kv_cache.heads_of(entry, index))
    cached = jax.tree.map(lambda x: x[slot_Q], kv_cache.read(entry, index, 0, T))

    def attend(q, at):
        at = jnp.broadcast_to(at, (Q, len(at)))
        before = _seen(config, local, at + start_Q[:, None], jnp.arange(T))
        before &= (jnp.arange(T) < start_Q[:, None])[:, None, None, None]
        score = jnp.concatenate(
            [
                jnp.where(before, _scores(config, q, cached, index), _MASKED),
                jnp.where(_seen(config, local, at, jnp.arange(W)), _scores(config, q, new, index), _MASKED),
            ],
            axis=-1,
        )
        weight = jax.nn.softmax(score, axis=-1)
        return _weigh(weight[..., :T], cached, index, q.dtype) + _weigh(weight[..., T:], new, index, q.dtype)

    if W <= _QUERIES:
        out = attend(q, jnp.arange(W))
    else:
        # One after another, or the scores of all would take memory at once, and each block its time to compile.
        blocks = -(-W // _QUERIES)
        q = jnp.pad(q, [(0, 0)] * 3 + [(0, blocks * _QUERIES - W), (0, 0)])
        q = jnp.moveaxis(q.reshape(*q.shape[:3], blocks, _QUERIES, head_dim), 3, 0)
        out = jax.lax.map(lambda block: attend(*block), (q, jnp.arange(blocks * _QUERIES).reshape(blocks, -1)))
        out = jnp.moveaxis(out, 0, 3).reshape(*q.shape[1:4], -1, head_dim)[:, :, :, :W]
    out = out.transpose(0, 3, 1, 2, 4)
    return out.astype(q_QWHd.dtype).reshape(Q, W, H, head_dim)


# --- many tokens of a prompt, or one of every text ------------------------------------------------------------------


def run_layers(params: dict, config: ModelConfig, x, cache: Any, apply: Callable, *, stride: int = 1):
    """Runs `apply(x, weights, local, entry, index) -> (x, entry)` over the layers, each with its cache.

    Args:
      params, config: the model.
      x: what enters the first layer.
      cache: stacked, or one entry a layer, as the weights are.
      apply: as above; the index is None where the entry is the layer's own, else the layer's number times `stride`.
      stride: as above.

    Returns:
      (what the last layer gives, the cache in its own buffers)
    """
    if isinstance(params["layers"], tuple):
        out = []
        for i, p in enumerate(params["layers"]):
            local = jnp.bool_(config.local_layers[i]) if any(config.local_layers) else None
            x, entry = apply(x, p, local, cache[i], None)
            out.append(entry)
        return x, tuple(out)

    # The cache is carried and updated in place: as an output of the scan, all of it would be copied. The index is
    # carried as well: as an array to scan over, it would be moved and sliced in each layer.
    def layer(carry, xs):
        x, cache, index = carry
        return (*apply(x, *xs, cache, index), index + stride), None

    start = (x, cache, jnp.int32(0))
    return jax.lax.scan(layer, start, (params["layers"], transformer.local_layers(config)))[0][:2]


def prefill(
    params: dict, config: ModelConfig, cache: Cache, tokens_QW, length_Q, start_Q, slot_Q, number, *, continued: bool
) -> Cache:
    """Writes the keys and values of W tokens a row to the slots, after what they hold up to each row's start.

    Args:
      params, config: the model.
      cache: of the slots.
      tokens_QW: int32 tokens, padded on the right with anything.
      length_Q: int32 true lengths, at least 1.
      start_Q: int32 position of each row's first token; `start + W` is within the slot.
      slot_Q: int32 slot of each row.
      number: int32 scalar; rows from there on are padding, and are not written.
      continued: whether a start may be other than 0. Rows that all begin at 0 do not read the slots.

    Returns:
      the cache, in its own buffers. What is written beyond a row's length is never read.
    """
    Q, W = tokens_QW.shape
    positions_QW = start_Q[:, None] + jnp.arange(W)
    rope = transformer.rotations(config, positions_QW, needed=number > 0 if isinstance(cache, tuple) else None)
    if not continued:
        segments_QW = (jnp.arange(W) < length_Q[:, None]).astype(jnp.int32)
        alone = attention.packed_attention(config, positions_QW, segments_QW)

    def apply(x, p, local, entry, index):
        def attend(q, k, v):
            new = kv_cache.entries(k, v, entry, index)
            # Written before it is read, up to the start only: XLA would copy the cache to read it as it was.
            held = kv_cache.put_prompts(entry, new, index, slot_Q, start_Q, number)
            if continued:
                return _attend_prompt(config, q, new, held, index, slot_Q, start_Q, local), held
            return alone(local)(q, k, v)[0], held

        return transformer.apply_layer(config, p, x, rope(local), attend, as_stored=index is not None)

    return run_layers(params, config, transformer.embed(params, config, tokens_QW), cache, apply)[1]


def step(
    params: dict, config: ModelConfig, cache: Cache, token_S, length_S, live_S, *, blocks: int | jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """Appends one token to every live slot and returns the hidden states that predict the next.

    Args:
      params, config: the model.
      cache: of the slots.
      token_S: int32, the newest token of each slot.
      length_S: int32, tokens that the slot holds without it, which is its position.
      live_S: bool; other slots compute as well, but of them only the last position is written.
      blocks: how many blocks of a long slot are read; by default as many as the longest live text reaches into.

    Returns:
      (`[S, D]` hidden states after the final norm, the cache in its own buffers)
    """
    length_S = jnp.where(live_S, length_S, 0)
    split = isinstance(cache, tuple)
    rope = transformer.rotations(config, length_S[:, None], needed=live_S.any() if split else None)
    last = (kv_cache.length_of(cache[0], None) if split else kv_cache.length_of(cache, 0)) - 1
    # The last position of a slot that is not live is written in vain: no prompt that it may hold for others reaches it.
    position_S = jnp.where(live_S, length_S, last)
    if blocks is None:
        blocks = jnp.max(length_S) // kv_cache.read_at_once(split=split) + 1

    def apply(x, p, local, entry, index):
        def attend(q, k, v):
            new = kv_cache.put_token(entry, kv_cache.entries(k, v, entry, index), index, position_S)
            return _attend_token(config, q, new, index, length_S, local, blocks), new

        return transformer.apply_layer(config, p, x, rope(local), attend, as_stored=index is not None)

    x, cache = run_layers(params, config, transformer.embed(params, config, token_S)[:, None], cache, apply)
    return transformer.rms_norm(config, x[:, 0], params["final_norm"]), cache
