"""An engine's slots with pages on the devices, from its `begin` to its `end`."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cgrpo_jax.inference import slot_programs, slots
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.call_sizes import row_counts, token_counts
from cgrpo_jax.inference.paged.decoding import Chunks
from cgrpo_jax.inference.paged.scheduler import PagedCall
from cgrpo_jax.inference.running_slots import Until, sent
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.runtime.program import Program


class RunningPaged(Protocol):
    """What an engine whose cache has pages needs of its slots from `begin` to `end`. Nothing waits for the devices."""

    def run(self, call: PagedCall, orders: slots.Orders, until: Until) -> slots.Report: ...


class RunningPages:
    """Empty slots and pages, and what works on them.

    Args:
      params, settings, seed, iteration, sampling: as for `RunningSlots`.
      widths: not looked at: prompts are not padded.
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
        del widths
        assert settings.pages
        self.params, self.settings, self.pages = params, settings, settings.pages
        self.key = np.uint32(seed), np.uint32(iteration)
        self.slots = slots.empty(settings)
        self._programs = {
            (tokens, rows): slot_programs.paged_program(settings, tokens, rows, *sampling)
            for tokens, rows in program_sizes(settings)
        }

    def run(self, call: PagedCall, orders: slots.Orders, until: Until) -> slots.Report:
        """Begins and ends the texts that are ordered, writes what enters, decodes; returns what will have been done."""
        program = self._programs[call.tokens, call.rows]
        _, chunks, *_ = program.zeros()
        if chunks is not None:
            fill(chunks, call, self.pages)
        steps = np.array(until, np.int32), np.int32(call.steps)
        self.slots, report = program(self.params, self.slots, orders, chunks, *self.key, *steps)
        return sent(report)

    def run_idle(self, program: Program) -> None:
        """Runs a program with nothing to do, so that it is compiled."""
        self.slots, _ = program(self.params, self.slots, *program.zeros())


def program_sizes(settings: slots.EngineSettings) -> list[tuple[int, int]]:
    """Returns the tokens of prompts and the slots that each program computes of a data group, the most first."""
    assert settings.pages, "a contiguous cache has other programs"
    counts = (*token_counts(settings.pages.tokens, settings.num_groups), 0)
    return [(tokens, rows) for tokens in counts for rows in row_counts(settings.num_slots)]


def fill(chunks: Chunks, call: PagedCall, pages: Pages) -> None:
    """Writes what enters in a call into arrays of zeros, the parts of each data group one after the other."""
    for g, parts in enumerate(call.parts):
        at = g * call.tokens
        for q, part in enumerate(parts, start=g * pages.prompts):
            own = np.asarray(part.text.pages, np.int32)
            here, position = slice(at, at + part.end - part.start), np.arange(part.start, part.end)
            chunks.token_N[here] = part.text.context[part.start : part.end]
            chunks.position_N[here] = position
            chunks.place_N[here] = own[position // pages.size] * pages.size + position % pages.size
            chunks.queries_Q[q], chunks.length_Q[q] = part.end - part.start, part.end
            chunks.table_QP[q, : len(own)] = own
            at += part.end - part.start
