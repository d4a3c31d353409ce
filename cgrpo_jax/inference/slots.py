"""The programs of the generation engine: slots that decode together, each a text of its own, refilled at any time.

Three programs, of static shapes, work on the slots in place: `prefill` writes prompts into slots, `share` copies what
one slot holds to others, `tick` decodes a token of all slots again and again. What the host must know of a tick, the
tokens sampled and which slots have ended, is returned; all else stays on the devices. `prefill_program` and its like
say what each is called with: the engine calls them with arrays, a plan with shapes.

Each data group has S slots of its own and sees only these; all groups decode for as many steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from cgrpo_jax import sharding
from cgrpo_jax.inference import decoding, kv_cache
from cgrpo_jax.inference import sampling as sampling_lib
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models import transformer
from cgrpo_jax.runtime.program import Program


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What the programs of an engine are compiled for.

    Attributes:
      config, mesh: of the model.
      eos_ids: tokens that end a text.
      num_slots: S, slots of a data group.
      length: positions that a slot needs.
      chunk: C, the most tokens a tick samples for a slot.
      cache_dtype: of keys and values.
      split: whether weights and cache have one dict a layer (kv_cache.py).
    """

    config: params_lib.ModelConfig
    mesh: jax.sharding.Mesh
    eos_ids: tuple[int, ...]
    num_slots: int
    length: int
    chunk: int
    cache_dtype: str
    split: bool

    @property
    def num_groups(self) -> int:
        return sharding.num_groups(self.mesh)


class Slots(struct.PyTreeNode):
    """What the devices keep of G * S slots from program to program.

    Attributes:
      cache: keys and values; the newest token is not in it yet.
      token_S: int32, the newest token.
      length_S: int32, tokens in the cache.
      keys_S: PRNG key of each text, as data.
      sampled_S: int32, tokens sampled so far.
      limit_S: int32, tokens that may be sampled.
      live_S: bool, whether the text goes on.
    """

    cache: kv_cache.Cache
    token_S: jax.Array
    length_S: jax.Array
    keys_S: jax.Array
    sampled_S: jax.Array
    limit_S: jax.Array
    live_S: jax.Array


class Orders(struct.PyTreeNode):
    """What the host asks of a tick, for each of G * S slots.

    Attributes:
      begin_S: bool, whether a text begins here; the fields below are its own.
      stop_S: bool, whether the text that is here is to end.
      token_S, length_S, limit_S: as in `Slots`.
      index_S6: int32, the fields of its `RowIndex`.
      sampling_S: int32, which of several samplings draws the text that is here; None where there is one.
    """

    begin_S: jax.Array | np.ndarray
    stop_S: jax.Array | np.ndarray
    token_S: jax.Array | np.ndarray
    length_S: jax.Array | np.ndarray
    limit_S: jax.Array | np.ndarray
    index_S6: jax.Array | np.ndarray
    sampling_S: jax.Array | np.ndarray | None = None


class Report(struct.PyTreeNode):
    """What a tick did, whole on every device.

    Attributes:
      tokens_CS, logp_CS: what was sampled, and its log-probabilities (nats), in rows of steps.
      sampled_S: as in `Slots`, after the tick.
      live_S: likewise.
      steps: int32 scalar, steps of the tick.
    """

    tokens_CS: jax.Array | np.ndarray
    logp_CS: jax.Array | np.ndarray
    sampled_S: jax.Array | np.ndarray
    live_S: jax.Array | np.ndarray
    steps: jax.Array | np.ndarray


def slots_specs(settings: EngineSettings) -> Slots:
    """Returns how each array of `Slots` is cut."""
    tensor = settings.mesh.shape[sharding.TENSOR]
    head_axis = sharding.TENSOR if tensor > 1 and settings.config.num_heads % tensor == 0 else None
    names = {"s": sharding.DATA, "k": head_axis}
    shapes = jax.eval_shape(functools.partial(_empty, settings))
    specs = jax.tree.map(lambda _: sharding.BY_ROWS, shapes)
    cache = jax.tree.map(lambda axes: PartitionSpec(*map(names.get, axes)), kv_cache.cache_axes(shapes.cache))
    return specs.replace(cache=cache)


def _empty(settings: EngineSettings) -> Slots:
    S = settings.num_groups * settings.num_slots
    number = jnp.zeros(S, jnp.int32)
    keys = jnp.zeros((S, *jax.random.key_data(jax.random.key(0)).shape), jnp.uint32)
    return Slots(_empty_cache(settings), number, number, keys, number, number, jnp.zeros(S, jnp.bool_))


def _empty_cache(settings: EngineSettings) -> kv_cache.Cache:
    tensor = settings.mesh.shape[sharding.TENSOR]
    return kv_cache.empty_cache(
        settings.config,
        slots=settings.num_groups * settings.num_slots,
        length=settings.length,
        tensor=1 if settings.config.num_heads % tensor else tensor,
        dtype=settings.cache_dtype,
        split=settings.split,
    )


def _shardings(settings: EngineSettings, specs):
    return jax.tree.map(lambda spec: NamedSharding(settings.mesh, spec), specs)


