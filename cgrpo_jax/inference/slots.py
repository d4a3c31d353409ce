"""The programs of the generation engine: slots that decode together, each a text of its own, refilled at any time.

Three programs, of static shapes, work on the slots in place: `prefill` writes prompts into slots, `share` copies what
one slot holds to others, `tick` decodes a token of all slots again and again. What the host must know of a tick, the
tokens sampled and which slots have ended, is returned; all else stays on the devices. slot_programs.py says what each
is called with: the engine calls them with arrays, a plan with shapes.

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
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.decoding import PageOrders
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models import transformer


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
      pages: of a data group, where the cache has pages; None: it is contiguous.
    """

    config: params_lib.ModelConfig
    mesh: jax.sharding.Mesh
    eos_ids: tuple[int, ...]
    num_slots: int
    length: int
    chunk: int
    cache_dtype: str
    split: bool
    pages: Pages | None = None

    @property
    def num_groups(self) -> int:
        return sharding.num_groups(self.mesh)


class Slots(struct.PyTreeNode):
    """What the devices keep of G * S slots from program to program.

    Attributes:
      cache: keys and values, contiguous or a pool of pages; the newest token is not in it yet.
      token_S: int32, the newest token.
      length_S: int32, tokens in the cache.
      keys_S: PRNG key of each text, as data.
      sampled_S: int32, tokens sampled so far.
      limit_S: int32, tokens that may be sampled.
      live_S: bool, whether the text goes on.
    """

    cache: kv_cache.Cache | paged_cache.Pool
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
      occupied_S: bool, whether the host knows of a text here, one that begins or one whose end it has not read.
      token_S, length_S, limit_S: as in `Slots`.
      index_S6: int32, the fields of its `RowIndex`.
      sampling_S: int32, which of several samplings draws the text that is here; None where there is one.
      pages: of the texts, where the cache has pages.
    """

    begin_S: jax.Array | np.ndarray
    stop_S: jax.Array | np.ndarray
    occupied_S: jax.Array | np.ndarray
    token_S: jax.Array | np.ndarray
    length_S: jax.Array | np.ndarray
    limit_S: jax.Array | np.ndarray
    index_S6: jax.Array | np.ndarray
    sampling_S: jax.Array | np.ndarray | None = None
    pages: PageOrders | None = None


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


REPORT_SPECS = (*[PartitionSpec(None, sharding.DATA)] * 2, *[sharding.BY_ROWS] * 2, sharding.WHOLE)


def slots_specs(settings: EngineSettings) -> Slots:
    """Returns how each array of `Slots` is cut."""
    tensor = settings.mesh.shape[sharding.TENSOR]
    head_axis = sharding.TENSOR if tensor > 1 and settings.config.num_heads % tensor == 0 else None
    names = {"s": sharding.DATA, "p": sharding.DATA, "k": head_axis}
    shapes = jax.eval_shape(functools.partial(_empty, settings))
    specs = jax.tree.map(lambda _: sharding.BY_ROWS, shapes)
    axes = (paged_cache.pool_axes if settings.pages else kv_cache.cache_axes)(shapes.cache)
    cache = jax.tree.map(lambda axes: PartitionSpec(*map(names.get, axes)), axes)
    return specs.replace(cache=cache)


def _empty(settings: EngineSettings) -> Slots:
    S = settings.num_groups * settings.num_slots
    number = jnp.zeros(S, jnp.int32)
    keys = jnp.zeros((S, *jax.random.key_data(jax.random.key(0)).shape), jnp.uint32)
    return Slots(_empty_cache(settings), number, number, keys, number, number, jnp.zeros(S, jnp.bool_))


def _empty_cache(settings: EngineSettings) -> Any:
    tensor, groups = settings.mesh.shape[sharding.TENSOR], settings.num_groups
    sizes = {
        "tensor": 1 if settings.config.num_heads % tensor else tensor,
        "dtype": settings.cache_dtype,
        "split": settings.split,
    }
    if settings.pages:
        return paged_cache.empty_pool(settings.config, settings.pages, groups=groups, **sizes)
    return kv_cache.empty_cache(settings.config, slots=groups * settings.num_slots, length=settings.length, **sizes)


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


def param_specs(params: dict, settings: EngineSettings):
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
        in_specs=(param_specs(params, settings), cache, rows, rows, rows, rows, rows),
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
      until: int32[2], a `running_slots.Until`. The tick also ends when no text goes on, and after `chunk` steps.
      settings, sampling: static.
      others: static, further samplings, which some of the texts have (`Orders.sampling_S`).
      blocks: as in `decoding.step`.

    Returns:
      (the slots, in their own buffers; what was done)
    """

    def part(params, slots, orders, seed, iteration, until):
        def step(slots):
            return decoding.step(
                params, settings.config, slots.cache, slots.token_S, slots.length_S, slots.live_S, blocks=blocks
            )

        slots = begin(slots, orders, seed, iteration)
        return decode(
            params, slots, orders, step, unread=count_unread(slots, orders), until=until, settings=settings,
            samplings=(sampling, *others),
        )  # fmt: skip

    rows, whole, specs = sharding.BY_ROWS, sharding.WHOLE, slots_specs(settings)
    slots, report = jax.shard_map(
        part,
        mesh=settings.mesh,
        in_specs=(param_specs(params, settings), specs, jax.tree.map(lambda _: rows, orders), whole, whole, whole),
        out_specs=(specs, REPORT_SPECS),
    )(params, slots, orders, seed, iteration, until)
    return slots, sharding.replicate(Report(*report), settings.mesh)


