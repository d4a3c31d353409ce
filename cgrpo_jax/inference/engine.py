"""The generation engine: one queue of requests, a fixed number of slots, and no waiting for the slowest.

A step of the engine refills the slots that are free, then decodes until a few texts have ended (slots.py). So fewer
than one slot in sixteen idles while a request waits, whatever the lengths. All samples of a prompt share one
prefill; so do prompts that begin alike, as far as that spares work.

A step may give the devices the next call before it reads what the last has done (`overlap`). Then they do not wait for
the host, which reads, decodes, grades and places meanwhile; and a slot whose text has ended is free one call later. The
devices count what ended in the call before: where that is one slot in sixteen, the next call takes a single step.

What is sampled depends on a text's `RowIndex`, never on when it was scheduled or beside what. The schedule itself
depends on the tokens alone: all processes compute the same one.
"""

import collections
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import slot_programs, slots
from cgrpo_jax.inference.engine_stats import Stats
from cgrpo_jax.inference.filling import InFlight, PageFilling, SlotFilling
from cgrpo_jax.inference.paged import ragged_attention, running
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.running import RunningPages
from cgrpo_jax.inference.paged.scheduler import PageScheduler
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.running_slots import RunningSlots
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.inference.slot_scheduler import Scheduler, rows_at_once, widths_up_to
from cgrpo_jax.inference.slot_texts import Sampled, SlotTexts
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.runtime.program import Program


