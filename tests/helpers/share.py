"""A part of the tests, for a machine that runs them at every change; another part at another change."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence


def percent() -> float:
    """Returns how many of 100 like cases are tried: `CGRPO_TEST_SHARE`, or all of them."""
    return float(os.environ.get("CGRPO_TEST_SHARE", "100"))


def of(names: Sequence[str], *, kind: Callable[[str], str] = str) -> list[str]:
    """Returns the names of cases that are tried, in their order: `percent` of them, rounded up.

    Which ones, `CGRPO_TEST_SEED` says; .ci/run gives the commit, so that each is tried sooner or later. No kind has a
    second case before every kind has one.

    Example: of ["a[1]", "a[2]", "b", "c"] with a kind for each letter and a share of 50 two are tried: b and c, or one
    of these and a case of a.
    """
    seed = os.environ.get("CGRPO_TEST_SEED", "")
    mixed = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    rank, before = {}, Counter()
    for name in mixed:
        rank[name] = before[kind(name)]
        before[kind(name)] += 1
    drawn = set(sorted(mixed, key=rank.__getitem__)[: math.ceil(len(names) * percent() / 100)])
    return [name for name in names if name in drawn]
