"""The KV cache: S slots, each with the keys and values of one text; how they lie, are written, read and copied.

A slot has a fixed number of positions, T, so shapes never change. Which text a slot holds, and how far, is given from
outside: what lies beyond a text's length is never read.

Weights come in two forms: stacked, their layers scanned (accelerators: compile time does not grow with depth); or as a
tuple of one dict a layer, written out one after the other (CPU: a scan copies each layer's weights before it uses them,
at every token). The cache has the form of the weights.

The order of a cache's axes is what its reader is fastest with. Apart by layer, on a CPU: keys with their positions
last, `[S, K, head_dim, T]`, values with theirs before, `[S, K, T, head_dim]`, as scores and weighted sums run over
them. Stacked: both `[L, S, K, T, head_dim]`, which products on a TPU read in place.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.models.params import ModelConfig

# A layer's cache: dict of `k`, `v`, and for int8 of `k_scale`, `v_scale`, with a head_dim of 1.
Cache = Any
# The axes of k and v, split and stacked: s slots, t positions, k heads, d head_dim.
_SPLIT, _STACKED = {"k": "skdt", "v": "sktd"}, {"k": "sktd", "v": "sktd"}
# Positions read at once; a longer slot is read no further than the longest text reaches. Split, each block is copied
# before it is read, which costs as much as reading 2000 positions in place.
READ_SPLIT, READ_STACKED = 2048, 512


def num_heads(config: ModelConfig, tensor: int) -> int:
    """Returns how many key/value heads the caches of `tensor` devices hold together.

    It is more than the model has where tensor does not divide these: each device holds what its query heads read.
    """
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % tensor or kv_heads % tensor == 0:
        return kv_heads
    here = heads // tensor
    return tensor * (1 if heads // kv_heads % here == 0 else here)


def read_at_once(*, split: bool) -> int:
    """Returns how many positions of a slot are read at once."""
    return READ_SPLIT if split else READ_STACKED


def cache_length(length: int, *, split: bool) -> int:
    """Returns the positions that a slot for texts of `length` tokens has."""
    read = read_at_once(split=split)
    return length if length <= read else -(-length // read) * read


def positions_read(length_NS: np.ndarray, live_NS: np.ndarray, *, length: int, split: bool) -> np.ndarray:
    """Returns `[N]`: how many positions of S slots a decoding step reads, each slot as far as the longest text reaches.

    What a step costs follows from it (planning); a cache that reads otherwise has its own.

    Args:
      length_NS: tokens that each slot holds without the newest, in N steps.
      live_NS: bool, which slots decode.
      length: tokens that a slot can hold.
      split: whether weights and cache have one dict a layer.

    Example:
      positions_read(np.array([[100, 600, 9000]]), np.array([[True, True, False]]), length=16384, split=False) == [3072]
    """
    S, T, read = length_NS.shape[-1], cache_length(length, split=split), read_at_once(split=split)
    if T <= read:
        return np.full(len(length_NS), S * T)
    return S * read * (np.where(live_NS, length_NS, 0).max(-1) // read + 1)


def positions_needed(length_NS: np.ndarray, live_NS: np.ndarray) -> np.ndarray:
    """Returns `[N]`: how many positions the texts that decode have, the newest token's included."""
    return np.where(live_NS, length_NS + 1, 0).sum(-1)


def empty_cache(config: ModelConfig, *, slots: int, length: int, tensor: int, dtype, split: bool) -> Cache:
    """Returns the cache of S empty slots, for all devices of a tensor group together.

    Args:
      config: the model.
      slots: S.
      length: tokens that a slot can hold.
      tensor: devices of a tensor group.
      dtype: of keys and values; int8 adds a float32 scale a position and head.
      split: one dict a layer, for weights of that form.
    """
    K, T = num_heads(config, tensor), cache_length(length, split=split)
    lead = () if split else (config.num_layers,)

    def zeros(axes: str, width: int, dtype):
        sizes = {"s": slots, "t": T, "k": K, "d": width}
        return jnp.zeros((*lead, *(sizes[axis] for axis in axes)), dtype)

    def layer():
        orders = _SPLIT if split else _STACKED
        entry = {name: zeros(axes, config.head_dim, dtype) for name, axes in orders.items()}
        if jnp.dtype(dtype) == jnp.int8:
            entry |= {f"{name}_scale": zeros(axes, 1, jnp.float32) for name, axes in orders.items()}
        return entry

    return tuple(layer() for _ in range(config.num_layers)) if split else layer()


def cache_axes(cache: Cache) -> Any:
    """Returns the axes of each array of a cache: l layers, s slots, t positions, k heads, d head_dim."""
    index, lead = (None, "") if isinstance(cache, tuple) else (0, "l")
    return jax.tree_util.tree_map_with_path(lambda path, _: lead + axes_of(path[-1].key, index), cache)


