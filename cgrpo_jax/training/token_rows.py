"""Which train row lies in which token row: first-fit, the two rows of a pair together, a context once."""

from collections.abc import Sequence

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import TrainRow

# What a token row holds: by the bytes of each context, the rows that share it.
TokenRow = dict[bytes, list[TrainRow]]


def assign(
    groups: Sequence[Sequence[TrainRow]], *, num_token_rows: int, pack_length: int, num_slots: int
) -> list[TokenRow]:
    """Returns what each token row holds; the rows of a group have one context. Other arguments as for `pack`."""
    packer = _Packer(num_token_rows, pack_length, num_slots)
    for group in groups:
        packer.add(group)
    return packer.token_rows


def by_context(rows: Sequence[TrainRow]) -> list[list[TrainRow]]:
    """Returns the rows of each context, longest first; the contexts that take the most positions first."""
    groups: dict[bytes, list[TrainRow]] = {}
    for row in rows:
        groups.setdefault(_context(row), []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: -len(row.target_ids))
    return sorted(groups.values(), key=lambda group: -_size(group))


def _context(row: TrainRow) -> bytes:
    return np.asarray(row.context_ids, np.int32).tobytes()


def _size(group: Sequence[TrainRow]) -> int:
    """Returns the positions that rows of one context take in a token row of their own."""
    return len(group[0].context_ids) - 1 + sum(len(row.target_ids) for row in group)


def _units(group: Sequence[TrainRow]) -> list[list[TrainRow]]:
    """Returns what is placed as one: the two rows of a pair, every other row by itself."""
    units: list[list[TrainRow]] = []
    pairs: dict[int, list[TrainRow]] = {}
    for row in group:
        unit = pairs.setdefault(abs(row.pair), []) if row.pair else []
        if not unit:
            units.append(unit)
        unit.append(row)
    return units


def check_pairs(groups: Sequence[Sequence[TrainRow]], pack_length: int, num_slots: int) -> None:
    """Checks that the two rows of each pair have one context, and fit one token row together."""
    for group in groups:
        for first, *others in (unit for unit in _units(group) if unit[0].pair):
            if [first.pair, *(row.pair for row in others)] not in ([first.pair, -first.pair],):
                raise ValueError(f"pair {abs(first.pair)} needs a chosen and a rejected row after the same context.")
            size = _size([first, *others])
            if size > pack_length or num_slots < 2:
                raise UserError(
                    f"a pair of {len(first.context_ids)} + {len(first.target_ids)} + {len(others[0].target_ids)} "
                    f"tokens takes {size} positions and 2 slots, and has to fit one token row of {pack_length} "
                    f"(packing.length) with {num_slots} slots (packing.slots); raise them."
                )


class _Packer:
    """Token rows that are being filled, R of each batch, with B slots for train rows."""

    def __init__(self, num_token_rows: int, pack_length: int, num_slots: int):
        self.num_token_rows, self.pack_length, self.num_slots = num_token_rows, pack_length, num_slots
        self.token_rows: list[TokenRow] = []
        self.free: list[int] = []  # positions left in each token row
        self.slots: list[int] = []  # train rows that each batch still takes
        self.open: list[int] = []  # token rows that may still take one, in order

    def add(self, group: Sequence[TrainRow]) -> None:
        """Places rows of one context: together if a token row has room for them all, else as they come."""
        context, beside = _context(group[0]), []  # token rows that have the context already
        units = _units(group)
        for i, unit in enumerate(units):
            targets, rest = sum(len(row.target_ids) for row in unit), [row for one in units[i:] for row in one]
            j = self._first(beside, targets, len(unit))
            if j is None:
                j = self._first(self.open, _size(rest), len(rest))
            if j is None:
                j = self._first(self.open, _size(unit), len(unit))
            if j is None:
                j = self._new(len(unit))
            if j not in beside:
                beside.append(j)
                self.free[j] -= len(unit[0].context_ids) - 1
            self.free[j] -= targets
            self.slots[j // self.num_token_rows] -= len(unit)
            self.token_rows[j].setdefault(context, []).extend(unit)
        self.open = [j for j in self.open if self.free[j] and self.slots[j // self.num_token_rows]]

    def _first(self, among: Sequence[int], size: int, num_rows: int = 1) -> int | None:
        """Returns the first token row with so many positions and slots left."""
        enough = (j for j in among if self.free[j] >= size and self.slots[j // self.num_token_rows] >= num_rows)
        return next(enough, None)

    def _new(self, num_rows: int) -> int:
        # A batch that is out of slots takes no new token row either: its remaining ones stay empty.
        while len(self.token_rows) % self.num_token_rows and self.slots[-1] < num_rows:
            self.token_rows.append({})
            self.free.append(0)
        if len(self.token_rows) % self.num_token_rows == 0:
            self.slots.append(self.num_slots)
        self.token_rows.append({})
        self.free.append(self.pack_length)
        self.open.append(len(self.token_rows) - 1)
        return self.open[-1]
