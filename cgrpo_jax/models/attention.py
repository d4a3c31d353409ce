"""Attention over packed rows, in training and in prefill."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.kernels import splash_attention
from cgrpo_jax.models.params import ModelConfig

# The name of what attention gives, and of what else its gradient needs: enough not to attend again.
ATTENDED = splash_attention.RESIDUALS
KERNELS = ("blocks", "splash", "interpret")
# Queries that plain JAX takes at a time: an eighth of a row, within these.
_QUERY_BLOCK, _LARGEST_BLOCK = 128, 1024


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Returns `cap tanh(x / cap)`, which keeps `x` within `cap` of 0; a cap of 0 leaves it alone."""
    return cap * jnp.tanh(x / cap) if cap else x


def query_scale(config: ModelConfig) -> float:
    """Returns what queries are multiplied by before attention."""
    return config.head_dim**-0.5 if config.query_scale is None else config.query_scale


def choose(local, if_local, if_not):
    """Returns what a layer uses, of what local layers and the others use; `local` is an item of `local_layers`."""
    return if_not if local is None else jax.tree.map(functools.partial(jnp.where, local), if_local, if_not)


def packed_attention(
    config: ModelConfig,
    positions_BS: jax.Array,
    segments_BS: jax.Array,
    prompts_BS: jax.Array | None = None,
    *,
    kernel: str = "blocks",
) -> Callable:
    """Returns `local -> attend`, and `attend(q, k, v) -> (out, (k, v))`: causal attention within segments of a row.

    Query i sees key j if j <= i and (segments[j] == segments[i] or prompts[i] > 0 and segments[j] == prompts[i]), in
    local layers also positions[i] - positions[j] < window.

    In plain JAX, long rows are taken a block of queries at a time, each with the keys up to its end, and their scores
    are computed again in the backward pass: the scores of 8192 tokens with themselves would be 256 MB a head.

    Args:
      config: the model's shape. One with local layers is always computed in plain JAX: splash's block masks are those
        of all layers. So are rows of more than `splash_attention.LONGEST` tokens.
      positions_BS: int32 rotary positions; those of a response continue its prompt's.
      segments_BS: int32; the tokens of a segment lie together. 0 is padding, at the end.
      prompts_BS: int32, the segment whose tokens a token sees besides its own's, which must lie directly before the
        segments that see it; 0: none. None: none anywhere.
      kernel: one of `KERNELS`: "blocks" plain JAX, "splash" the TPU kernel, "interpret" the same on any device, slowly.

    Raises:
      UserError: no such kernel.

    Example:
      segments, prompts, positions = [[1, 1, 2, 3, 3]], [[0, 0, 1, 1, 1]], [[0, 1, 2, 2, 3]]
      # two responses to prompt 1: token 4 sees 0, 1, 3 and 4
    """
    if kernel not in KERNELS:
        raise UserError(f"attention kernel {kernel!r} is unknown; use one of {', '.join(KERNELS)}.")
    if kernel == "blocks" or any(config.local_layers) or segments_BS.shape[1] > splash_attention.LONGEST:
        return _in_blocks(config, positions_BS, segments_BS, prompts_BS)
    whole = splash_attention.attention(
        segments_BS,
        prompts_BS,
        head_dim=config.head_dim,
        scale=query_scale(config),
        softcap=config.attention_softcap,
        interpret=kernel == "interpret",
    )
    return lambda local: lambda q, k, v: (whole(q, k, v), (k, v))


def _in_blocks(config: ModelConfig, positions_BS, segments_BS, prompts_BS) -> Callable:
    S = segments_BS.shape[1]
    index_S = jnp.arange(S)

    def block(local, start, end, q, k, v):
        here = slice(start, end)
        seen_BST = segments_BS[:, here, None] == segments_BS[:, None, :end]
        if prompts_BS is not None:
            prompt_BS1 = prompts_BS[:, here, None]
            seen_BST |= (prompt_BS1 > 0) & (prompt_BS1 == segments_BS[:, None, :end])
        seen_BST &= index_S[here, None] >= index_S[:end]
        near_BST = seen_BST & (positions_BS[:, here, None] - positions_BS[:, None, :end] < config.window)
        return _attention(config, q, k, v, choose(local, near_BST, seen_BST)[:, None])

    def attend(q, k, v, *, local):
        size = min(max(_QUERY_BLOCK, -(-S // 8)), _LARGEST_BLOCK)
        if S <= size:
            return checkpoint_name(block(local, 0, S, q, k, v), ATTENDED), (k, v)
        blocks = []
        for start in range(0, S, size):
            end = min(start + size, S)
            compute = jax.checkpoint(functools.partial(block, local, start, end))
            blocks.append(compute(q[:, start:end], k[:, :end], v[:, :end]))
        return checkpoint_name(jnp.concatenate(blocks, axis=1), ATTENDED), (k, v)

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