def decode(
    params,
    slots: Slots,
    orders: Orders,
    step: Callable[[Slots], tuple],
    *,
    unread,
    until,
    settings: EngineSettings,
    samplings: tuple[Sampling, ...],
    most=None,
    once: bool = False,
) -> tuple[Slots, tuple]:
    """Samples a token of every live slot of a data group, again and again.

    Args:
      params, orders, until, settings: as for `tick`.
      slots: with what begins.
      step: gives the hidden states that predict the next tokens, and the cache.
      unread: of the data group, from `count_unread`.
      samplings: how tokens are drawn.
      most: int32 scalar, steps at most, up to `chunk`, which it is by default.
      once: take one step, whatever is live.

    Returns:
      (the slots, the fields of a `Report`)
    """
    C = settings.chunk
    draw, most = _drawing(samplings, settings.config.vocab_size), C if most is None else most
    S, unread = len(slots.token_S), jax.lax.psum(unread, sharding.DATA)

    def counted(live_S, began_S):
        both = jnp.stack([live_S.sum(), (began_S & ~live_S).sum()]).astype(jnp.int32)
        return jax.lax.psum(both, sharding.DATA)

    def going(state):
        i, counts = state[0], state[1]
        enough = (counts[1] >= until[0]) | ((unread + counts[1] >= until[1]) & (i > 0))
        return (i < most) & (counts[0] > 0) & ~enough

    def one(state):
        i, _, slots, tokens_CS, logp_CS = state
        hidden_SD, cache = step(slots)
        token_S, logp_S = draw(
            transformer.logits(params, settings.config, hidden_SD),
            sampling_lib.token_keys(jax.random.wrap_key_data(slots.keys_S), slots.sampled_S),
            orders.sampling_S,
        )
        slots = _advance(slots.replace(cache=cache), token_S, settings.eos_ids)
        tokens_CS, logp_CS = (
            jax.lax.dynamic_update_slice_in_dim(x_CS, x_S[None], i, axis=0, allow_negative_indices=False)
            for x_CS, x_S in ((tokens_CS, token_S), (logp_CS, logp_S))
        )
        return i + 1, counted(slots.live_S, began_S), slots, tokens_CS, logp_CS

    began_S = slots.live_S
    nothing = sharding.varying_like((jnp.zeros((C, S), jnp.int32), jnp.zeros((C, S))), slots.live_S)
    state = (jnp.int32(0), counted(began_S, began_S), slots, *nothing)
    i, _, slots, tokens_CS, logp_CS = one(state) if once else jax.lax.while_loop(going, one, state)
    return slots, (tokens_CS, logp_CS, slots.sampled_S, slots.live_S, i)


def count_unread(slots: Slots, orders: Orders) -> jax.Array:
    """Returns how many texts of a data group had ended, unread by the host, when it gave orders; they have begun."""
    return (orders.occupied_S & ~slots.live_S).sum(dtype=jnp.int32)


def _drawing(samplings: tuple[Sampling, ...], vocab_size: int) -> Callable:
    """Returns what draws tokens: `(logits_SV, keys_S, sampling_S) -> (token_S, logp_S)`."""
    if samplings[1:]:
        return functools.partial(sampling_lib.sample_each, samplings=samplings, vocab_size=vocab_size)
    (sampling,) = samplings

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


def begin(slots: Slots, orders: Orders, seed, iteration) -> Slots:
    """Puts the texts that are ordered into their slots."""
    begin_S = orders.begin_S
    keys_S = jax.random.key_data(sampling_lib.row_keys(seed, iteration, orders.index_S6))

    def new(now, was):
        return jnp.where(begin_S, now, was)

    return slots.replace(
        token_S=new(orders.token_S, slots.token_S),
        length_S=new(orders.length_S, slots.length_S),
        keys_S=jnp.where(begin_S[:, None], keys_S, slots.keys_S),
        sampled_S=new(orders.pages.sampled_S if orders.pages else 0, slots.sampled_S),
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
