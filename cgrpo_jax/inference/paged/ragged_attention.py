"""Attention of many texts at once, each to its own pages of keys and values: what JAX offers, and plain JAX.

A call takes the queries of M sequences in one array, one after the other: one query of a text that decodes, many of a
prompt that enters. The keys and values of each lie in pages anywhere in a pool; a table says in which.

On TPUs this is JAX's own `ragged_paged_attention`. It takes blocks of pages, and fetches a block whole: a text costs
as many positions as its blocks have, whatever the longest text is (`positions_fetched`). What it lacks, and what is
done then: heads of another size than multiples of 128 are padded to that in the pool; keys and values in int8 with a
scale for each position, and some numbers of heads, are not in it (`lacks`), and such a model keeps the contiguous
cache; in layers with a window it reads all pages and masks most, so it is given only those that the window reaches
into; and its interpreter fails on its reshaped references, so on CPUs it is compared by its text alone.

Elsewhere it is plain JAX, which gathers pages block by block, as far as the longest text reaches, for each query: it is
for tests.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache
from cgrpo_jax.models import attention as attention_lib
from cgrpo_jax.models.kernels import cost
from cgrpo_jax.models.params import ModelConfig

# Positions that the kernel fetches at once: half of that is fetched in vain for a text, on average.
FETCHED = 256
# Queries that it takes at once: where each text has one, and, at most, where prompts enter.
ONE_QUERY_EACH, _MOST_QUERIES = 8, 32
_LANES = 128  # of a vector register: the least size of a head
NAME = "ragged_paged_attention"  # in that of the kernel
_MASKED = -1e30  # finite: a block in which a query sees nothing must not give nan


class Sequences(struct.PyTreeNode):
    """What the queries of a call belong to. The first `number` sequences are real; each of these has a query.

    Attributes:
      length_M: int32, tokens of each sequence with its queries, which are its last.
      start_M1: int32, where in the queries each sequence begins; the last is where all end.
      table_MP: int32, the pages that hold a sequence, in its order; what lies beyond its length is not looked at.
      number_1: int32 `[1]`.
    """

    length_M: jax.Array
    start_M1: jax.Array
    table_MP: jax.Array
    number_1: jax.Array


@dataclasses.dataclass(frozen=True)
class Form:
    """What is static: whether the TPU's kernel runs, and how many pages and queries it takes at once."""

    kernel: bool
    pages: int
    queries: int


