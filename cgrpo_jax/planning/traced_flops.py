"""FLOPs of the matrix products of a program as it is traced, loops multiplied out: no compiler is needed.

On one device: what is within `jax.shard_map` has that device's shapes. Elementwise work, which no matrix unit does, is
not counted, nor are Pallas kernels, whose formulas are their own.
"""

import math
from collections.abc import Sequence
from typing import cast

from jax.core import ShapedArray
from jax.extend import core


def flops(jaxpr: core.Jaxpr, *, unknown_trips: Sequence[int] = ()) -> float:
    """Returns the FLOPs of a program's matrix products: 2 M N K each.

    Args:
      jaxpr: of the traced program.
      unknown_trips: how often `while` loops run that have products: one that is in none, one within that, and so on.

    Raises:
      ValueError: there is a further such loop.

    Example:
      flops(jax.jit(jnp.dot).trace(a, b).jaxpr.jaxpr) == 2 * m * k * n
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inner = _inner(eqn)
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            read, made = cast(ShapedArray, eqn.invars[0].aval), cast(ShapedArray, eqn.outvars[0].aval)
            total += 2.0 * math.prod(made.shape) * math.prod(read.shape[axis] for axis in contracted)
        elif name == "while":
            body = eqn.params["body_jaxpr"].jaxpr
            if not flops(body, unknown_trips=[1] * 8):
                continue
            if not unknown_trips:
                raise ValueError("a loop that ends on data has matrix products; give how often it runs.")
            total += unknown_trips[0] * flops(body, unknown_trips=unknown_trips[1:])
        elif name == "cond":
            total += max(flops(one, unknown_trips=unknown_trips) for one in inner)
        elif name != "pallas_call":
            times = eqn.params["length"] if name == "scan" else 1
            total += times * sum(flops(one, unknown_trips=unknown_trips) for one in inner)
    return total


def _inner(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    found = []
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found
