"""Which groups a report shows with their texts: those that tell most, and a sample that tells what is usual."""

import dataclasses
import random
from collections.abc import Sequence

from cgrpo_jax.report.groups import Flag, Group

LAST_ITERATIONS = 2
ONCE_EACH_SHARE = 10  # one in so many of the groups that fit, at most: what a page lists as learned, or as failed


@dataclasses.dataclass(frozen=True)
class Selection:
    """Numbers of the groups that are shown whole, in their order; of each reason, how many it asked for and got.

    Example: `reasons["rescued"] = (120, 80)`: there are 120 rescued groups, of which 80 are shown.
    """

    chosen: Sequence[int]
    reasons: dict[str, tuple[int, int]]


def choose(groups: Sequence[Group], *, max_groups: int, seed: int = 0) -> Selection:
    """Chooses groups: of the last two iterations, of what was never solved, of what was solved after a rescue, rescued,
    forgotten, otherwise flagged, and of the rest a sample.

    Of what was never solved, it is each question once, as it was asked last; of what was solved after a rescue
    likewise, as it was solved first. Of either no more than a tenth of all. A kind that does not fit gets what room is
    left, drawn with the seed, so that every iteration has the same chance.

    Args:
      groups: of all runs.
      max_groups: how many are chosen at most.
      seed: of the draws.
    """
    last: dict[int, list[int]] = {}
    for run in {one.run for one in groups}:
        last[run] = sorted({one.iteration for one in groups if one.run == run})[-LAST_ITERATIONS:]
    kinds = {
        "last iterations": [one.iteration in last[one.run] for one in groups],
        "never solved": _unsolved(groups),
        "solved again": _solved_again(groups),
        "rescued": [Flag.RESCUED in one.flags for one in groups],
        "forgotten": [Flag.FORGOTTEN in one.flags for one in groups],
        "flagged": [bool(one.flags) for one in groups],
        "others": [True for _ in groups],
    }
    rng, chosen, reasons = random.Random(seed), set[int](), {}
    for kind, wanted in kinds.items():
        of_kind = [number for number, wants in enumerate(wanted) if wants]
        left = [number for number in of_kind if number not in chosen]
        room = max_groups - len(chosen)
        if kind in ("never solved", "solved again"):
            room = min(room, max_groups // ONCE_EACH_SHARE)
        chosen.update(left if len(left) <= room else rng.sample(left, room))
        reasons[kind] = len(of_kind), sum(number in chosen for number in of_kind)
    return Selection(sorted(chosen), reasons)


def _unsolved(groups: Sequence[Group]) -> list[bool]:
    """Returns which groups are the last ones of questions that nothing solved."""
    # Groups are in the order of iterations.
    last = {(one.run, one.problem): number for number, one in enumerate(groups)}
    return [Flag.NEVER_SOLVED in one.flags and last[one.run, one.problem] == n for n, one in enumerate(groups)]


def _solved_again(groups: Sequence[Group]) -> list[bool]:
    """Returns which groups are the first of a question, after a refinement had rescued it, that a response solves."""
    rescued: set[tuple[int, str]] = set()
    found = []
    for one in groups:
        key = one.run, one.problem
        found.append(bool(one.passed) and key in rescued)
        if one.passed:
            rescued.discard(key)
        elif Flag.RESCUED in one.flags:
            rescued.add(key)
    return found
