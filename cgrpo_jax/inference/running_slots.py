"""An engine's slots on the devices, from its `begin` to its `end`: what is placed is written to them, and they tick."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from cgrpo_jax.inference import slot_programs, slot_writes, slots
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.inference.slot_scheduler import Placed
from cgrpo_jax.runtime.program import Program


class Until(NamedTuple):
    """How many texts end a call of the devices, by their last token: of strings that end texts these know nothing.

    Attributes:
      ended: in this call.
      unread: with those of the call before, where the host has not read it yet; not before this one has taken a step.
    """

    ended: int
    unread: int


class Running(Protocol):
    """What an engine needs of its slots from `begin` to `end`. Nothing waits for the devices."""

    def write(self, placed: Sequence[Placed]) -> None: ...

    def tick(self, orders: slots.Orders, until: Until) -> slots.Report: ...


def sent(report: slots.Report) -> slots.Report:
    """Returns a report that is copied to the host as soon as it is there, while the devices go on."""
    for leaf in jax.tree.leaves(report):
        leaf.copy_to_host_async()
    return report


class RunningSlots:
    """Empty slots, and what works on them.

    Args:
      params: the weights, on the mesh in the generation layout.
      settings: what the programs are compiled for.
      widths: to which prompts are padded.
      seed, iteration: enter every random key.
      sampling: how tokens are drawn; of each text in the first way, or another.
    """

    def __init__(
        self,
        params: dict,
        settings: slots.EngineSettings,
        *,
        widths: Sequence[int],
        seed: int,
        iteration: int,
        sampling: Sequence[Sampling],
    ):
        self.params, self.settings, self.widths = params, settings, widths
        self.key = np.uint32(seed), np.uint32(iteration)
        self.slots = slots.empty(settings)
        self._tick = slot_programs.tick_program(settings, *sampling)

    def write(self, placed: Sequence[Placed]) -> None:
        """Writes the prompts of what is placed, or what of them is not in a slot already."""
        groups, num_slots = self.settings.num_groups, self.settings.num_slots
        for one in slot_writes.writes(placed, widths=self.widths, num_groups=groups, num_slots=num_slots):
            if isinstance(one, slot_writes.Prefill):
                self._prefill(one)
            else:
                self._copy(one)

    def tick(self, orders: slots.Orders, until: Until) -> slots.Report:
        """Begins and ends the texts that are ordered, decodes, and returns what will have been done."""
        self.slots, report = self._tick(self.params, self.slots, orders, *self.key, np.array(until, np.int32))
        return sent(report)

    def run_idle(self, program: Program) -> None:
        """Runs a program with nothing to do, so that it is compiled."""
        weights = () if program.function is slots.share else (self.params,)
        done = program(*weights, self.slots, *program.zeros())
        self.slots = done if isinstance(done, slots.Slots) else done[0]

    def _prefill(self, call: slot_writes.Prefill) -> None:
        rows, width = call.rows, call.width
        prefill = slot_programs.prefill_program(self.settings, rows=rows, width=width, continued=call.continued)
        tokens, length, start, slot, number = inputs = prefill.zeros()
        length[:], number[:] = 1, [len(group) for group in call.groups]
        for g, group in enumerate(call.groups):
            for i, one in enumerate(group, start=g * rows):
                tokens[i, : len(one.rest)], length[i] = one.rest, len(one.rest)
                start[i], slot[i] = one.shared, one.slot % self.settings.num_slots
        self.slots = prefill(self.params, self.slots, *inputs)

    def _copy(self, call: slot_writes.Copy) -> None:
        S = self.settings.num_slots
        share = slot_programs.share_program(self.settings, width=call.width)
        source, target, number = inputs = share.zeros()
        number[:] = [len(group) for group in call.groups]
        for g, group in enumerate(call.groups):
            for i, one in enumerate(group, start=g * S):
                assert one.source is not None  # it is copied
                source[i], target[i] = one.source % S, one.slot % S
        self.slots = share(self.slots, *inputs)
