"""What a step of an engine does with its slots: free ones are filled, then all decode for a while.

With a contiguous cache prompts are written by calls of their own; where the cache has pages, beside what decodes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cgrpo_jax.inference import slots
from cgrpo_jax.inference.engine_stats import Stats
from cgrpo_jax.inference.paged.decoding import PageOrders
from cgrpo_jax.inference.paged.running import RunningPaged
from cgrpo_jax.inference.paged.scheduler import PagedCall, PageScheduler, Text
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.running_slots import Running, Until
from cgrpo_jax.inference.sampling import Sampling, index_array
from cgrpo_jax.inference.slot_scheduler import Placed, Scheduler
from cgrpo_jax.inference.slot_texts import SlotTexts, SoFar

_IDLE_SHARE = 16  # about one slot in so many idles, at most, while requests wait
_AT_ONCE = Until(1, 1)  # where nothing waits, slots idle anyway: whoever asked should hear at once, it may ask for more


@dataclasses.dataclass(frozen=True)
class InFlight:
    """A call that the devices have been given, and of which nothing has been read.

    Attributes:
      report: what it will have done.
      occupants: whose continuation decodes in each slot, and which; None where none does. In a slot of which the
        scheduler says another by now, a text began later, and the report does not speak of it.
      num_slots: that it takes each step with; over pages only those that have a text.
      waiting: whether texts waited for a slot.
      call: over pages, what it does.
    """

    report: slots.Report
    occupants: tuple[tuple[Request, int] | None, ...]
    num_slots: int
    waiting: bool
    call: PagedCall | None = None


class _Orders:
    """Orders for all slots, filled in text by text.

    Args:
      texts: of the slots.
    """

    def __init__(self, texts: SlotTexts):
        self.texts = texts
        self.samplings: tuple[Sampling, ...] = (Sampling(),)
        self._sampling_S = np.zeros(texts.num_slots, np.int32)  # which of them draws the text of each slot

    def empty(self) -> slots.Orders:
        """Returns orders that begin nothing, and end what strings have ended."""
        S = self.texts.num_slots
        return slots.Orders(
            begin_S=np.zeros(S, bool),
            stop_S=self.texts.take_stopped(),
            occupied_S=np.zeros(S, bool),
            token_S=np.zeros(S, np.int32),
            length_S=np.zeros(S, np.int32),
            limit_S=np.zeros(S, np.int32),
            index_S6=np.zeros((S, 6), np.int32),
            sampling_S=self._sampling_S.copy() if self.samplings[1:] else None,  # a call in flight may yet read its own
        )

    def begin(
        self, orders: slots.Orders, slot: int, request: Request, number: int, context: np.ndarray, so_far: SoFar | None
    ) -> None:
        """Orders that a continuation begins in a slot, after what it has so far."""
        self.texts.begin(slot, so_far)
        orders.begin_S[slot] = True
        orders.token_S[slot] = context[-1]
        orders.length_S[slot] = len(context) - 1
        orders.limit_S[slot] = request.max_length
        orders.index_S6[slot] = index_array([request.indices[number]])[0]
        self._sampling_S[slot] = self.samplings.index(request.sampling) if request.sampling else 0
        if orders.sampling_S is not None:
            orders.sampling_S[slot] = self._sampling_S[slot]


class SlotFilling:
    """With a contiguous cache.

    Args:
      scheduler: of the slots.
      texts: that they hold.
      calls: that are in flight at most.

    Attributes:
      samplings: how texts are drawn.
    """

    def __init__(self, scheduler: Scheduler, texts: SlotTexts, *, calls: int):
        self.scheduler, self.calls, self._orders = scheduler, calls, _Orders(texts)

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        return self._orders.samplings

    @samplings.setter
    def samplings(self, samplings: tuple[Sampling, ...]) -> None:
        self._orders.samplings = samplings

    def dispatch(self, running: Running, stats: Stats) -> InFlight:
        """Puts waiting continuations into free slots, prompts and all; all decode until a few texts have ended."""
        orders = self._orders.empty()
        while placed := self.scheduler.place():
            running.write(placed)
            self._count(placed, stats)
            for one in placed:
                self._orders.begin(orders, one.slot, one.request, one.number, one.request.prompt_ids, None)
        total, waiting = self._orders.texts.num_slots, self.scheduler.waiting > 0
        occupants = _occupants(self.scheduler, total)
        orders.occupied_S[:] = [one is not None for one in occupants]
        report = running.tick(orders, _until(total, self.calls) if waiting else _AT_ONCE)
        return InFlight(report, occupants, total, waiting)

    def record(self, made: InFlight, report: slots.Report) -> None:
        """Takes note of what a call has done: nothing that places texts depends on it."""

    def _count(self, placed: Sequence[Placed], stats: Stats) -> None:
        stats.prompt_tokens += sum(len(one.rest) for one in placed)
        stats.prefills += sum(bool(len(one.rest)) for one in placed)
        stats.shared_tokens += sum(one.shared for one in placed if one.is_copied)


class PageFilling:
    """Where the cache has pages.

    Args:
      scheduler: of the slots and pages.
      texts: that the slots hold.
      chunk: the most steps of a call.
      calls: that are in flight at most.

    Attributes:
      samplings: how texts are drawn.
    """

    def __init__(self, scheduler: PageScheduler, texts: SlotTexts, *, chunk: int, calls: int):
        self.scheduler, self.chunk, self.calls, self._orders = scheduler, chunk, calls, _Orders(texts)
        self._so_far: dict[Text, SoFar] = {}  # of texts that were set back

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        return self._orders.samplings

    @samplings.setter
    def samplings(self, samplings: tuple[Sampling, ...]) -> None:
        self._orders.samplings = samplings

    def dispatch(self, running: RunningPaged, stats: Stats) -> InFlight | None:
        """Makes the next call: parts of prompts enter and all texts decode one token, or these alone several.

        Returns:
          None where the call in flight is to be read first (`PageScheduler.next_call`)
        """
        if (call := self.scheduler.next_call(self.chunk)) is None:
            return None
        orders, waiting = self._ordered(call, stats), self.scheduler.waiting > 0
        occupants = _occupants(self.scheduler, self._orders.texts.num_slots)
        orders.occupied_S[:] = [one is not None for one in occupants]
        report = running.run(call, orders, _until(call.texts, self.calls) if waiting else _AT_ONCE)
        for text in call.begin:
            self.scheduler.copied(text)
        return InFlight(report, occupants, call.texts, waiting, call)

    def record(self, made: InFlight, report: slots.Report) -> None:
        """Takes note of how many tokens the texts of a call have."""
        assert made.call
        self.scheduler.record(made.call, np.asarray(report.sampled_S))

    def _ordered(self, call: PagedCall, stats: Stats) -> slots.Orders:
        orders, scheduler = self._orders.empty(), self.scheduler
        for text in call.set_back:
            orders.stop_S[text.slot] = True
            if text.begun:
                self._so_far[text] = so_far = self._orders.texts.of(text.slot)
                text.context = np.append(text.request.prompt_ids, so_far.tokens).astype(np.int32)
        S, G, pages = self._orders.texts.num_slots, scheduler.num_groups, scheduler.pages
        table_SP = np.zeros((S, pages.of(scheduler.length)), np.int32)
        sampled_S, source_M, target_M = np.zeros((3, S), np.int32)
        number_G = np.zeros(G, np.int32)
        for text in call.begin:
            so_far = self._so_far.pop(text, None)
            sampled_S[text.slot] = len(so_far.tokens) if so_far else 0
            self._orders.begin(orders, text.slot, text.request, text.number, text.context, so_far)
            if text.copied is not None:
                pair = text.group * scheduler.num_slots + number_G[text.group]
                source_M[pair], target_M[pair] = text.copied, text.pages[text.length // pages.size]
                number_G[text.group] += 1
        for text in scheduler.begun():
            table_SP[text.slot, : len(text.pages)] = text.pages
        self._count(call, stats)
        return orders.replace(pages=PageOrders(table_SP, sampled_S, source_M, target_M, number_G))

    def _count(self, call: PagedCall, stats: Stats) -> None:
        parts = [part for group in call.parts for part in group]
        first = [part for part in parts if not part.text.again]
        entered, in_all = (sum(part.end - part.start for part in some) for some in (first, parts))
        stats.prompt_tokens += entered
        stats.reentered_tokens += in_all - entered
        stats.prefills += len({part.text for part in first if part.end == len(part.text.context) - 1})
        stats.shared_tokens += sum(text.shared for text in call.begin if not text.again)
        stats.set_back += len(call.set_back)


def _until(number: int, calls: int) -> Until:
    """Returns what ends a call of so many texts, where others wait for their slots and so many calls may be in flight.

    What ends in a call is heard of when the next has been dispatched, so fewer may end in each.
    """
    return Until(max(1, number // (_IDLE_SHARE * calls)), max(1, number // _IDLE_SHARE))


def _occupants(scheduler: Scheduler | PageScheduler, num_slots: int) -> tuple[tuple[Request, int] | None, ...]:
    return tuple(scheduler.occupant(slot) for slot in range(num_slots))
