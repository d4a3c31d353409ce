"""An engine's slots on the devices, from its `begin` to its `end`: what is placed is written to them, and they tick."""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np

from cgrpo_jax.inference import slots
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.inference.slot_scheduler import Placed, rows_at_once, width_of
from cgrpo_jax.runtime.program import Program


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
        self._tick = slots.tick_program(settings, *sampling)

    def write(self, placed: Sequence[Placed]) -> None:
        """Writes prompts: prefills those that share nothing, then copies, then prefills what comes after a copy."""
        self._prefill([one for one in placed if one.source is None and len(one.rest)], continued=False)
        self._share([one for one in placed if one.is_copied])
        self._prefill([one for one in placed if one.source is not None and len(one.rest)], continued=True)

    def tick(self, orders: slots.Orders, until: int) -> slots.Report:
        """Begins and ends the texts that are ordered, decodes, and returns what was done, as NumPy arrays."""
        self.slots, report = self._tick(self.params, self.slots, orders, *self.key, np.int32(until))
        return jax.device_get(report)

    def run_idle(self, program: Program) -> None:
        """Runs a program with nothing to do, so that it is compiled."""
        weights = () if program.function is slots.share else (self.params,)
        done = program(*weights, self.slots, *program.zeros())
        self.slots = done if isinstance(done, slots.Slots) else done[0]

    def _prefill(self, placed: Sequence[Placed], *, continued: bool) -> None:
        for width, groups in self._by_width(placed, lambda one: len(one.rest)):
            first, longest = 0, max(map(len, groups))
            while first < longest:
                rows = rows_at_once(width) if not continued else 1
                rows = rows if longest - first > rows // 2 else 1
                self._call_prefill([group[first : first + rows] for group in groups], rows, width, continued)
                first += rows

    def _call_prefill(self, groups: Sequence[Sequence[Placed]], rows: int, width: int, continued: bool) -> None:
        prefill = slots.prefill_program(self.settings, rows=rows, width=width, continued=continued)
        tokens, length, start, slot, number = inputs = prefill.zeros()
        length[:], number[:] = 1, [len(group) for group in groups]
        for g, group in enumerate(groups):
            for i, one in enumerate(group, start=g * rows):
                tokens[i, : len(one.rest)], length[i] = one.rest, len(one.rest)
                start[i], slot[i] = one.shared, one.slot % self.settings.num_slots
        self.slots = prefill(self.params, self.slots, *inputs)

    def _share(self, placed: Sequence[Placed]) -> None:
        S = self.settings.num_slots
        for width, groups in self._by_width(placed, lambda one: one.shared):
            share = slots.share_program(self.settings, width=width)
            source, target, number = inputs = share.zeros()
            number[:] = [len(group) for group in groups]
            for g, group in enumerate(groups):
                for i, one in enumerate(group, start=g * S):
                    assert one.source is not None  # it is copied
                    source[i], target[i] = one.source % S, one.slot % S
            self.slots = share(self.slots, *inputs)

    def _by_width(
        self, placed: Sequence[Placed], tokens: Callable[[Placed], int]
    ) -> list[tuple[int, list[list[Placed]]]]:
        """Returns, for each width that numbers of tokens are padded to, what each data group writes or copies."""
        by_width = collections.defaultdict(lambda: [[] for _ in range(self.settings.num_groups)])
        for one in placed:
            by_width[width_of(tokens(one), self.widths)][one.slot // self.settings.num_slots].append(one)
        return sorted(by_width.items())
