"""A forward pass over a paged cache: one token of each text that decodes, and parts of prompts beside them.

All tokens of a call are one row, those of a sequence together. So a layer's products with its weights are made once for
all, and the number of operations depends on neither the texts nor the prompts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cgrpo_jax.inference.decoding import run_layers
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged import heads, ragged_attention
from cgrpo_jax.inference.paged.cache import Pages, Pool
from cgrpo_jax.inference.paged.ragged_attention import Sequences
from cgrpo_jax.models import transformer
from cgrpo_jax.models.attention import choose
from cgrpo_jax.models.params import ModelConfig


class Chunks(struct.PyTreeNode):
    """Parts of prompts that enter the cache in a call, in a data group.

    Attributes:
      token_N: int32, their tokens, one part after the other; what comes after the last is padding.
      position_N: int32, the position of each in its text.
      place_N: int32, where its keys and values go: page * T + position in the page; of padding, in page 0.
      queries_Q: int32, tokens of each part, at least 1; 0 after the last.
      length_Q: int32, tokens of each text up to the end of its part.
      table_QP: int32, the pages of each.
    """

    token_N: jax.Array | np.ndarray
    position_N: jax.Array | np.ndarray
    place_N: jax.Array | np.ndarray
    queries_Q: jax.Array | np.ndarray
    length_Q: jax.Array | np.ndarray
    table_QP: jax.Array | np.ndarray


class PageOrders(struct.PyTreeNode):
    """What the host says of the pages of a data group's texts with every call.

    Attributes:
      table_SP: int32, the pages of the text in each slot, in its order; 0 where it has none.
      sampled_S: int32, tokens that a text which begins had sampled before it was set back.
      source_M, target_M: int32, pages that are copied before anything else, and to where; a pair a slot.
      number_G: int32 `[1]`, how many pairs.
    """

    table_SP: jax.Array | np.ndarray
    sampled_S: jax.Array | np.ndarray
    source_M: jax.Array | np.ndarray
    target_M: jax.Array | np.ndarray
    number_G: jax.Array | np.ndarray


class _Batch(struct.PyTreeNode):
    """The tokens of a call, parts of prompts first, those of no sequence last, and what they belong to."""

    token_N: jax.Array
    position_N: jax.Array
    place_N: jax.Array
    sequences: Sequences


def step(
    params: dict, config: ModelConfig, pool: Pool, token_S, length_S, live_S, table_SP, chunks: Chunks | None, *,
    pages: Pages, number,
) -> tuple[jax.Array, Pool]:  # fmt: skip
    """Appends one token to every live text, writes parts of prompts, and returns what predicts the texts' next tokens.

    Args:
      params, config: the model.
      pool: of the data group.
      token_S: int32, the newest token of each slot.
      length_S: int32, tokens that the text has in the pool without it, which is its position.
      live_S: bool; other slots write nothing.
      table_SP: int32, the pages of each text.
      chunks: parts of prompts; None: there are none.
      pages: of the data group.
      number: int32 scalar: of the slots so many are computed, the first. All that are live are among them.

    Returns:
      (`[S, D]` hidden states after the final norm, of slots that are not live anything; the pool in its own buffers)
    """
    # Computed once: behind a barrier, or XLA:TPU would do some of it again in each layer.
    batch, first_row = jax.lax.optimization_barrier(
        _batch(token_S, length_S, live_S, table_SP, chunks, number, size=pages.size)
    )
    sequences = batch.sequences
    # As in `decoding.step`: without a condition around them, XLA:CPU computes the cosines again and again.
    split = isinstance(pool, tuple)
    rope = transformer.rotations(config, batch.position_N[None], needed=sequences.number_1[0] > 0 if split else None)
    turns = rope if split else _turns(config, rope)
    queries = ragged_attention.queries_at_once(0 if chunks is None else len(chunks.token_N))
    form = ragged_attention.form(pages.size, table_SP.shape[1], kernel=pages.kernel, queries=queries)

    def attend(entry, q_NHd, both_NKd, local, first):
        place_N, own = batch.place_N, sequences
        if first is not None:
            place_N, own = place_N + first * pages.size, own.replace(table_MP=own.table_MP + first)
        held = paged_cache.put(entry, both_NKd, place_N)
        out = ragged_attention.attend(config, q_NHd, paged_cache.pages_of(held), own, local, form=form)
        return out[None], held

    def of_its_own(x, p, local, entry, _):
        def attend_one(q, k, v):
            return attend(entry, q[0], paged_cache.beside(k[0], v[0]), local, None)

        return transformer.apply_layer(config, p, x, turns(local), attend_one)

    def stacked(x, p, local, entry, first):
        def attend_flat(p, q, k, v):
            by_heads = heads.by_heads(config, p, q[0], k[0], v[0], turns(local), kernel=pages.kernel)
            return attend(entry, *by_heads, local, first)

        return transformer.apply_flat_layer(config, p, x, attend_flat)

    x = transformer.embed(params, config, batch.token_N)[None]
    stride = jax.tree.leaves(pool)[0].shape[-4]  # pages of a layer
    x, pool = run_layers(params, config, x, pool, of_its_own if split else stacked, stride=stride)
    own_SD = x[0]
    if chunks is not None:
        own_SD = jax.lax.dynamic_slice_in_dim(x[0], first_row, len(token_S), allow_negative_indices=False)
    return transformer.rms_norm(config, own_SD, params["final_norm"]), pool


def _turns(config: ModelConfig, rope: Callable) -> Callable[[Any], jax.Array]:
    """Returns `local -> heads.turns`, which are computed once: XLA:TPU would do it again in each layer."""
    if config.local_rope_theta is None or not any(config.local_layers):
        everywhere = jax.lax.optimization_barrier(heads.turns(rope(None)))
        return lambda local: everywhere
    both = [jax.lax.optimization_barrier(heads.turns(rope(jnp.bool_(local)))) for local in (True, False)]
    return lambda local: choose(local, *both)


def _batch(token_S, length_S, live_S, table_SP, chunks: Chunks | None, number, *, size: int):
    """Returns the tokens of a call, and in which row of them that of the first slot is.

    Where there is none at all, as in a data group that has no work while another has, slot 0 is computed in vain: the
    kernel begins to fetch the first sequence before it looks how many there are.
    """
    S, P = table_SP.shape
    position_S = jnp.where(live_S, length_S, 0)
    page_S = jnp.where(jnp.arange(P) == (position_S // size)[:, None], table_SP, 0).sum(axis=1)
    place_S = jnp.where(live_S, page_S * size + position_S % size, 0)
    if chunks is None:
        number = jnp.maximum(number, 1)
        sequences = Sequences(position_S + 1, jnp.minimum(jnp.arange(S + 1), number), table_SP, number[None])
        return _Batch(token_S, position_S, place_S, sequences), jnp.int32(0)
    used_Q1 = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(chunks.queries_Q)])
    used, parts = used_Q1[-1], (chunks.queries_Q > 0).sum()
    number = jnp.maximum(number, parts == 0)
    rows_3N = jnp.stack([chunks.token_N, chunks.position_N, chunks.place_N])
    token_N, position_N, place_N = _behind(rows_3N, jnp.stack([token_S, position_S, place_S]), used, axis=1)
    after_M1 = jnp.arange(len(chunks.queries_Q) + S + 1) - parts  # which of the texts comes there
    start_M1 = jnp.where(after_M1 < 0, jnp.pad(used_Q1, (0, S)), used + jnp.minimum(after_M1, number))
    sequences = Sequences(
        _behind(chunks.length_Q, position_S + 1, parts),
        start_M1,
        _behind(chunks.table_QP, table_SP, parts),
        (parts + number)[None],
    )
    return _Batch(token_N, position_N, place_N, sequences), used


def _behind(first, then, number, *, axis: int = 0) -> jax.Array:
    """Returns the first `number` of `first`, what is `then`, and as many more of anything as were left out."""
    room = jnp.concatenate([first, jnp.zeros_like(then)], axis=axis)
    return jax.lax.dynamic_update_slice_in_dim(room, then, number, axis, allow_negative_indices=False)
