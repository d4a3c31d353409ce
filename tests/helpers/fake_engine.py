"""An engine without a model: texts take as many steps as a script says, and say what it says."""

import dataclasses
import types

import numpy as np

from cgrpo_jax.inference.engine_stats import Stats
from cgrpo_jax.inference.slot_texts import Sampled


def key_of(index):
    return dataclasses.astuple(index)


def token(number, *, truncated=False):
    """A text of one token."""
    return Sampled(np.array([number], np.int32), np.zeros(1, np.float32), truncated)


class FakeEngine:
    """Has the interface of `Engine`.

    Args:
      say: `RowIndex -> Sampled`.
      steps: `RowIndex -> int`, for how many steps a text keeps its slot.
      num_slots: texts that go on at once.

    Attributes:
      runs: one for each `begin`: its `params`, its `settings` and the `requests` since.
      events: "add REQUEST", "step" and "done REQUEST, NUMBER" in their order, as tuples.
    """

    def __init__(self, say=lambda index: token(0), *, steps=lambda index: 1, num_slots=100):
        self.say, self.steps, self.num_slots = say, steps, num_slots
        self.runs, self.events, self.stats, self.at_work = [], [], Stats(), False
        self._waiting, self._live = [], []

    def begin(self, params, **settings):
        assert not self.at_work
        self.at_work = True
        self.runs.append(types.SimpleNamespace(params=params, settings=settings, requests=[]))

    def end(self):
        self.at_work = False
        self._waiting, self._live = [], []

    def take_stats(self):
        stats, self.stats = self.stats, Stats()
        return stats

    @property
    def total_slots(self):
        return self.num_slots

    @property
    def live(self):
        return len(self._live)

    @property
    def busy(self):
        return bool(self._waiting or self._live)

    def waiting_by_stage(self):
        waiting = [request.stage for request, _ in self._waiting]
        return {stage: waiting.count(stage) for stage in set(waiting)}

    def add(self, request):
        if self.runs:
            self.runs[-1].requests.append(request)
        self.events.append(("add", request))
        self._waiting += [(request, number) for number in range(len(request.indices))]
        self._waiting.sort(key=lambda one: one[0].turn)

    def step(self):
        assert self.busy
        self.events.append(("step",))
        while self._waiting and len(self._live) < self.num_slots:
            request, number = self._waiting.pop(0)
            self._live.append([request, number, self.steps(request.indices[number])])
        for one in self._live:
            one[2] -= 1
        self.stats.tokens += len(self._live)
        ended = [(request, number) for request, number, left in self._live if left <= 0]
        self._live = [one for one in self._live if one[2] > 0]
        self.events += [("done", request, number) for request, number in ended]
        return [(request, number, self.say(request.indices[number])) for request, number in ended]

    @property
    def added(self):
        """The keys of all continuations asked for, in order."""
        return [key_of(index) for event in self.events if event[0] == "add" for index in event[1].indices]
