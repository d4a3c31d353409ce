"""How many texts an engine writes at once, and what their keys and values take."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache, weights
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.stages import StageSpec


@dataclasses.dataclass(frozen=True)
class SlotBudget:
    """The slots of an engine.

    Attributes:
      num_slots: of a data group.
      longest_prompt: tokens of the longest prompt of its stages.
      length: tokens of the longest prompt with its continuation; each slot has room for them.
      dtype: of keys and values.
      bytes: of the whole cache, on one device.
    """

    num_slots: int
    longest_prompt: int
    length: int
    dtype: str
    bytes: int


def slot_budget(
    config: Config,
    model: ModelConfig,
    specs: Sequence[StageSpec],
    *,
    mesh: jax.sharding.Mesh,
    dtype: str,
    num_slots: int | None,
) -> SlotBudget:
    """Returns the slots that a configuration asks for: `engine.num_slots`, or as many as `cache.gib` a device holds.

    An iteration's texts are the most that the latter gives.
    """
    longest = max(one.max_prompt_length for one in specs)
    length = max(one.max_prompt_length + one.max_length for one in specs)
    cached = config.cache.dtype or dtype
    tensor, split = mesh.shape[sharding.TENSOR], weights.splits(mesh)
    cut = tensor if model.num_heads % tensor == 0 else 1
    one = jax.eval_shape(
        lambda: kv_cache.empty_cache(model, slots=1, length=length, tensor=cut, dtype=jnp.dtype(cached), split=split)
    )
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(one)) // cut
    # More than the texts that an iteration can have at a time would stay empty.
    texts = config.questions_per_iteration * config.num_responses
    texts *= max(1, config.critique.num_per_response * config.refine.per_critique)
    most = -(-texts // sharding.num_groups(mesh))
    number = num_slots or config.engine.num_slots or min(most, int(config.cache.gib * 2**30 // size))
    if number < 1:
        raise UserError(
            f"cache.gib {config.cache.gib:g} does not hold one slot of {length} tokens, which takes "
            f"{size / 2**30:.3g} GiB per device; raise it, lower the lengths, or set engine.num_slots."
        )
    return SlotBudget(number, longest, length, cached, number * size)
