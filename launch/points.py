"""The points of a sweep: a dict from each point's name to what it overrides.

    from points import cross, points, product, zip_

    product({"objective.gamma": (0.01, 0.1), "seed": (0, 1)})  # 4 points: objective.gamma=0.01,seed=0 and so on
    zip_({"refine.num_kept": (1, 2), "num_responses": (7, 6)})  # 2 points: the values side by side
    points(grpo={"refine.kind": "none", "num_responses": 8}, critique={})  # 2 points with names of their own
    cross(points(...), product({"seed": (0, 1)}))  # every point of the one with every point of the other

Dicts of points are joined by `|`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError

Points = dict[str, dict[str, Any]]


def product(axes: Mapping[str, Sequence[Any]]) -> Points:
    """Returns one point for every combination of the values; the last key varies fastest.

    Example:
      >>> product({"data.seed": (3,), "seed": (0, 1)})
      {'data.seed=3,seed=0': {'data.seed': 3, 'seed': 0}, 'data.seed=3,seed=1': {'data.seed': 3, 'seed': 1}}
    """
    return _named(axes, itertools.product(*axes.values()))


def zip_(axes: Mapping[str, Sequence[Any]]) -> Points:
    """Returns one point for every position in the lists of values.

    Raises:
      UserError: the lists differ in length.

    Example:
      >>> zip_({"data.seed": (3, 4), "seed": (0, 1)})
      {'data.seed=3,seed=0': {'data.seed': 3, 'seed': 0}, 'data.seed=4,seed=1': {'data.seed': 4, 'seed': 1}}
    """
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(f"zip_ needs as many values of each key, got {given}; use product for every combination")
    return _named(axes, zip(*axes.values(), strict=True))


def points(**named: Mapping[str, Any]) -> Points:
    """Returns points with names of their own.

    Example:
      >>> points(plain={"refine.kind": "none"}, full={})
      {'plain': {'refine.kind': 'none'}, 'full': {}}
    """
    return {name: dict(overrides) for name, overrides in named.items()}


def cross(first: Points, second: Points) -> Points:
    """Returns every point of `first` with every point of `second`, whose overrides win.

    Example:
      >>> cross(points(full={}), product({"seed": (0, 1)}))
      {'full,seed=0': {'seed': 0}, 'full,seed=1': {'seed': 1}}
    """
    return {f"{a},{b}": first[a] | second[b] for a, b in itertools.product(first, second)}


def _named(axes: Mapping[str, Sequence[Any]], rows) -> Points:
    found: Points = {}
    for row in rows:
        overrides = dict(zip(axes, row, strict=True))
        # The name is also that of the point's folder.
        name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9.+-]+', '_', str(value))}" for key, value in overrides.items())
        if name in found:
            raise UserError(f"the sweep has the point {name} twice; leave one out, or give both names with points()")
        found[name] = overrides
    return found
