"""Which continuation goes into which slot, and what of its prompt is copied from a slot that holds it: no arrays.

The samples of a prompt share one prefill in each data group that writes some of them, and prompts that begin alike
share their beginning where that spares work. No slot of any group is free while a continuation waits. A decision
depends on the requests and on which texts have ended, so all processes decide the same.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cgrpo_jax.inference.request_queue import Request, RequestQueue
from cgrpo_jax.records import Stage

_MOST_ROWS, _PREFILL_TOKENS = 4, 512  # of one call that prefills several prompts


@dataclasses.dataclass(frozen=True)
class Placed:
    """A continuation on its way into a slot.

    Attributes:
      slot: where it goes.
      request, number: which of whose continuations it is.
      source: slot that holds the beginning of its prompt, maybe `slot` itself; None if none does.
      shared: how many tokens that beginning has.
    """

    slot: int
    request: Request
    number: int
    source: int | None
    shared: int

    @property
    def rest(self) -> np.ndarray:
        """The tokens that are prefilled: all that are not shared but the last, which decoding takes."""
        return self.request.prompt_ids[self.shared : -1]

    @property
    def is_copied(self) -> bool:
        """Whether the shared tokens come from another slot."""
        return self.source is not None and self.source != self.slot and self.shared > 0


@dataclasses.dataclass
class _Slot:
    """The prompt that a slot holds, and the continuation that goes on in it, if any."""

    prompt_ids: np.ndarray | None = None
    request: Request | None = None
    number: int = 0


def widths_up_to(longest: int, smallest: int) -> tuple[int, ...]:
    """Returns the widths to which prompts are padded: powers of two times the smallest, up to the longest prompt.

    Example:
      widths_up_to(600, 64) == (64, 128, 256, 512, 600)
    """
    widths = [min(smallest, longest)]
    while widths[-1] < longest:
        widths.append(min(2 * widths[-1], longest))
    return tuple(widths)


def width_of(tokens: int, widths: Sequence[int]) -> int:
    """Returns the width, one of `widths`, to which so many tokens are padded."""
    return next(width for width in widths if width >= tokens)


def rows_at_once(width: int) -> int:
    """Returns how many prompts of a width one call of a data group takes where many wait."""
    return max(1, min(_MOST_ROWS, _PREFILL_TOKENS // width))


class Scheduler:
    """The queue, and what each slot of each data group holds.

    Responses go before refinements, these before critiques, and requests of a stage in the order in which they came.

    Args:
      num_groups, num_slots: data groups, and slots of each; slot s is one of group `s // num_slots`.
      widths: from `widths_up_to`.
      length: positions of a slot.
    """

    def __init__(self, *, num_groups: int, num_slots: int, widths: Sequence[int], length: int):
        self.num_groups, self.num_slots, self.widths, self.length = num_groups, num_slots, tuple(widths), length
        self._queue = RequestQueue(num_groups)
        self._slots = [_Slot() for _ in range(num_groups * num_slots)]
        self._free = [num_slots] * num_groups

    @property
    def waiting(self) -> int:
        """Continuations that wait for a slot."""
        return self._queue.waiting

    @property
    def live(self) -> int:
        """Continuations that have one."""
        return len(self._slots) - sum(self._free)

    def waiting_by_stage(self) -> dict[Stage, int]:
        """Returns the continuations that wait, by their stage."""
        return self._queue.waiting_by_stage()

    def add(self, request: Request) -> None:
        """Puts a request into the queue."""
        self._queue.add(request)

    def occupant(self, slot: int) -> tuple[Request, int] | None:
        """Returns whose continuation goes on in a slot, and which; None if it is free."""
        held = self._slots[slot]
        return None if held.request is None else (held.request, held.number)

    def free(self, slot: int) -> None:
        """Records that the continuation in a slot has ended. The slot still holds its prompt."""
        self._slots[slot].request = None
        self._free[slot // self.num_slots] += 1

    def place(self) -> list[Placed]:
        """Gives free slots to continuations, as many as can be written together; called again until none is left.

        They are written in this order: prompts that share nothing are prefilled, beginnings are copied, and what comes
        after a beginning is prefilled. So none may copy what another of the same call puts after a beginning.
        """
        placed: list[Placed] = []
        copies: dict[int, int] = {}  # slots that will hold the same as another
        continued: set[int] = set()  # slots with something after what they copied
        later: set[int] = set()  # groups that place no more in this call
        while (group := self._queue.next(self._free, later)) is not None:
            request = self._queue.begun[group].request
            source, shared = self._source(group, request.prompt_ids)
            source = source if source is None else copies.get(source, source)
            if source in continued:
                later.add(group)
                continue
            slot = self._target(group, source)
            if source is not None:
                if slot != source:  # the source is occupied, so nothing else is put there in this call
                    copies[slot] = source
                if shared < len(request.prompt_ids) - 1:
                    continued.add(slot)
                    copies.pop(slot, None)
            _, number = self._queue.take(group)
            self._slots[slot] = _Slot(request.prompt_ids, request, number)
            self._free[group] -= 1
            placed.append(Placed(slot, request, number, source, shared))
        return placed

    def _of_group(self, group: int) -> range:
        return range(group * self.num_slots, (group + 1) * self.num_slots)

    def _target(self, group: int, source: int | None) -> int:
        """Returns the free slot to use: the one that holds the prompt already, else one that holds nothing of use."""
        if source is not None and self._slots[source].request is None:
            return source
        free = [s for s in self._of_group(group) if self._slots[s].request is None]
        return min(free, key=lambda s: (self._slots[s].prompt_ids is not None, s))

    def _source(self, group: int, prompt_ids: np.ndarray) -> tuple[int | None, int]:
        """Returns the slot that holds the most of a prompt, and how many tokens; none where that spares no work."""
        whole = len(prompt_ids) - 1
        best, most = None, 0
        for s in self._of_group(group):
            held = self._slots[s].prompt_ids
            if held is prompt_ids:
                return s, whole
            if held is not None and (common := _common(held[:-1], prompt_ids[:whole])) > most:
                best, most = s, common
        if most == whole:
            return best, whole
        if width_of(whole - most, self.widths) == width_of(whole, self.widths):
            return None, 0
        most = min(most, self.length - width_of(whole - most, self.widths))  # padding, too, lies within the slot
        return (best, most) if most > 0 else (None, 0)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many tokens two prompts begin with alike."""
    number = min(len(a), len(b))
    differs = np.flatnonzero(a[:number] != b[:number])
    return int(differs[0]) if len(differs) else number