class Engine:
    """Samples continuations of prompts with one model.

    Args:
      config: the model's shape.
      eos_ids: tokens that end a row.
      num_slots: texts that a data group decodes at once.
      length: tokens of the longest prompt with its continuation; each slot holds as many. By default the model's
        context.
      longest_prompt: by default `length`.
      prompt_bucket: the least width to which prompts are padded.
      chunk: tokens a slot, after which the host looks again even if nothing has ended.
      cache_dtype: of keys and values; by default that of the weights. "int8" halves them once more.
      stop: a text ends after any of these strings, which it keeps; needs `decode`.
      decode: token ids to text.
      mesh: where it runs; by default one device.
      pages: of a data group, where the cache has pages: then these say how many texts it decodes at once, `num_slots`
        at most. By default the cache is contiguous.
      overlap: whether a call is dispatched before the report of the one before is read. It pays where the host is none
        of the devices.

    Attributes:
      make_running: makes what holds the slots from `begin` to `end`: `RunningSlots`, `RunningPages`, or a simulation's.

    Example:
      engine = Engine(config, eos_ids=(2,), num_slots=64)
      engine.begin(params, seed=0, iteration=0)
      engine.add(Request(prompt_ids, [RowIndex(question=0, response=i) for i in range(7)], max_length=512))
      while engine.busy:
          for request, number, sampled in engine.step():
              ...
      engine.end()
    """

    def __init__(
        self,
        config: params_lib.ModelConfig,
        *,
        eos_ids: Sequence[int],
        num_slots: int,
        length: int = 0,
        longest_prompt: int = 0,
        prompt_bucket: int = 32,
        chunk: int = 64,
        cache_dtype: str = "",
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        mesh: jax.sharding.Mesh | None = None,
        pages: Pages | None = None,
        overlap: bool = False,
    ):
        self.config = config
        self.mesh = mesh or sharding.one_device()
        self.eos_ids = tuple(sorted(eos_ids))
        self.num_slots, self.chunk = num_slots, chunk
        self.length = length or config.max_context
        self.widths = widths_up_to(longest_prompt or self.length, prompt_bucket)
        self.cache_dtype = cache_dtype
        self.stop, self.decode = tuple(stop), decode
        self.stats = Stats()
        self.pages, self.overlap = pages, overlap
        if pages and self.length > pages.longest:
            raise UserError(
                f"{pages.number - 1} pages of {pages.size} tokens hold texts of at most {pages.longest} tokens, not of "
                f"{self.length}; use more memory for keys and values, or shorter prompts and responses."
            )
        self.make_running: Callable[..., Any] = RunningPages if pages else RunningSlots
        self._num_groups = sharding.num_groups(self.mesh)
        self._running: Any = None
        self._reset()

    def _reset(self) -> None:
        self._texts = SlotTexts(self.total_slots, eos_ids=self.eos_ids, stop=self.stop, decode=self.decode)
        sizes = {"num_groups": self._num_groups, "num_slots": self.num_slots, "length": self.length}
        self._filling: SlotFilling | PageFilling
        calls = 2 if self.overlap else 1
        if self.pages:
            pages = PageScheduler(pages=self.pages, **sizes)
            self._filling = PageFilling(pages, self._texts, chunk=self.chunk, calls=calls)
        else:
            self._filling = SlotFilling(Scheduler(widths=self.widths, **sizes), self._texts, calls=calls)
        self._scheduler = self._filling.scheduler
        self._in_flight: collections.deque[InFlight] = collections.deque()

    # --- a run ------------------------------------------------------------------------------------------------------

    def begin(
        self,
        params: dict,
        *,
        seed: int,
        iteration: int,
        sampling: Sampling | None = None,
        others: Sequence[Sampling] = (),
    ) -> None:
        """Makes empty slots on the devices; takes the weights, the key and the sampling of what is asked for next.

        Args:
          params: the weights, on the mesh in the generation layout.
          seed, iteration: enter every random key.
          sampling: temperature and truncation; by default temperature 1, untruncated.
          others: further ones, which some requests name.
        """
        if self._running is not None:
            raise ValueError("the engine is at work; call end() before another begin().")
        self._filling.samplings = (sampling or Sampling(), *others)
        self._running = self.make_running(
            params,
            self.settings(params),
            widths=self.widths,
            seed=seed,
            iteration=iteration,
            sampling=self._filling.samplings,
        )

    def end(self) -> None:
        """Lets go of the cache and the weights; requests that are not finished are dropped."""
        self._running = None
        self._reset()

    def _at_work(self) -> Any:
        if self._running is None:
            raise ValueError("the engine is not at work; call begin() before requests are added.")
        return self._running

    # --- its programs -----------------------------------------------------------------------------------------------

    def settings(self, params: dict) -> slots.EngineSettings:
        """Returns what the programs are compiled for, with weights that are given as arrays or as shapes.

        Raises:
          UserError: keys and values are to have pages, and attention over these can't have the model or their type.
        """
        dtype = self.cache_dtype or str(params["embed"].dtype)
        if self.pages:
            ragged_attention.check(self.config, self.mesh.shape[sharding.TENSOR], dtype, kernel=self.pages.kernel)
        return slots.EngineSettings(
            self.config,
            self.mesh,
            self.eos_ids,
            self.num_slots,
            self.length,
            self.chunk,
            dtype,
            isinstance(params["layers"], tuple),
            self.pages,
        )

    def programs(self, params: dict, samplings: Sequence[Sampling | Sequence[Sampling]]) -> list[Program]:
        """Returns every program that the engine can call.

        Each is called with the weights, which copies alone do without, with the slots (as shapes: `slots_shapes`) and
        with its inputs.

        Args:
          params: the weights in the generation layout, as arrays or as shapes.
          samplings: all that `begin` will be given, several where some requests name others.
        """
        settings = self.settings(params)
        ways = [[one] if isinstance(one, Sampling) else one for one in samplings]
        if self.pages:
            sizes = running.program_sizes(settings)
            return [slot_programs.paged_program(settings, *size, *way) for way in ways for size in sizes]
        prefill = functools.partial(slot_programs.prefill_program, settings)
        fresh = [(rows, width) for width in self.widths for rows in sorted({1, rows_at_once(width)})]
        return [
            *(prefill(rows=rows, width=width, continued=False) for rows, width in fresh),
            *(prefill(rows=1, width=width, continued=True) for width in self.widths[:-1]),
            *(slot_programs.share_program(settings, width=width) for width in self.widths),
            *(slot_programs.tick_program(settings, *way) for way in ways),
        ]

    def compile(
        self,
        params: dict,
        samplings: Sequence[Sampling | Sequence[Sampling]],
        *,
        on_program: Callable[[int, int, str], None] = lambda *_: None,
    ) -> None:
        """Runs each of `programs` once, with nothing to do: none is compiled later.

        Args:
          params, samplings: as for `programs`.
          on_program: is called before each, with how many are done, how many there are, and which comes.
        """
        programs = self.programs(params, samplings)
        self.begin(params, seed=0, iteration=0)
        try:
            ours = self._at_work()
            assert isinstance(ours, RunningSlots | RunningPages), "a simulation has nothing to compile"
            for number, program in enumerate(programs):
                on_program(number, len(programs), program.name)
                ours.run_idle(program)
            jax.block_until_ready(ours.slots)
        finally:
            self.end()

    def take_stats(self) -> Stats:
        """Returns the totals since the last call and starts new ones."""
        stats, self.stats = self.stats, Stats()
        return stats

    @property
    def busy(self) -> bool:
        """Whether anything waits or goes on."""
        return self.waiting > 0 or self.live > 0

    @property
    def total_slots(self) -> int:
        """Slots of all data groups."""
        return self._num_groups * self.num_slots

    @property
    def live(self) -> int:
        """Continuations that go on."""
        return self._scheduler.live

    @property
    def waiting(self) -> int:
        """Continuations that wait for a slot."""
        return self._scheduler.waiting

    @property
    def in_flight(self) -> int:
        """Calls that are dispatched and not read."""
        return len(self._in_flight)

    def waiting_by_stage(self) -> dict[Stage, int]:
        """Returns the continuations that wait, by their stage."""
        return self._scheduler.waiting_by_stage()

    def add(self, request: Request) -> None:
        """Puts a request into the queue.

        Raises:
          UserError: its prompt is empty, or does not fit a slot with its continuation.
          ValueError: it asks for no text, or for texts of no token, or the engine has not begun, or without the
            sampling that it names.
        """
        self._at_work()
        if request.sampling not in (None, *self._filling.samplings):
            raise ValueError(f"a request is drawn with {request.sampling}, which begin() was not given.")
        if not len(request.indices) or request.max_length < 1:
            raise ValueError(f"a request asks for no text: {len(request.indices)} of {request.max_length} tokens.")
        prompt, longest = len(request.prompt_ids), self.widths[-1]
        if not prompt:
            raise UserError("a prompt is empty; a prompt needs at least one token.")
        if prompt + request.max_length > self.length or prompt > longest:
            raise UserError(
                f"a prompt of {prompt} tokens and {request.max_length} new ones exceed the {self.length} tokens "
                f"(prompts of {longest}) that a slot holds; shorten the prompts or the responses."
            )
        self._scheduler.add(request)

    def step(self) -> list[tuple[Request, int, Sampled]]:
        """Refills free slots, decodes for a while, returns the continuations that have ended: whose, which, what.

        With `overlap` these are those of the call before the one that is dispatched here.
        """
        if not self.busy:
            return []
        began, s = time.monotonic(), self.stats
        while self._has_more() and (made := self._filling.dispatch(self._at_work(), s)):
            self._in_flight.append(made)
        made = self._in_flight.popleft()
        report: slots.Report = jax.device_get(made.report)
        self._filling.record(made, report)
        finished, tokens = self._read(made, report)
        slot_steps = int(report.steps) * made.num_slots
        s.tokens += tokens
        s.slot_steps += slot_steps
        if made.waiting:
            s.slot_steps_waiting += slot_steps
            s.tokens_waiting += tokens
        s.seconds += time.monotonic() - began
        return finished

    def _has_more(self) -> bool:
        """Returns whether another call may be dispatched, and may find a text that goes on, whatever those before do.

        Each of these takes a step at least, and with that a token of each text.
        """
        ahead = self.in_flight
        if not ahead or ahead >= self._filling.calls:
            return not ahead
        most = {s: one[0].max_length for s in range(self.total_slots) if (one := self._scheduler.occupant(s))}
        if self.waiting or self.live > len(most):  # what enters goes on
            return True
        return any(len(self._texts.of(slot).tokens) + ahead < number for slot, number in most.items())

    def _read(self, made: InFlight, report: slots.Report) -> tuple[list[tuple[Request, int, Sampled]], int]:
        """Reads what a call has sampled; returns the continuations that have ended, and the number of tokens.

        Of a text that has ended before, as by a string, nothing is read.
        """
        finished, total = [], 0
        for slot in range(self.total_slots):
            occupant = self._scheduler.occupant(slot)
            if occupant is None or occupant != made.occupants[slot]:
                continue
            new, text = self._texts.read(slot, report)
            total += new
            if text is not None:
                finished.append((*occupant, text))
                self._scheduler.free(slot)
        return finished, total

    def generate(
        self,
        params: dict,
        prompts: Sequence[Sequence[int]],
        indices: Sequence[Sequence[RowIndex]],
        *,
        seed: int,
        iteration: int,
        max_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[list[Sampled]]:
        """Samples N continuations of each of Q prompts, from the first to the last, and returns Q lists of N.

        Raises:
          UserError: as `add`.
          ValueError: there is not a list of indices for each prompt, or one is empty.
        """
        if len(indices) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(indices)} lists of indices; give one each.")
        requests = [
            Request(np.asarray(prompt, np.int32), group, max_length)
            for prompt, group in zip(prompts, indices, strict=True)
        ]
        out: dict[int, dict[int, Sampled]] = {id(request): {} for request in requests}
        self.begin(params, seed=seed, iteration=iteration, sampling=Sampling(temperature, top_p, top_k))
        try:
            for request in requests:
                self.add(request)
            while self.busy:
                for request, number, sampled in self.step():
                    out[id(request)][number] = sampled
        finally:
            self.end()
        return [[out[id(request)][number] for number in range(len(request.indices))] for request in requests]
