"""Which calls write what is placed into its slots: prompts prefilled, beginnings copied; no arrays.

The engine makes these calls on its devices (running_slots.py); a simulation counts them.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from cgrpo_jax.inference.slot_scheduler import Placed, rows_at_once, width_of

_ByGroup = tuple[tuple[Placed, ...], ...]


@dataclasses.dataclass(frozen=True)
class Prefill:
    """One call that prefills up to `rows` prompts of a data group, padded to `width` tokens.

    Attributes:
      rows, width, continued: as for `slot_programs.prefill_program`.
      groups: what each data group writes.
    """

    rows: int
    width: int
    continued: bool
    groups: _ByGroup

    @property
    def positions(self) -> int:
        """Tokens that are computed, padding included."""
        return len(self.groups) * self.rows * self.width

    @property
    def tokens(self) -> int:
        """Tokens of prompts among them."""
        return sum(len(one.rest) for group in self.groups for one in group)


@dataclasses.dataclass(frozen=True)
class Copy:
    """One call that copies `width` positions between slots.

    Attributes:
      width: as for `slot_programs.share_program`.
      groups: what each data group copies.
    """

    width: int
    groups: _ByGroup


Write = Prefill | Copy


def writes(placed: Sequence[Placed], *, widths: Sequence[int], num_groups: int, num_slots: int) -> Iterator[Write]:
    """Yields the calls that write what is placed, in their order.

    Prompts that share nothing are prefilled, beginnings are copied, and what comes after a copy is prefilled.

    Args:
      placed: of one `Scheduler.place`.
      widths: to which prompts are padded.
      num_groups, num_slots: data groups, and slots of each.
    """

    def by_width(some: Sequence[Placed], tokens: Callable[[Placed], int]) -> list[tuple[int, list[list[Placed]]]]:
        found = collections.defaultdict(lambda: [[] for _ in range(num_groups)])
        for one in some:
            found[width_of(tokens(one), widths)][one.slot // num_slots].append(one)
        return sorted(found.items())

    def prefills(some: Sequence[Placed], *, continued: bool) -> Iterator[Prefill]:
        for width, groups in by_width(some, lambda one: len(one.rest)):
            first, longest = 0, max(map(len, groups))
            while first < longest:
                rows = rows_at_once(width) if not continued else 1
                rows = rows if longest - first > rows // 2 else 1
                yield Prefill(rows, width, continued, tuple(tuple(group[first : first + rows]) for group in groups))
                first += rows

    yield from prefills([one for one in placed if one.source is None and len(one.rest)], continued=False)
    for width, groups in by_width([one for one in placed if one.is_copied], lambda one: one.shared):
        yield Copy(width, tuple(map(tuple, groups)))
    yield from prefills([one for one in placed if one.source is not None and len(one.rest)], continued=True)
