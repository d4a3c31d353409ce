"""What each program of the engine is called with: the engine calls them with arrays, a plan with shapes."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cgrpo_jax import sharding
from cgrpo_jax.inference import slots
from cgrpo_jax.inference.paged import slots as paged_slots
from cgrpo_jax.inference.paged.decoding import Chunks, PageOrders
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.runtime.program import Program


def prefill_program(settings: slots.EngineSettings, *, rows: int, width: int, continued: bool) -> Program:
    """Returns `prefill` of up to `rows` prompts of `width` tokens a data group; called with (params, slots, *inputs).

    The inputs are (tokens_QW, length_Q, start_Q, slot_Q, number_G).
    """
    Q, G = settings.num_groups * rows, settings.num_groups
    row = _by_rows(settings, Q)
    name = f"prefill of {rows} x {width} tokens" + (" after others" if continued else "")
    inputs = (_by_rows(settings, Q, width), row, row, row, _by_rows(settings, G))
    return Program(name, slots.prefill, inputs, {"settings": settings, "continued": continued})


def share_program(settings: slots.EngineSettings, *, width: int) -> Program:
    """Returns `share` of `width` positions; called with (slots, *inputs), which are (source_S, target_S, number_G)."""
    slot, number = _by_rows(settings, settings.num_groups * settings.num_slots), _by_rows(settings, settings.num_groups)
    return Program(f"copy of {width} tokens", slots.share, (slot, slot, number), {"settings": settings, "width": width})


def tick_program(settings: slots.EngineSettings, sampling: Sampling, *others: Sampling) -> Program:
    """Returns `tick` that draws tokens so, or in one of several ways each text.

    It is called with (params, slots, *inputs), which are (orders, seed, iteration, until).
    """
    S = settings.num_groups * settings.num_slots
    flag, number = _by_rows(settings, S, dtype=np.bool_), _by_rows(settings, S)
    orders = slots.Orders(
        flag, flag, flag, number, number, number, _by_rows(settings, S, 6), number if others else None
    )
    seed, until = _whole(settings, dtype=np.uint32), _whole(settings, 2)
    name = f"decoding, {' and '.join(map(str, (sampling, *others)))}"
    keywords = {"settings": settings, "sampling": sampling} | ({"others": others} if others else {})
    return Program(name, slots.tick, (orders, seed, seed, until), keywords)


def paged_program(
    settings: slots.EngineSettings, tokens: int, rows: int, sampling: Sampling, *others: Sampling
) -> Program:
    """Returns `paged_slots.tick` of so many slots of a data group, and tokens of prompts, or none where `tokens` is 0.

    It is called with (params, slots, *inputs), which are (orders, chunks, seed, iteration, until, most).
    """
    pages, G, S = settings.pages, settings.num_groups, settings.num_groups * settings.num_slots
    assert pages, "a contiguous cache has other programs"
    each = pages.of(settings.length)
    flag, number = _by_rows(settings, S, dtype=np.bool_), _by_rows(settings, S)
    of_pages = PageOrders(_by_rows(settings, S, each), number, number, number, _by_rows(settings, G))
    orders = slots.Orders(
        flag, flag, flag, number, number, number, _by_rows(settings, S, 6), number if others else None, of_pages
    )
    token, part = _by_rows(settings, G * tokens), _by_rows(settings, G * pages.prompts)
    table = _by_rows(settings, G * pages.prompts, each)
    chunks = Chunks(token, token, token, part, part, table) if tokens else None
    seed, until, most = _whole(settings, dtype=np.uint32), _whole(settings, 2), _whole(settings)
    few = f" {rows} texts" if rows < settings.num_slots else ""
    beside = f" beside {tokens} tokens of prompts" if tokens else ""
    name = f"decoding{few}{beside}, {' and '.join(map(str, (sampling, *others)))}"
    keywords = {"settings": settings, "rows": rows, "sampling": sampling} | ({"others": others} if others else {})
    return Program(name, paged_slots.tick, (orders, chunks, seed, seed, until, most), keywords)


def _whole(settings: slots.EngineSettings, *shape: int, dtype: Any = np.int32) -> Any:
    return _placed(settings, shape, dtype, sharding.WHOLE)


def _by_rows(settings: slots.EngineSettings, *shape: int, dtype: Any = np.int32) -> Any:
    return _placed(settings, shape, dtype, sharding.BY_ROWS)


def _placed(settings: slots.EngineSettings, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
    """Returns the shape that stands for an array in `Program.inputs`."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(settings.mesh, spec))
