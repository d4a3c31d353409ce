"""A part of many like cases, for a machine that runs the tests at every change."""

import hashlib
import os
from collections.abc import Sequence


def of(names: Sequence[str], *, at_least: int = 2) -> list[str]:
    """Returns the names of cases that are tried: all, or `CGRPO_TEST_SHARE` percent of them.

    Which ones, `CGRPO_TEST_SEED` says; .ci/run gives the commit, so that each is tried sooner or later.
    """
    number = round(len(names) * float(os.environ.get("CGRPO_TEST_SHARE", "100")) / 100)
    seed = os.environ.get("CGRPO_TEST_SEED", "")
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return sorted(drawn[: max(number, at_least)], key=names.index)
