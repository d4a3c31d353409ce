"""Requests that wait for the engine, in the order in which their continuations are written: no arrays."""

import collections
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import RowIndex, Stage

# Responses go first: what follows one that fails is known only at its end, and a long one that begins late would be
# critiqued and refined by itself, after all else. Where the prompts of a critique and a refinement begin alike, the
# latter finds that in the slot of the former if it comes right after.
_TURNS = {Stage.RESPONSE: 0, Stage.REFINEMENT: 1, Stage.CRITIQUE: 2}


@dataclasses.dataclass(eq=False)
class Request:
    """Continuations of one prompt that are asked for.

    Attributes:
      prompt_ids: `[P]` int32.
      indices: one a continuation; they key the randomness.
      max_length: tokens that a continuation may have.
      sampling: how its tokens are drawn, one of those that the engine has begun with; None for the first.
    """

    prompt_ids: np.ndarray
    indices: Sequence[RowIndex]
    max_length: int
    sampling: Sampling | None = None

    @property
    def stage(self) -> Stage:
        """The stage of its continuations, which is the same for all."""
        return self.indices[0].stage

    @property
    def turn(self) -> int:
        """Requests of a lower turn go first, of equal ones in the order in which they came."""
        return _TURNS[self.stage]


@dataclasses.dataclass
class Begun:
    """Continuations of a request that a group has yet to place: those from `number` up to `end`."""

    request: Request
    number: int
    end: int

    @property
    def left(self) -> int:
        return self.end - self.number


class RequestQueue:
    """What waits, and what of it each data group has begun.

    Responses go before refinements, these before critiques, and requests of a stage in the order in which they came. A
    group hands out all of a request before it begins another.

    Args:
      num_groups: data groups.

    Attributes:
      begun: what each group has yet to place of the request that it has begun, by group.
    """

    def __init__(self, num_groups: int):
        self.num_groups = num_groups
        self.begun: dict[int, Begun] = {}
        self._queue: list[Request] = []

    @property
    def waiting(self) -> int:
        """Continuations that wait."""
        return sum(self.waiting_by_stage().values())

    def waiting_by_stage(self) -> dict[Stage, int]:
        """Returns the continuations that wait, by their stage."""
        left = [(begun.request, begun.left) for _, begun in sorted(self.begun.items())]
        left += [(request, len(request.indices)) for request in self._queue]
        waiting: collections.Counter = collections.Counter()
        for request, number in left:
            waiting[request.stage] += number
        return dict(waiting)

    def add(self, request: Request) -> None:
        """Puts a request into the queue."""
        at = len(self._queue)
        while at and self._queue[at - 1].turn > request.turn:
            at -= 1
        self._queue.insert(at, request)

    def next(self, free: Sequence[int], later: Collection[int] = ()) -> int | None:
        """Returns the data group that places next, which has begun something and has a free slot; None if none has.

        A group goes on with what it has begun. Else the one with the most free slots begins what waits first, so that
        prompts that come together are prefilled together; or, where nothing waits to begin, takes over some of what is
        left of a request in a group that is full.

        Args:
          free: how many texts each group has room for.
          later: groups that place no more now.
        """
        able = [group for group in range(self.num_groups) if free[group] and group not in later]
        going_on = next((group for group in able if group in self.begun), None)
        if going_on is not None or not able:
            return going_on
        group = max(able, key=lambda group: free[group])
        if self._queue:
            request = self._queue.pop(0)
            self.begun[group] = Begun(request, 0, len(request.indices))
            return group
        full = [other for other in range(self.num_groups) if other in self.begun and not free[other]]
        if not full:
            return None
        giver = max(full, key=lambda other: self.begun[other].left)
        given = self.begun[giver]
        first = max(given.number, given.end - free[group])
        self.begun[group] = Begun(given.request, first, given.end)
        given.end = first
        if not given.left:
            del self.begun[giver]
        return group

    def take(self, group: int) -> tuple[Request, int]:
        """Returns the continuation that a group places next, which no longer waits: whose, and which."""
        begun = self.begun[group]
        begun.number += 1
        if not begun.left:
            del self.begun[group]
        return begun.request, begun.number - 1