def empty(settings: EngineSettings) -> Slots:
    """Returns slots that hold nothing, on the mesh."""
    return _empty_program(settings)()


@functools.cache  # else every run of an engine would compile it again
def _empty_program(settings: EngineSettings):
    return jax.jit(functools.partial(_empty, settings), out_shardings=_shardings(settings, slots_specs(settings)))


def slots_shapes(settings: EngineSettings) -> Slots:
    """Returns `empty` as `jax.ShapeDtypeStruct`s that say where each array lies."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(_empty_program(settings)),
        _shardings(settings, slots_specs(settings)),
    )


def _param_specs(params: dict, settings: EngineSettings):
    axes = params_lib.axes_like(settings.config, params)
    return sharding.param_specs(axes, params, settings.mesh, layout=sharding.GENERATION)


@functools.partial(jax.jit, static_argnames=("settings", "continued"), donate_argnames=("slots",))
def prefill(
    params, slots: Slots, tokens_QW, length_Q, start_Q, slot_Q, number_G, *, settings: EngineSettings, continued: bool
) -> Slots:
    """Runs `decoding.prefill` in every data group, each on its own Q rows of the arguments."""

    def part(params, cache, tokens_QW, length_Q, start_Q, slot_Q, number_G):
        return decoding.prefill(
            params, settings.config, cache, tokens_QW, length_Q, start_Q, slot_Q, number_G[0], continued=continued
        )

    rows, cache = sharding.BY_ROWS, slots_specs(settings).cache
    cache = jax.shard_map(
        part,
        mesh=settings.mesh,
        in_specs=(_param_specs(params, settings), cache, rows, rows, rows, rows, rows),
        out_specs=cache,
    )(params, slots.cache, tokens_QW, length_Q, start_Q, slot_Q, number_G)
    return slots.replace(cache=cache)


@functools.partial(jax.jit, static_argnames=("settings", "width"), donate_argnames=("slots",))
def share(slots: Slots, source_S, target_S, number_G, *, settings: EngineSettings, width: int) -> Slots:
    """Runs `kv_cache.share` in every data group, each on its own part of the arguments."""

    def part(cache, source_M, target_M, number_G):
        return kv_cache.share(cache, source_M, target_M, number_G[0], width=width)

    rows, cache = sharding.BY_ROWS, slots_specs(settings).cache
    cache = jax.shard_map(part, mesh=settings.mesh, in_specs=(cache, rows, rows, rows), out_specs=cache)(
        slots.cache, source_S, target_S, number_G
    )
    return slots.replace(cache=cache)


@functools.partial(jax.jit, static_argnames=("settings", "sampling", "others", "blocks"), donate_argnames=("slots",))
def tick(
    params,
    slots: Slots,
    orders: Orders,
    seed,
    iteration,
    until,
    *,
    settings: EngineSettings,
    sampling: Sampling,
    others: tuple[Sampling, ...] = (),
    blocks: int | None = None,
) -> tuple[Slots, Report]:
    """Begins the texts that are ordered, then samples a token of every live slot, again and again.

    Args:
      params: the weights, on the mesh in the generation layout.
      slots: their state.
      orders: what begins and what ends.
      seed, iteration: enter the random keys of the texts that begin.
      until: int32 scalar. The tick ends when so many texts have ended in it, when none goes on, or after `chunk` steps.
      settings, sampling: static.
      others: static, further samplings, which some of the texts have (`Orders.sampling_S`).
      blocks: as in `decoding.step`.

    Returns:
      (the slots, in their own buffers; what was done)
    """
    C = settings.chunk
    draw = _drawing(sampling, others, settings.config.vocab_size)

    def part(params, slots, orders, seed, iteration, until):
        slots = _begin(slots, orders, seed, iteration)
        S = len(slots.token_S)

        def counted(live_S, began_S):
            both = jnp.stack([live_S.sum(), (began_S & ~live_S).sum()]).astype(jnp.int32)
            return jax.lax.psum(both, sharding.DATA)

        def going(state):
            i, counts = state[0], state[1]
            return (i < C) & (counts[0] > 0) & (counts[1] < until)

        def step(state):
            i, _, slots, tokens_CS, logp_CS = state
            hidden_SD, cache = decoding.step(
                params, settings.config, slots.cache, slots.token_S, slots.length_S, slots.live_S, blocks=blocks
            )
            token_S, logp_S = draw(
                transformer.logits(params, settings.config, hidden_SD),
                sampling_lib.token_keys(jax.random.wrap_key_data(slots.keys_S), slots.sampled_S),
                orders.sampling_S,
            )
            slots = _advance(slots.replace(cache=cache), token_S, settings.eos_ids)
            tokens_CS = jax.lax.dynamic_update_slice_in_dim(tokens_CS, token_S[None], i, axis=0)
            logp_CS = jax.lax.dynamic_update_slice_in_dim(logp_CS, logp_S[None], i, axis=0)
            return i + 1, counted(slots.live_S, began_S), slots, tokens_CS, logp_CS

        began_S = slots.live_S
        nothing = sharding.varying_like((jnp.zeros((C, S), jnp.int32), jnp.zeros((C, S))), slots.live_S)
        state = (jnp.int32(0), counted(began_S, began_S), slots, *nothing)
        i, _, slots, tokens_CS, logp_CS = jax.lax.while_loop(going, step, state)
        return slots, (tokens_CS, logp_CS, slots.sampled_S, slots.live_S, i)

    rows, whole, specs = sharding.BY_ROWS, sharding.WHOLE, slots_specs(settings)
    by_column = PartitionSpec(None, sharding.DATA)
    slots, report = jax.shard_map(
        part,
        mesh=settings.mesh,
        in_specs=(_param_specs(params, settings), specs, jax.tree.map(lambda _: rows, orders), whole, whole, whole),
        out_specs=(specs, (by_column, by_column, rows, rows, whole)),
    )(params, slots, orders, seed, iteration, until)
    return slots, sharding.replicate(Report(*report), settings.mesh)


def _drawing(sampling: Sampling, others: tuple[Sampling, ...], vocab_size: int) -> Callable:
    """Returns what draws tokens: `(logits_SV, keys_S, sampling_S) -> (token_S, logp_S)`."""
    if others:
        return functools.partial(sampling_lib.sample_each, samplings=(sampling, *others), vocab_size=vocab_size)

    def draw(logits_SV, keys_S, _):
        return sampling_lib.sample(
            logits_SV,
            keys_S,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            vocab_size=vocab_size,
        )

    return draw


def _begin(slots: Slots, orders: Orders, seed, iteration) -> Slots:
    """Puts the texts that are ordered into their slots."""
    begin_S = orders.begin_S
    keys_S = jax.random.key_data(sampling_lib.row_keys(seed, iteration, orders.index_S6))

    def new(now, was):
        return jnp.where(begin_S, now, was)

    return slots.replace(
        token_S=new(orders.token_S, slots.token_S),
        length_S=new(orders.length_S, slots.length_S),
        keys_S=jnp.where(begin_S[:, None], keys_S, slots.keys_S),
        sampled_S=new(0, slots.sampled_S),
        limit_S=new(orders.limit_S, slots.limit_S),
        live_S=begin_S | (slots.live_S & ~orders.stop_S),
    )


def _advance(slots: Slots, token_S, eos_ids: tuple[int, ...]) -> Slots:
    """Records the token sampled for each live slot, and which texts it ends."""
    live_S = slots.live_S
    sampled_S = slots.sampled_S + live_S
    ended_S = jnp.isin(token_S, jnp.asarray(eos_ids, jnp.int32)) | (sampled_S >= slots.limit_S)
    return slots.replace(
        token_S=jnp.where(live_S, token_S, slots.token_S),
        length_S=slots.length_S + live_S,
        sampled_S=sampled_S,
        live_S=live_S & ~ended_S,
    )


# --- what each is called with -------------------------------------------------------------------------------------


def prefill_program(settings: EngineSettings, *, rows: int, width: int, continued: bool) -> Program:
    """Returns `prefill` of up to `rows` prompts of `width` tokens a data group; called with (params, slots, *inputs).

    The inputs are (tokens_QW, length_Q, start_Q, slot_Q, number_G).
    """
    Q, G = settings.num_groups * rows, settings.num_groups
    row = _by_rows(settings, Q)
    name = f"prefill of {rows} x {width} tokens" + (" after others" if continued else "")
    inputs = (_by_rows(settings, Q, width), row, row, row, _by_rows(settings, G))
    return Program(name, prefill, inputs, {"settings": settings, "continued": continued})


def share_program(settings: EngineSettings, *, width: int) -> Program:
    """Returns `share` of `width` positions; called with (slots, *inputs), which are (source_S, target_S, number_G)."""
    slot, number = _by_rows(settings, settings.num_groups * settings.num_slots), _by_rows(settings, settings.num_groups)
    return Program(f"copy of {width} tokens", share, (slot, slot, number), {"settings": settings, "width": width})


def tick_program(settings: EngineSettings, sampling: Sampling, *others: Sampling) -> Program:
    """Returns `tick` that draws tokens so, or in one of several ways each text.

    It is called with (params, slots, *inputs), which are (orders, seed, iteration, until).
    """
    S = settings.num_groups * settings.num_slots
    flag, number = _by_rows(settings, S, dtype=np.bool_), _by_rows(settings, S)
    orders = Orders(flag, flag, number, number, number, _by_rows(settings, S, 6), number if others else None)
    seed, until = (_placed(settings, (), dtype, sharding.WHOLE) for dtype in (np.uint32, np.int32))
    name = f"decoding, {' and '.join(map(str, (sampling, *others)))}"
    keywords = {"settings": settings, "sampling": sampling} | ({"others": others} if others else {})
    return Program(name, tick, (orders, seed, seed, until), keywords)


def _by_rows(settings: EngineSettings, *shape: int, dtype: Any = np.int32) -> Any:
    return _placed(settings, shape, dtype, sharding.BY_ROWS)


def _placed(settings: EngineSettings, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
    """Returns the shape that stands for an array in `Program.inputs`."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(settings.mesh, spec))
