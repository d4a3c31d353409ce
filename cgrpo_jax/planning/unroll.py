"""A jitted function as one without loops, whose costs the compiler can count: it counts a loop's body once.

What is unrolled is the program that was traced, so no other module knows that it can be.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.core import ShapedArray
from jax.extend import core
from jax.extend.core import primitives


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A program on flat arguments: `jax.jit(function, donate_argnums=donated).lower(*args)`.

    Attributes:
      loops: how many loops it had, those within others included.
    """

    function: Callable
    args: tuple
    donated: tuple[int, ...]
    loops: int


def unroll(
    function: jax.stages.Wrapped, args: Sequence, keywords: Mapping[str, Any] | None = None, *, trips: int = 1
) -> Unrolled:
    """Returns what a jitted function computes, with every loop's body written out as often as it runs.

    What a loop reads goes through a barrier. The backward pass computes much again that the forward pass has computed
    in another loop; unrolled, the compiler would see that it is the same, and do it once.

    Args:
      function: jitted.
      args, keywords: its arguments; arrays or `jax.ShapeDtypeStruct`s.
      trips: how often the body of a loop that ends on data is written out.
    """
    keywords = dict(keywords or {})
    traced = function.trace(*args, **keywords)
    counted = _Unroller(trips)
    closed = counted.closed(traced.jaxpr)
    infos = jax.tree.leaves(traced.args_info)
    leaves = jax.tree.leaves((args, {name: keywords[name] for name in traced.args_info[1]}))
    donated = tuple(i for i, info in enumerate(infos) if info.donated)
    return Unrolled(core.jaxpr_as_fun(closed), tuple(leaves), donated, counted.loops)


class _Unroller:
    """Rewrites jaxprs, counting the loops that it meets."""

    def __init__(self, trips: int):
        self.trips = trips
        self.loops = 0

    def closed(self, closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
        return core.ClosedJaxpr(self.open(closed.jaxpr), closed.consts)

    def open(self, jaxpr: core.Jaxpr) -> core.Jaxpr:
        return jaxpr.replace(eqns=[new for eqn in jaxpr.eqns for new in self.equation(eqn)])

    def equation(self, eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
        if eqn.primitive is primitives.while_p:
            return self.written_out(eqn)
        if eqn.primitive.name == "pallas_call":  # a kernel's loops are its own, as its cost is
            return [eqn]
        params = {name: self.value(value) for name, value in eqn.params.items()}
        if eqn.primitive is primitives.remat_p:
            params["prevent_cse"] = True
        if eqn.primitive is not primitives.scan_p:
            return [eqn.replace(params=params)]
        self.loops += 1
        params["unroll"] = max(1, eqn.params["length"])
        barrier, read = _barrier(eqn, eqn.invars)
        return [*barrier, eqn.replace(invars=read, params=params)]

    def value(self, value):
        if isinstance(value, core.ClosedJaxpr):
            return self.closed(value)
        if isinstance(value, core.Jaxpr):
            return self.open(value)
        if type(value) in (tuple, list):  # a conditional's branches
            return type(value)(map(self.value, value))
        return value

    def written_out(self, eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
        self.loops += 1
        skipped, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        body = self.closed(eqn.params["body_jaxpr"])
        calls, read = _barrier(eqn, eqn.invars[skipped:])
        fixed, state = read[:constants], read[constants:]
        for trip in range(self.trips):
            last = trip == self.trips - 1
            results = eqn.outvars if last else [core.Var(var.aval) for var in eqn.outvars]
            calls.append(
                eqn.replace(
                    primitive=primitives.closed_call_p,
                    invars=[*fixed, *state],
                    outvars=list(results),
                    params={"call_jaxpr": body},
                )
            )
            state = results
        return calls


def _barrier(loop: core.JaxprEqn, read: Sequence) -> tuple[list[core.JaxprEqn], list]:
    """Returns equations that what a loop reads goes through, and what comes out of them.

    References, which a loop adds to, stay as they are: an effect on one names it.
    """
    inside: dict[core.Var, core.Var] = {}
    groups: dict[Any, list[core.Var]] = {}  # one barrier takes what varies along the same axes of a mesh
    for value in read:
        if isinstance(value, core.Var) and isinstance(value.aval, ShapedArray) and value not in inside:
            inside[value] = core.Var(value.aval)
            groups.setdefault(value.aval.manual_axis_type, []).append(value)
    equations = [
        loop.replace(
            primitive=lax.optimization_barrier_p,
            invars=[*values],
            outvars=[inside[value] for value in values],
            params={},
            effects=core.no_effects,
        )
        for values in groups.values()
    ]
    return equations, [inside.get(one, one) if isinstance(one, core.Var) else one for one in read]
