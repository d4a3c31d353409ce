"""The program of an engine whose cache has pages: texts decode, and parts of prompts enter beside them.

Where nothing enters it decodes again and again, as `slots.tick` does. Where something does, it takes one step, in which
the products with the weights are made for both. A text may begin in the step in which the end of its prompt enters.

Attention can't skip a sequence, so the slots that are live come first: they are put in that order once a call, not in
each step. A text that ends within a call is computed in vain until the call ends.
"""

import functools

import jax
import jax.numpy as jnp

from cgrpo_jax import sharding
from cgrpo_jax.inference import slots as slots_lib
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged import decoding as paged_decoding
from cgrpo_jax.inference.paged.decoding import Chunks
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.inference.slots import EngineSettings, Orders, Report, Slots


@functools.partial(jax.jit, static_argnames=("settings", "rows", "sampling", "others"), donate_argnames=("slots",))
def tick(
    params,
    slots: Slots,
    orders: Orders,
    chunks: Chunks | None,
    seed,
    iteration,
    until,
    most,
    *,
    settings: EngineSettings,
    rows: int,
    sampling: Sampling,
    others: tuple[Sampling, ...] = (),
) -> tuple[Slots, Report]:
    """Copies pages and begins texts as ordered, then samples a token of every live slot, again and again.

    Args:
      params: the weights, on the mesh in the generation layout.
      slots: their state.
      orders: what begins and what ends, with `pages`.
      chunks: parts of prompts, by data group, which enter in the one step that is then taken; None: there are none.
      seed, iteration, until: as for `slots.tick`.
      most: int32 scalar, the steps that the texts' pages are enough for, at most `chunk`.
      rows: static: of each data group so many slots are computed. No more are live.
      settings, sampling, others: static, as for `slots.tick`.

    Returns:
      (the slots, in their own buffers; what was done)
    """
    pages = settings.pages
    assert pages, "a contiguous cache has slots.tick"

    def part(params, slots, orders, chunks, seed, iteration, until, most):
        own = orders.pages
        pool = paged_cache.copy(slots.cache, own.source_M, own.target_M, own.number_G[0])
        slots = slots_lib.begin(slots.replace(cache=pool), orders, seed, iteration)
        number, order_R = slots.live_S.sum(), jnp.argsort(~slots.live_S, stable=True)[:rows]
        table_RP, sampling_R = jax.tree.map(lambda x: _rows(x, order_R), (own.table_SP, orders.sampling_S))
        unread = slots_lib.count_unread(slots, orders)
        pool, state = slots.cache, slots.replace(cache=None)

        def step(slots):
            return paged_decoding.step(
                params, settings.config, slots.cache, slots.token_S, slots.length_S, slots.live_S, table_RP, chunks,
                pages=pages, number=number,
            )  # fmt: skip

        first = jax.tree.map(lambda x: _rows(x, order_R), state).replace(cache=pool)
        first, (tokens_CR, logp_CR, _, _, steps) = slots_lib.decode(
            params, first, orders.replace(sampling_S=sampling_R), step, unread=unread, until=until, settings=settings,
            samplings=(sampling, *others), most=most, once=chunks is not None,
        )  # fmt: skip
        pool, first = first.cache, first.replace(cache=None)
        state = jax.tree.map(lambda x, new: _placed(x, order_R, new), state, first)
        nothing = jnp.zeros_like(state.token_S, shape=(len(state.token_S), len(tokens_CR)))
        tokens_CS, logp_CS = (_placed(nothing.astype(x_CR.dtype), order_R, x_CR.T).T for x_CR in (tokens_CR, logp_CR))
        return state.replace(cache=pool), (tokens_CS, logp_CS, state.sampled_S, state.live_S, steps)

    by_rows, whole, specs = sharding.BY_ROWS, sharding.WHOLE, slots_lib.slots_specs(settings)
    of_rows = [jax.tree.map(lambda _: by_rows, one) for one in (orders, chunks)]
    slots, report = jax.shard_map(
        part,
        mesh=settings.mesh,
        in_specs=(slots_lib.param_specs(params, settings), specs, *of_rows, *[whole] * 4),
        out_specs=(specs, slots_lib.REPORT_SPECS),
    )(params, slots, orders, chunks, seed, iteration, until, most)
    return slots, sharding.replicate(Report(*report), settings.mesh)


def _rows(x_S: jax.Array, order_R: jax.Array) -> jax.Array:
    return x_S.at[order_R].get(mode="promise_in_bounds", unique_indices=True)


def _placed(x_S: jax.Array, order_R: jax.Array, new_R: jax.Array) -> jax.Array:
    return x_S.at[order_R].set(new_R, mode="promise_in_bounds", unique_indices=True)
