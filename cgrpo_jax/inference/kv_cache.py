"""Cached decoding: S slots, each with the keys and values of one text; prompts enter many tokens at a time, then one.

A slot is a fixed room of T positions, so shapes never change. Which text a slot holds, and how far, is told from
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

from cgrpo_jax import sharding
from cgrpo_jax.models import attention, transformer
from cgrpo_jax.models.params import ModelConfig

# A layer's cache: dict of `k`, `v`, and for int8 of `k_scale`, `v_scale`, with a head_dim of 1.
Cache = Any
# The axes of k and v, split and stacked: s slots, t positions, k heads, d head_dim.
_SPLIT, _STACKED = {"k": "skdt", "v": "sktd"}, {"k": "sktd", "v": "sktd"}
# Positions read at once; a longer slot is read no further than the longest text reaches. Split, each block is copied
# before it is read, which costs as much as reading 2000 positions in place.
READ_SPLIT, READ_STACKED = 2048, 512
_QUERIES = 256  # queries of a continued prompt that attend at once
_MASKED = -1e30  # finite: a block in which a row sees nothing must not give nan


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

    def room(axes: str, width: int, dtype):
        sizes = {"s": slots, "t": T, "k": K, "d": width}
        return jnp.zeros((*lead, *(sizes[axis] for axis in axes)), dtype)

    def layer():
        orders = _SPLIT if split else _STACKED
        entry = {name: room(axes, config.head_dim, dtype) for name, axes in orders.items()}
        if jnp.dtype(dtype) == jnp.int8:
            entry |= {f"{name}_scale": room(axes, 1, jnp.float32) for name, axes in orders.items()}
        return entry

    return tuple(layer() for _ in range(config.num_layers)) if split else layer()


def cache_axes(cache: Cache) -> Any:
    """Returns the axes of each array of a cache: l layers, s slots, t positions, k heads, d head_dim."""
    index, lead = (None, "") if isinstance(cache, tuple) else (0, "l")
    return jax.tree_util.tree_map_with_path(lambda path, _: lead + _axes(path[-1].key, index), cache)


def split_layers(params: dict) -> dict:
    """Returns weights with one dict a layer instead of stacked arrays."""
    stacked = params["layers"]
    number = len(jax.tree.leaves(stacked)[0])
    return params | {"layers": tuple({name: x[i] for name, x in stacked.items()} for i in range(number))}


# --- what is written to a slot, and read from it ------------------------------------------------------------------


def _axes(name: str, index) -> str:
    """Returns the axes of an array of a layer's cache; `index` is the layer's number in a stacked one, else None."""
    return (_SPLIT if index is None else _STACKED)[name[0]]


def _length(entry: dict, index) -> int:
    """Returns T."""
    return entry["v"].shape[_axes("v", index).index("t") + (index is not None)]


def _heads(entry: dict, index) -> int:
    """Returns K."""
    return entry["v"].shape[_axes("v", index).index("k") + (index is not None)]


def _entries(k_BWKd, v_BWKd, like: dict, index) -> dict:
    """Returns new keys and values, B rows of W positions, in the form and order in which a cache stores them."""
    out = {}
    for name, x_BWKd in (("k", k_BWKd), ("v", v_BWKd)):
        axes = _axes(name, index)
        new = jnp.einsum(f"stkd->{axes}", x_BWKd)
        if "k_scale" in like:
            new = new.astype(jnp.float32)
            scale = jnp.max(jnp.abs(new), axis=axes.index("d"), keepdims=True) / 127
            new = jnp.round(new / jnp.where(scale > 0, scale, 1))
            out[f"{name}_scale"] = scale
        out[name] = new.astype(like[name].dtype)
    return out


def _put_token(entry: dict, new: dict, index, position_S) -> dict:
    """Writes one position of every slot in place."""
    out = {}
    for name, x in entry.items():
        axes = _axes(name, index)
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


def _put_prompts(entry: dict, new: dict, index, slot_Q, start_Q, number) -> dict:
    """Writes W positions of each of the first `number` of Q rows to its slot, from its start on."""
    lead = () if index is None else (index,)

    def put(q, entry):
        places = {"s": slot_Q[q], "t": start_Q[q]}
        out = {}
        for name, x in entry.items():
            row = jax.lax.dynamic_slice_in_dim(new[name], q, 1)
            at = (*lead, *(places.get(axis, 0) for axis in _axes(name, index)))
            out[name] = jax.lax.dynamic_update_slice(x, row if index is None else row[None], at)
        return out

    return jax.lax.fori_loop(0, number, put, entry)


def _read(entry: dict, index, start, width: int) -> dict:
    """Returns `width` positions of all slots."""
    if index is None and width == _length(entry, index):
        return entry
    out = {}
    for name, x in entry.items():
        at, sizes = [0] * x.ndim, list(x.shape)
        time = _axes(name, index).index("t") + (index is not None)
        at[time], sizes[time] = start, width
        if index is not None:
            at[0], sizes[0] = index, 1
        part = jax.lax.dynamic_slice(x, at, sizes)
        out[name] = part if index is None else part[0]
    return out


def _scale(cached: dict, name: str, index):
    """Returns the scales of int8 keys or values as `[S, K, 1, 1, T]`."""
    axes = _axes(name, index)
    return jnp.einsum(f"{axes}->skdt", cached[f"{name}_scale"])[:, :, None]


def _scores(config: ModelConfig, q_SKGWd, cached: dict, index):
    """Returns `[S, K, G, W, T]` float32 scores of queries with cached keys."""
    k = cached["k"].astype(q_SKGWd.dtype)
    score = jnp.einsum(f"skgwd,{_axes('k', index)}->skgwt", q_SKGWd, k, preferred_element_type=jnp.float32)
    if "k_scale" in cached:
        score *= _scale(cached, "k", index)
    return attention.softcap(score, config.attention_softcap)


def _weigh(weight, cached: dict, index, dtype):
    """Returns `[S, K, G, W, head_dim]` float32 sums of cached values."""
    if "v_scale" in cached:
        weight = weight * _scale(cached, "v", index)
    spec = f"skgwt,{_axes('v', index)}->skgwd"
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
    T, read = _length(entry, index), read_at_once(split=index is None)
    q = _grouped(config, q_S1Hd, _heads(entry, index))
    if T <= read:
        cached = _read(entry, index, 0, T)
        seen = _seen(config, local, length_S[:, None], jnp.arange(T))
        weight = jax.nn.softmax(jnp.where(seen, _scores(config, q, cached, index), _MASKED), axis=-1)
        out = _weigh(weight, cached, index, q.dtype)
    else:

        def block(i, carry):
            top, mass, out = carry
            cached = _read(entry, index, i * read, read)
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
    T = _length(entry, index)
    q = _grouped(config, q_QWHd, _heads(entry, index))
    cached = jax.tree.map(lambda x: x[slot_Q], _read(entry, index, 0, T))

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


# --- the three things that happen to slots ------------------------------------------------------------------------


def _run_layers(params: dict, config: ModelConfig, x, cache: Cache, apply):
    """Runs `apply(x, weights, local, entry, index) -> (x, entry)` over the layers, each with its cache."""
    if isinstance(params["layers"], tuple):
        out = []
        for i, p in enumerate(params["layers"]):
            local = jnp.bool_(config.local_layers[i]) if any(config.local_layers) else None
            x, entry = apply(x, p, local, cache[i], None)
            out.append(entry)
        return x, tuple(out)

    # The cache is carried and updated in place: as an output of the scan, all of it would be copied.
    def layer(carry, xs):
        p, local, index = xs
        return apply(carry[0], p, local, carry[1], index), None

    xs = (params["layers"], transformer.local_layers(config), jnp.arange(config.num_layers))
    return jax.lax.scan(layer, (x, cache), xs)[0]


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
            new = _entries(k, v, entry, index)
            # Written before it is read, up to the start only: XLA would copy the cache to read it as it was.
            held = _put_prompts(entry, new, index, slot_Q, start_Q, number)
            if continued:
                return _attend_prompt(config, q, new, held, index, slot_Q, start_Q, local), held
            return alone(local)(q, k, v)[0], held

        return transformer.apply_layer(config, p, x, rope(local), attend, as_stored=index is not None)

    return _run_layers(params, config, transformer.embed(params, config, tokens_QW), cache, apply)[1]


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
            axes = _axes(path[-1].key, index)
            sizes = list(x.shape)
            for axis, size in (("s", 1), ("t", width)):
                sizes[axes.index(axis) + len(lead)] = size
            source, target = (
                (*lead, *(slot if axis == "s" else 0 for axis in axes)) for slot in (source_M[i], target_M[i])
            )
            return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, source, sizes), target)

        return jax.tree_util.tree_map_with_path(one, cache)

    return jax.lax.fori_loop(0, number, copy, cache)


def step(
    params: dict, config: ModelConfig, cache: Cache, token_S, length_S, live_S, *, blocks: int | None = None
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
    last = (_length(cache[0], None) if split else _length(cache, 0)) - 1
    # The last position of a slot that is not live is written in vain: no prompt that it may hold for others reaches it.
    position_S = jnp.where(live_S, length_S, last)
    if blocks is None:
        blocks = jnp.max(length_S) // read_at_once(split=split) + 1

    def apply(x, p, local, entry, index):
        def attend(q, k, v):
            new = _put_token(entry, _entries(k, v, entry, index), index, position_S)
            return _attend_token(config, q, new, index, length_S, local, blocks), new

        return transformer.apply_layer(config, p, x, rope(local), attend, as_stored=index is not None)

    x, cache = _run_layers(params, config, transformer.embed(params, config, token_S)[:, None], cache, apply)
    return transformer.rms_norm(config, x[:, 0], params["final_norm"]), cache