def split_layers(params: dict) -> dict:
    """Returns weights with one dict a layer instead of stacked arrays."""
    stacked = params["layers"]
    number = len(jax.tree.leaves(stacked)[0])
    return params | {"layers": tuple({name: x[i] for name, x in stacked.items()} for i in range(number))}


# --- what is written to a slot, read from it and copied -------------------------------------------------------------


def axes_of(name: str, index) -> str:
    """Returns the axes of an array of a layer's cache; `index` is the layer's number in a stacked one, else None."""
    return (_SPLIT if index is None else _STACKED)[name[0]]


def length_of(entry: dict, index) -> int:
    """Returns T."""
    return entry["v"].shape[axes_of("v", index).index("t") + (index is not None)]


def heads_of(entry: dict, index) -> int:
    """Returns K."""
    return entry["v"].shape[axes_of("v", index).index("k") + (index is not None)]


def entries(k_BWKd, v_BWKd, like: dict, index) -> dict:
    """Returns new keys and values, B rows of W positions, in the form and order in which a cache stores them."""
    out = {}
    for name, x_BWKd in (("k", k_BWKd), ("v", v_BWKd)):
        axes = axes_of(name, index)
        new = jnp.einsum(f"stkd->{axes}", x_BWKd)
        if "k_scale" in like:
            new = new.astype(jnp.float32)
            scale = jnp.max(jnp.abs(new), axis=axes.index("d"), keepdims=True) / 127
            new = jnp.round(new / jnp.where(scale > 0, scale, 1))
            out[f"{name}_scale"] = scale
        out[name] = new.astype(like[name].dtype)
    return out


def put_token(entry: dict, new: dict, index, position_S) -> dict:
    """Writes one position of every slot in place."""
    out = {}
    for name, x in entry.items():
        axes = axes_of(name, index)
        if index is None:
            places = {"s": jnp.arange(len(position_S)), "t": position_S}
            at = tuple(places.get(axis, slice(None)) for axis in axes)
            row = jnp.squeeze(new[name], axes.index("t"))
            out[name] = x.at[at].set(row, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)
            continue
        # One by one: for a scatter XLA:TPU wants the axes in another order, and holds the cache twice.
        out[name] = functools.reduce(
            lambda x, s, name=name, axes=axes: jax.lax.dynamic_update_slice(
                x,
                new[name][None, s : s + 1],
                (index, *({"s": s, "t": position_S[s]}.get(axis, 0) for axis in axes)),
            ),
            range(len(position_S)),
            x,
        )
    return out


def put_prompts(entry: dict, new: dict, index, slot_Q, start_Q, number) -> dict:
    """Writes W positions of each of the first `number` of Q rows to its slot, from its start on."""
    lead = () if index is None else (index,)

    def put(q, entry):
        places = {"s": slot_Q[q], "t": start_Q[q]}
        out = {}
        for name, x in entry.items():
            row = jax.lax.dynamic_slice_in_dim(new[name], q, 1)
            at = (*lead, *(places.get(axis, 0) for axis in axes_of(name, index)))
            out[name] = jax.lax.dynamic_update_slice(x, row if index is None else row[None], at)
        return out

    return jax.lax.fori_loop(0, number, put, entry)


def read(entry: dict, index, start, width: int) -> dict:
    """Returns `width` positions of all slots."""
    if index is None and width == length_of(entry, index):
        return entry
    out = {}
    for name, x in entry.items():
        at, sizes = [0] * x.ndim, list(x.shape)
        time = axes_of(name, index).index("t") + (index is not None)
        at[time], sizes[time] = start, width
        if index is not None:
            at[0], sizes[0] = index, 1
        part = jax.lax.dynamic_slice(x, at, sizes)
        out[name] = part if index is None else part[0]
    return out


def share(cache: Cache, source_M, target_M, number, *, width: int) -> Cache:
    """Copies the first `width` positions of slots to other slots.

    Args:
      cache: of the slots.
      source_M, target_M: int32 slots.
      number: int32 scalar; pairs from there on are padding.
      width: positions.
    """
    index = None if isinstance(cache, tuple) else 0  # of all layers at once
    lead = () if index is None else (0,)

    def copy(i, cache):
        def one(path, x):
            axes = axes_of(path[-1].key, index)
            sizes = list(x.shape)
            for axis, size in (("s", 1), ("t", width)):
                sizes[axes.index(axis) + len(lead)] = size
            source, target = (
                (*lead, *(slot if axis == "s" else 0 for axis in axes)) for slot in (source_M[i], target_M[i])
            )
            return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, source, sizes), target)

        return jax.tree_util.tree_map_with_path(one, cache)

    return jax.lax.fori_loop(0, number, copy, cache)
