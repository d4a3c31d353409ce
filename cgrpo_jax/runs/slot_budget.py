"""How many texts an engine writes at once, and what their keys and values take."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache, weights
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.stages import StageSpec

_PARTS = 8  # prompts of which parts enter in a step
# Where memory says how many texts there are, it holds a text of this share of the longest for each; at most so many.
_SHARE, _MOST = 8, 256


@dataclasses.dataclass(frozen=True)
class SlotBudget:
    """The slots of an engine.

    Attributes:
      num_slots: of a data group.
      longest_prompt: tokens of the longest prompt of its stages.
      length: tokens of the longest prompt with its continuation; each slot has room for them, or pages for one.
      dtype: of keys and values.
      bytes: of the whole cache, on one device.
      pages: of a data group; None: the cache is contiguous.
    """

    num_slots: int
    longest_prompt: int
    length: int
    dtype: str
    bytes: int
    pages: Pages | None = None


def slot_budget(
    config: Config,
    model: ModelConfig,
    specs: Sequence[StageSpec],
    *,
    mesh: jax.sharding.Mesh,
    dtype: str,
    num_slots: int | None,
    samples: bool,
) -> SlotBudget:
    """Returns the slots that a configuration asks for: `engine.num_slots`, or as many as `cache.gib` a device holds.

    An iteration's texts are the most that the latter gives, where an iteration samples: what learns from rows does not.
    With pages, `cache.gib` is what these take; without it, they hold `engine.num_slots` of the longest text.

    Raises:
      UserError: the memory does not hold a text, or keys and values can't have pages.
    """
    longest = max(one.max_prompt_length for one in specs)
    length = max(one.max_prompt_length + one.max_length for one in specs)
    cached = config.cache.dtype or dtype
    most = 2**31
    if samples:  # more than the texts that an iteration can have at a time would stay empty
        texts = config.questions_per_iteration * config.num_responses
        texts *= max(1, config.critique.num_per_response * config.refine.per_critique)
        most = -(-texts // sharding.num_groups(mesh))
    if has_pages(config, model, mesh=mesh, dtype=cached):
        pages, number, size = _pages(config, model, length, mesh=mesh, dtype=cached, num_slots=num_slots, most=most)
        return SlotBudget(number, longest, length, cached, pages.number * size, pages)
    split = weights.splits(mesh)
    sizes = {"slots": 1, "length": length, "dtype": jnp.dtype(cached), "split": split}
    size = _bytes(model, mesh, lambda tensor: kv_cache.empty_cache(model, tensor=tensor, **sizes))
    held = min(most, int(config.cache.gib * 2**30 // size))
    number = num_slots or config.engine.num_slots or held
    if number < 1:
        raise UserError(
            f"cache.gib {config.cache.gib:g} does not hold one slot of {length} tokens, which takes "
            f"{size / 2**30:.3g} GiB per device; raise it, lower the lengths, or set engine.num_slots."
        )
    return SlotBudget(number, longest, length, cached, number * size)


def has_pages(config: Config, model: ModelConfig, *, mesh: jax.sharding.Mesh, dtype: str) -> bool:
    """Returns whether keys and values of a model have pages, by `cache.kind`.

    Raises:
      UserError: they are to have pages, and can't.
    """
    if config.cache.kind != "paged":
        return False
    ragged_attention.check(model, mesh.shape[sharding.TENSOR], dtype, kernel=_is_tpu(mesh))
    return True


def overlaps(config: Config, mesh: jax.sharding.Mesh) -> bool:
    """Returns whether engines on a mesh dispatch a call before they read the last, by `engine.overlap`.

    Where the devices are CPUs, the host and the devices are the same cores: nothing is gained. Where strings end texts,
    the devices go on with these for a call more: that costs more than the host.
    """
    if config.engine.overlap == "auto":
        return mesh.devices.flat[0].platform != "cpu" and not config.sampling.stop
    return config.engine.overlap == "on"


def _is_tpu(mesh: jax.sharding.Mesh) -> bool:
    return mesh.devices.flat[0].platform == "tpu"


def _pages(
    config: Config, model: ModelConfig, length: int, *, mesh: jax.sharding.Mesh, dtype: str, num_slots: int | None,
    most: int,
) -> tuple[Pages, int, int]:  # fmt: skip
    """Returns the pages of a data group, how many texts it writes at once, and the bytes of a page on a device."""
    kernel, split, T = _is_tpu(mesh), weights.splits(mesh), config.cache.page_size
    one = Pages(1, T, tokens=config.engine.prompt_tokens, prompts=_PARTS, kernel=kernel)
    sizes = {"groups": 1, "dtype": jnp.dtype(dtype), "split": split}
    size = _bytes(model, mesh, lambda tensor: paged_cache.empty_pool(model, one, tensor=tensor, **sizes))
    gib, asked = config.cache.gib, num_slots or config.engine.num_slots
    number = int(gib * 2**30 // size) if gib and not num_slots else 1 + asked * one.of(length)
    pages = dataclasses.replace(one, number=number)
    if pages.longest < length:
        raise UserError(
            f"cache.gib {gib:g} does not hold the pages of one text of {length} tokens, which take "
            f"{(1 + one.of(length)) * size / 2**30:.3g} GiB per device; raise it, or lower the lengths."
        )
    held = pages.longest * _SHARE // length
    return pages, asked or max(1, min(most, held - held % _SHARE or held, _MOST)), size


def _bytes(model: ModelConfig, mesh: jax.sharding.Mesh, make: Callable[[int], Any]) -> int:
    """Returns what a cache takes on a device, made for so many devices of a tensor group."""
    tensor = mesh.shape[sharding.TENSOR]
    cut = tensor if model.num_heads % tensor == 0 else 1
    leaves = jax.tree.leaves(jax.eval_shape(lambda: make(cut)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) // cut
