"""What a plan is made of: arrays that stay on the devices, and programs as training calls them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.records import TrainRow
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training import packing
from cgrpo_jax.training.token_rows import assign


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Arrays that stay on the devices from one program to the next.

    Attributes:
      kind: weights, optimizer, kv_cache, or temporaries (gradients).
      shapes: pytree of `jax.ShapeDtypeStruct`s with shardings.
    """

    kind: str
    shapes: Any

    @property
    def bytes(self) -> int:
        """Bytes on one device."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.shapes)
        )


@dataclasses.dataclass(frozen=True)
class Call:
    """One program, as training calls it.

    Attributes:
      name: what it is reported as; calls of one name are added up.
      phase: one of `programs.PHASES`.
      program: as the run makes it.
      on_devices: its first arguments, which lie on the devices before it runs, as shapes.
      own: names of the buffers that are among its arguments and results.
      beside: names of those that are on the devices meanwhile, and are not.
      times: how often it runs in one run of what it is reported as.
      per_iteration: how often that runs in an iteration; 0 if in evaluations only, or if the prompts decide it.
      trips: how often the loops run that end on data, where the bytes it moves are counted in the program itself:
        prompts written; tokens and, within that, blocks of the cache that are read; packed batches. Empty for others.
      repeated: how often a run does what one trip of its outermost loop computes.
      decodes: whether it decodes, so that its first loop runs a token at a time.
      counted: of a program that decodes, further keywords that leave it one loop that ends on data.
      pages: what it reads of the cache's pages, which is not in its text.
      unused_end: whether nothing uses what the last layer makes of its keys and values, which is computed all the same.
      is_critics: whether it is of the shape of a critic that is trained, and not of the policy's.
    """

    name: str
    phase: str
    program: Program
    on_devices: tuple
    own: tuple[str, ...]
    beside: tuple[str, ...] = ()
    times: int = 1
    per_iteration: int = 1
    trips: tuple[int, ...] = ()
    repeated: int = 1
    decodes: bool = False
    counted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pages: Cost = Cost()
    unused_end: bool = False
    is_critics: bool = False

    @property
    def function(self) -> jax.stages.Wrapped:
        """The jitted function."""
        return self.program.function

    @property
    def args(self) -> tuple:
        """Its arguments, shapes in the place of arrays."""
        return (*self.on_devices, *self.program.inputs)

    @property
    def keywords(self) -> Mapping[str, Any]:
        """Its static arguments."""
        return self.program.keywords


def num_batches(
    num_contexts: int,
    rows_each: int,
    *,
    context: int,
    target: int,
    shape: packing.PackShape,
    mesh: jax.sharding.Mesh,
) -> int:
    """Returns the packed batches that so many contexts of a length take, with as many full rows to each.

    Args:
      num_contexts, rows_each: how many.
      context, target: tokens of each.
      shape: of a data group's packed batch.
      mesh: whose data groups share them.
    """
    full = np.zeros(target, np.int32)
    groups = [[TrainRow(np.full(context, q, np.int32), full, full, 1.0)] * rows_each for q in range(num_contexts)]
    token_rows = assign(
        groups, num_token_rows=shape.num_token_rows, pack_length=shape.pack_length, num_slots=shape.num_slots
    )
    return -(-len(token_rows) // (shape.num_token_rows * sharding.num_groups(mesh)))
