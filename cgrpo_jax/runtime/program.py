"""A jitted function as it is called: what makes a run's programs makes those of a plan, from shapes alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A jitted function, its static arguments, and the shapes of what the host gives it.

    A run calls `program(*on_devices, *inputs)`; a plan compiles
    `program.function.lower(*shapes_on_devices, *program.inputs, **program.keywords)`.

    Attributes:
      name: what it does, in a few words.
      function: jitted. Its first arguments, such as weights, lie on the devices from one program to the next.
      inputs: its other arguments, as `jax.ShapeDtypeStruct`s that say where each array lies.
      keywords: its static arguments.
    """

    name: str
    function: jax.stages.Wrapped
    inputs: tuple
    keywords: Mapping[str, Any]

    def __call__(self, *args) -> Any:
        """Calls the function with the static arguments."""
        return self.function(*args, **self.keywords)

    def zeros(self) -> tuple:
        """Returns inputs that are all 0, as NumPy arrays."""
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.inputs)
