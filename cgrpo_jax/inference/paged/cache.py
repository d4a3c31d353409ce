"""The KV cache as pages: a pool of pages of keys and values, which texts hold in any order and share.

A page has T positions of one text, or of the beginning that several have in common. Which pages a text has, the host
says with every call (pool.py); on the devices there is the pool alone. Page 0 belongs to no text: what is written
for none goes there.

The pool has the form of the weights, as the contiguous cache does (kv_cache.py): stacked `[L, pages, T, 2K, head_dim]`,
or a tuple of one `[pages, T, 2K, head_dim]` a layer; keys at even of 2K, values at odd, as JAX's kernel reads them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.models.params import ModelConfig

# Stacked or a tuple, as above.
Pool = Any


@dataclasses.dataclass(frozen=True)
class Pages:
    """The pages of a data group, and how programs use them.

    Attributes:
      number: pages, page 0 among them.
      size: T, positions of a page.
      tokens: tokens of prompts that a call takes at most, of the prompts of `prompts` texts.
      prompts: as above.
      kernel: whether attention is the TPU's kernel.
    """

    number: int
    size: int
    tokens: int
    prompts: int
    kernel: bool

    @property
    def longest(self) -> int:
        """The tokens of the longest text that fits."""
        return (self.number - 1) * self.size

    def of(self, positions: int) -> int:
        """Returns how many pages so many positions take."""
        return -(-positions // self.size)


def empty_pool(config: ModelConfig, pages: Pages, *, groups: int, tensor: int, dtype, split: bool) -> Pool:
    """Returns a pool of pages that hold nothing, for all devices of all data groups together.

    Args:
      config: the model.
      pages: of a data group.
      groups: data groups.
      tensor: devices of a tensor group.
      dtype: of keys and values.
      split: one array a layer, for weights of that form.
    """
    heads = 2 * kv_cache.num_heads(config, tensor)
    head_dim = ragged_attention.head_size(config.head_dim, kernel=pages.kernel)
    shape = (groups * pages.number, pages.size, heads, head_dim)
    if split:
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
    return jnp.zeros((config.num_layers, *shape), dtype)


def pool_axes(pool: Pool) -> Any:
    """Returns the axes of each array of a pool: l layers, p pages, t positions, k heads, d head_dim."""
    return jax.tree.map(lambda x: "lptkd"[5 - x.ndim :], pool)


def pages_of(entry: jax.Array) -> jax.Array:
    """Returns the pages of all layers that an entry of the pool holds, as `[pages, T, 2K, head_dim]`."""
    return entry.reshape(-1, *entry.shape[-3:])


def beside(k_NKd: jax.Array, v_NKd: jax.Array) -> jax.Array:
    """Returns `[N, 2K, head_dim]`: keys at even of 2K, values at odd."""
    return jnp.concatenate([k_NKd, v_NKd], axis=-1).reshape(len(k_NKd), -1, k_NKd.shape[-1])


def put(entry: jax.Array, both_NKd: jax.Array, place_N: jax.Array) -> jax.Array:
    """Writes keys and values of N tokens in place.

    Args:
      entry: of a layer, or stacked.
      both_NKd: `[N, 2K, head_dim]`, keys at even of 2K, values at odd.
      place_N: int32, page * T + position in the page, of the pages that `pages_of` gives.
    """
    padding = ((0, 0), (0, 0), (0, entry.shape[-1] - both_NKd.shape[-1]))
    new = jnp.pad(both_NKd, padding).astype(entry.dtype)
    flat = entry.reshape(-1, *entry.shape[-2:])
    return flat.at[place_N].set(new, mode="promise_in_bounds").reshape(entry.shape)


def copy(pool: Pool, source_M: jax.Array, target_M: jax.Array, number: jax.Array) -> Pool:
    """Copies pages to others, of all layers.

    Args:
      pool: of a data group.
      source_M, target_M: int32 pages.
      number: int32 scalar; pairs from there on are padding.
    """

    def one(i, pool):
        def page(x):
            at = x.ndim - 4
            row = jax.lax.dynamic_slice_in_dim(x, source_M[i], 1, axis=at)
            return jax.lax.dynamic_update_slice_in_dim(x, row, target_M[i], axis=at)

        return jax.tree.map(page, pool)

    return jax.lax.fori_loop(0, number, one, pool)
