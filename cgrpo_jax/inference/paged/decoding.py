"""A forward pass over a paged cache: one token of each text that decodes, and parts of prompts beside them.

All tokens of a call are one row, those of a sequence together. So a layer's products with its weights are made once for
all, and the number of operations depends on neither the texts nor the prompts.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cgrpo_jax.inference.decoding import run_layers
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.inference.paged.cache import Pages, Pool
from cgrpo_jax.inference.paged.ragged_attention import Sequences
from cgrpo_jax.models import transformer
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
    """The tokens of a call, those of no sequence last, and what they belong to."""

    token_N: jax.Array
    position_N: jax.Array
    place_N: jax.Array
    sequences: Sequences


def step(
    params: dict, config: ModelConfig, pool: Pool, token_S, length_S, live_S, table_SP, chunks: Chunks | None, *,
    pages: Pages,
) -> tuple[jax.Array, Pool]:  # fmt: skip
    """Appends one token to every live text, writes parts of prompts, and returns what predicts the texts' next tokens.

    Args:
      params, config: the model.
      pool: of the data group.
      token_S: int32, the newest token of each slot.
      length_S: int32, tokens that the text has in the pool without it, which is its position.
      live_S: bool; other slots are not computed.
      table_SP: int32, the pages of each text.
      chunks: parts of prompts; None: there are none.
      pages: of the data group.

    Returns:
      (`[S, D]` hidden states after the final norm, of slots that are not live anything; the pool in its own buffers)
    """
    batch, back_S = _batch(token_S, length_S, live_S, table_SP, chunks, size=pages.size)
    sequences = batch.sequences
    # As in `decoding.step`: without a condition around them, XLA:CPU computes the cosines again and again.
    needed = sequences.number_1[0] > 0 if isinstance(pool, tuple) else None
    rope = transformer.rotations(config, batch.position_N[None], needed=needed)
    queries = ragged_attention.ONE_QUERY_EACH if chunks is None else ragged_attention.QUERIES
    form = ragged_attention.form(pages.size, table_SP.shape[1], kernel=pages.kernel, queries=queries)
    number = jax.tree.leaves(pool)[0].shape[-4]  # pages of a layer

    def apply(x, p, local, entry, first):
        def attend(q, k, v):
            place_N, own = batch.place_N, sequences
            if first is not None:
                place_N, own = place_N + first * pages.size, own.replace(table_MP=own.table_MP + first)
            held = paged_cache.put(entry, k[0], v[0], place_N)
            out = ragged_attention.attend(config, q[0], paged_cache.pages_of(held), own, local, form=form)
            return out[None], held

        return transformer.apply_layer(config, p, x, rope(local), attend, as_stored=first is not None)

    x = transformer.embed(params, config, batch.token_N)[None]
    x, pool = run_layers(params, config, x, pool, apply, stride=number)
    return transformer.rms_norm(config, x[0, back_S], params["final_norm"]), pool


def _batch(token_S, length_S, live_S, table_SP, chunks: Chunks | None, *, size: int):
    """Returns the tokens of a call with those of live slots and parts first, and where the token of each slot is.

    Where there is none at all, as in a data group that has no work while another has, slot 0 is computed in vain: the
    kernel begins to fetch the first sequence before it looks how many there are.
    """
    S = len(token_S)
    length_S = jnp.where(live_S, length_S, 0)
    nothing = ~live_S.any() if chunks is None else ~(live_S.any() | (chunks.queries_Q > 0).any())
    computed_S = live_S | (nothing & (jnp.arange(S) == 0))
    page_S = jnp.take_along_axis(table_SP, (length_S // size)[:, None], axis=1)[:, 0]
    place_S = jnp.where(live_S, page_S * size + length_S % size, 0)
    parts = (token_S, length_S, place_S, computed_S, computed_S.astype(jnp.int32), length_S + 1, table_SP)
    if chunks is not None:
        used_N = jnp.arange(len(chunks.token_N)) < chunks.queries_Q.sum()
        ours = (chunks.token_N, chunks.position_N, chunks.place_N, used_N)
        of_each = (chunks.queries_Q, chunks.length_Q, chunks.table_QP)
        parts = tuple(jnp.concatenate(both) for both in zip((*ours, *of_each), parts, strict=True))
    token_N, position_N, place_N, real_N, queries_M, length_M, table_MP = parts
    order_N, order_M = (jnp.argsort(~real, stable=True) for real in (real_N, queries_M > 0))
    start_M1 = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(queries_M[order_M])])
    sequences = Sequences(length_M[order_M], start_M1, table_MP[order_M], (queries_M > 0).sum(keepdims=True))
    back_N = jnp.argsort(order_N)
    batch = _Batch(token_N[order_N], position_N[order_N], place_N[order_N], sequences)
    return batch, back_N[len(back_N) - S :]
