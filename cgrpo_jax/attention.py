"""Attention over packed rows, in training and in prefill."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cgrpo_jax.model import ModelConfig

_QUERY_BLOCK = 1024


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Returns `cap tanh(x / cap)`, which keeps `x` within `cap` of 0; a cap of 0 leaves it alone."""
    return cap * jnp.tanh(x / cap) if cap else x


def query_scale(config: ModelConfig) -> float:
    """Returns what queries are multiplied by before attention."""
    return config.head_dim**-0.5 if config.query_scale is None else config.query_scale


def choose(local, if_local, if_not):
    """Returns what a layer uses, of what local layers and the others use; `local` is an item of `local_layers`."""
    return if_not if local is None else jax.tree.map(functools.partial(jnp.where, local), if_local, if_not)


def packed_attention(config: ModelConfig, positions_BS, segments_BS, *, prompts_BS=None, kernel="blocks") -> Callable:
    """Returns `local -> attend`: causal attention within each segment, in local layers to its last tokens only.

    Long rows are taken a block of queries at a time, each with the keys up to its end, and their scores are computed
    again in the backward pass: the scores of 8192 tokens with themselves would be 256 MB a head.
    """
    S = segments_BS.shape[1]
    index_S = jnp.arange(S)

    def block(local, start, end, q, k, v):
        here = slice(start, end)
        seen_BST = segments_BS[:, here, None] == segments_BS[:, None, :end]
        if prompts_BS is not None:
            seen_BST |= (prompts_BS[:, here, None] == segments_BS[:, None, :end]) & (prompts_BS[:, here, None] > 0)
        seen_BST &= index_S[here, None] >= index_S[:end]
        near_BST = seen_BST & (positions_BS[:, here, None] - positions_BS[:, None, :end] < config.window)
        return _attention(config, q, k, v, choose(local, near_BST, seen_BST)[:, None])

    def attend(q, k, v, *, local):
        if S <= _QUERY_BLOCK:
            return block(local, 0, S, q, k, v), (k, v)
        blocks = []
        for start in range(0, S, _QUERY_BLOCK):
            end = min(start + _QUERY_BLOCK, S)
            compute = jax.checkpoint(functools.partial(block, local, start, end))
            blocks.append(compute(q[:, start:end], k[:, :end], v[:, :end]))
        return jnp.concatenate(blocks, axis=1), (k, v)

    return lambda local: functools.partial(attend, local=local)


def _attention(config: ModelConfig, q_BSHK, k, v, mask_B1ST):
    scale = query_scale(config)
    if not config.attention_softcap:
        return jax.nn.dot_product_attention(q_BSHK, k, v, mask=mask_B1ST, scale=scale)
    B, S, H, head_dim = q_BSHK.shape
    q = (q_BSHK * scale).reshape(B, S, k.shape[2], -1, head_dim)
    score = jnp.einsum("bskgd,btkd->bkgst", q, k, preferred_element_type=jnp.float32)
    score = jnp.where(mask_B1ST[:, None], softcap(score, config.attention_softcap), -jnp.inf)
    weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", weight, v).reshape(B, S, H, head_dim)