def form(page_size: int, pages_each: int, *, kernel: bool, queries: int) -> Form:
    """Returns how a call of `queries` at once reads tables of `pages_each` pages.

    Example:
      form(64, 256, kernel=True, queries=8) == Form(True, pages=4, queries=8)
    """
    return Form(kernel, min(pages_each, max(1, FETCHED // page_size)), queries)


def queries_at_once(tokens: int) -> int:
    """Returns how many queries a call takes at once beside so many tokens of prompts.

    The kernel computes as many for a text that decodes, which has one; each block of a prompt's reads its pages again.

    Example:
      [queries_at_once(n) for n in (0, 32, 512)] == [8, 16, 32]
    """
    return max(ONE_QUERY_EACH, min(_MOST_QUERIES, tokens // 2))


def head_size(head_dim: int, *, kernel: bool) -> int:
    """Returns the size that a head has in the pool. Example: head_size(64, kernel=True) == 128."""
    return -(-head_dim // _LANES) * _LANES if kernel else head_dim


def lacks(config: ModelConfig, tensor: int, dtype: jax.typing.DTypeLike, *, kernel: bool = True) -> str | None:
    """Returns what is missing for a model on so many devices of a tensor group, in words; None: nothing."""
    if jnp.dtype(dtype) == jnp.int8:
        return "has no scale for each position, which keys and values in int8 need"
    if not kernel:
        return None
    packed = 4 // jnp.dtype(dtype).itemsize
    tensor = tensor if config.num_heads % tensor == 0 else 1
    heads = 2 * kv_cache.num_heads(config, tensor) // tensor  # keys and values of a device
    tiles = heads // packed
    if heads % packed or not (tiles in (1, 2, 4, 8) or tiles % 8 == 0):
        return f"takes no {heads // 2} key/value heads a device in {jnp.dtype(dtype).name}"
    return None


def check(config: ModelConfig, tensor: int, dtype: jax.typing.DTypeLike, *, kernel: bool) -> None:
    """Refuses what `lacks` says of the same.

    Raises:
      UserError: something is missing.
    """
    if missing := lacks(config, tensor, dtype, kernel=kernel):
        raise UserError(f'cache.kind "paged" does not do here: attention over pages {missing}; use "contiguous".')


def attend(
    config: ModelConfig, q_NHd: jax.Array, pages_PTKd: jax.Array, sequences: Sequences, local, *, form: Form
) -> jax.Array:
    """Returns `[N, H, head_dim]`: attention of each query to its sequence, up to itself.

        out_n = sum_t softmax_t(softcap(scale q_n k_t)) v_t,  over the positions t <= that of n, in local layers
                also > that of n minus the window

    Args:
      config: the model: scale, soft-cap and window.
      q_NHd: queries, those of a sequence together; what lies beyond the last sequence gives anything.
      pages_PTKd: pages of T positions; keys at even of 2K, values at odd; head_dim padded with 0 as `head_size` says.
      sequences: what the queries belong to.
      local: an item of `transformer.local_layers`.
      form: how.

    Example:
      # two texts, of 5 and 9 tokens, that decode; pages of 8 positions
      Sequences(length_M=[5, 9], start_M1=[0, 1, 2], table_MP=[[3, 0], [1, 2]], number_1=[2])
    """
    head_dim = q_NHd.shape[-1]
    q = jnp.pad(q_NHd, ((0, 0), (0, 0), (0, pages_PTKd.shape[-1] - head_dim)))
    out = (_kernel if form.kernel else _blocks)(config, q, pages_PTKd, sequences, local, form)
    return out[..., :head_dim].astype(q_NHd.dtype)


# --- the kernel that ships with JAX ---------------------------------------------------------------------------------


def _kernel(config: ModelConfig, q_NHd, pages_PTKd, sequences: Sequences, local, form: Form):
    def run(sequences: Sequences, window: int | None):
        call = functools.partial(
            ragged_paged_attention,
            sm_scale=attention_lib.query_scale(config),
            sliding_window=window,
            soft_cap=config.attention_softcap or None,
            num_kv_pages_per_block=form.pages,
            num_queries_per_block=min(form.queries, len(q_NHd)),
        )
        tables = sequences.length_M, sequences.table_MP, sequences.start_M1, sequences.number_1
        return sharding.unchecked(call, q_NHd, pages_PTKd, *tables)

    if local is None:
        return run(sequences, None)
    near = within_window(sequences, page_size=pages_PTKd.shape[1], window=config.window)
    return jax.lax.cond(local, lambda: run(near, config.window), lambda: run(sequences, None))


def within_window(sequences: Sequences, *, page_size: int, window: int) -> Sequences:
    """Returns sequences without the pages that no query's window reaches into.

    Positions enter only as differences, so a sequence may begin at any page.

    Example:
      with pages of 8 and a window of 4, a text of 21 tokens with one query keeps pages 2, and is 5 long: its query at
      20 sees 17 to 20
    """
    queries_M = sequences.start_M1[1:] - sequences.start_M1[:-1]
    first_M = jnp.maximum(0, sequences.length_M - queries_M - window + 1) // page_size
    at_MP = first_M[:, None] + jnp.arange(sequences.table_MP.shape[1])
    table_MP = jnp.take_along_axis(sequences.table_MP, jnp.minimum(at_MP, at_MP.shape[1] - 1), axis=1)
    return sequences.replace(length_M=sequences.length_M - first_M * page_size, table_MP=table_MP)


# --- plain JAX --------------------------------------------------------------------------------------------------------


def _blocks(config: ModelConfig, q_NHd, pages_PTKd, sequences: Sequences, local, form: Form):
    """The definition: a block of pages of every query's sequence at a time, as far as the longest reaches."""
    (N, H, head_dim), (_, T, both, _) = q_NHd.shape, pages_PTKd.shape
    K, P = both // 2, sequences.table_MP.shape[1]
    at_N = jnp.arange(N)
    sequence_N = jnp.clip(jnp.searchsorted(sequences.start_M1, at_N, side="right") - 1, 0, len(sequences.length_M) - 1)
    position_N = (sequences.length_M - sequences.start_M1[1:])[sequence_N] + at_N
    real_N = at_N < sequences.start_M1[sequences.number_1[0]]
    position_N = jnp.where(real_N, position_N, 0)
    table_NP = sequences.table_MP[sequence_N]
    q_NKGd = (q_NHd * attention_lib.query_scale(config)).reshape(N, K, H // K, head_dim)
    width = form.pages * T

    def block(i, carry):
        top, mass, out = carry
        at = jnp.minimum(i * form.pages + jnp.arange(form.pages), P - 1)
        held = pages_PTKd[table_NP[:, at]].reshape(N, width, K, 2, head_dim).astype(q_NHd.dtype)
        score = jnp.einsum("nkgd,ntkd->nkgt", q_NKGd, held[:, :, :, 0], preferred_element_type=jnp.float32)
        score = attention_lib.softcap(score, config.attention_softcap)
        back_Nt = position_N[:, None] - (i * width + jnp.arange(width))
        seen = back_Nt >= 0
        seen = attention_lib.choose(local, seen & (back_Nt < config.window), seen)[:, None, None]
        score = jnp.where(seen, score, _MASKED)
        new_top = jnp.maximum(top, score.max(-1, keepdims=True))
        weight, kept = jnp.where(seen, jnp.exp(score - new_top), 0), jnp.exp(top - new_top)
        values = jnp.where(seen[:, 0, 0, :, None, None], held[:, :, :, 1], 0)  # no nan of what is not seen
        weighed = jnp.einsum("nkgt,ntkd->nkgd", weight.astype(q_NHd.dtype), values, preferred_element_type=jnp.float32)
        return new_top, mass * kept + weight.sum(-1, keepdims=True), out * kept + weighed

    one = jnp.zeros((*q_NKGd.shape[:-1], 1), jnp.float32)
    start = (one + _MASKED, one, jnp.zeros(q_NKGd.shape, jnp.float32))
    start = sharding.varying_like(start, q_NHd, pages_PTKd, *jax.tree.leaves(sequences))
    _, mass, out = jax.lax.fori_loop(0, jnp.max(position_N) // width + 1, block, start)
    return (out / mass).reshape(N, H, head_dim)


# --- what it costs ------------------------------------------------------------------------------------------------


def positions_fetched(length_M: np.ndarray, *, page_size: int) -> np.ndarray:
    """Returns how many positions the kernel fetches of texts of so many tokens, their one query's included.

    Example:
      positions_fetched(np.array([1, 256, 257]), page_size=64).tolist() == [256, 256, 512]
    """
    width = max(1, FETCHED // page_size) * page_size
    return -(-length_M // width) * width


def positions_fetched_again(length_M: np.ndarray, queries_M: np.ndarray, *, page_size: int, tokens: int) -> np.ndarray:
    """Returns the same of parts of prompts, which come first in a call: again for each block of their queries.

    Args:
      length_M: tokens of each text up to the end of its part.
      queries_M: tokens of each part.
      page_size: positions of a page.
      tokens: of prompts that the call takes.
    """
    end_M, queries = np.cumsum(queries_M), queries_at_once(tokens)
    blocks_M = (end_M - 1) // queries - (end_M - queries_M) // queries + 1
    return blocks_M * positions_fetched(length_M, page_size=page_size)


def copies(
    length_M: Sequence[int], queries_M: Sequence[int], *, num_queries: int, pages_each: int, page_size: int, form: Form
) -> Iterator[tuple[int, int]]:
    """Yields (sequence, place in its table) of each page that the kernel copies, in its order.

    It follows the kernel's text (jax/experimental/pallas/ops/tpu/ragged_paged_attention/kernel.py): blocks of queries
    one after the other; in each, every sequence with a query there, with all its blocks of pages. A block is copied
    whole: beyond a sequence's end, its first page again.

    Args:
      length_M, queries_M: tokens of each sequence, and queries among them.
      num_queries: of the array, padding included.
      pages_each: pages of a table.
      page_size: positions of a page.
      form: pages and queries at once.
    """
    starts = [0, *np.cumsum(queries_M).tolist()]
    now = 0
    for first in range(0, num_queries, form.queries):
        last = first + form.queries
        while now < len(length_M) and first < starts[-1]:
            end = min(pages_each, -(-length_M[now] // page_size))
            for block in range(-(-length_M[now] // (form.pages * page_size))):
                for page in range(block * form.pages, (block + 1) * form.pages):
                    yield now, page if page < end else 0
            ends_here, goes_on = starts[now + 1] <= last, starts[now + 1] < last
            now += ends_here
            if not goes_on:
                break


def flops_and_bytes(call: cost.KernelCall) -> tuple[float, float]:
    """Returns FLOPs and bytes of one run of the kernel besides what it does with pages, which no shape shows.

    Queries and results are moved once, and the tables. What each position of the pages costs is `position_cost`'s.

    Raises:
      ValueError: it is a call of another kernel.
    """
    if NAME not in call.name:
        raise ValueError(f"{call.name} is no ragged paged attention; give it its own formula.")
    pages = max(call.operands, key=lambda one: cost.num_bytes(*one))
    moved = sum(cost.num_bytes(*one) for one in (*call.operands, *call.results)) - cost.num_bytes(*pages)
    return 0.0, float(moved)
