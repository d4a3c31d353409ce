"""The generation engine: one queue of requests, a fixed number of slots, and no waiting for the slowest.

A step of the engine refills the slots that are free, then decodes until a few texts have ended (slots.py). So at any
time fewer than one slot in sixteen idles while a request waits, whatever the lengths. All samples of a prompt share one
prefill; so do prompts that begin alike, as far as that spares work.

What is sampled depends on a text's `RowIndex`, never on when it was scheduled or beside what. The schedule itself
depends on the tokens alone: all processes compute the same one.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import sampling as sampling_lib
from cgrpo_jax.inference import slots
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.inference.slot_scheduler import Placed, Request, Scheduler, rows_at_once, widths_up_to
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import RowIndex, Stage

_IDLE_SHARE = 16  # at most one slot in so many idles while requests wait


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What one row sampled: tokens (end-of-turn included), their log-probabilities, and whether it was cut off."""

    token_ids: np.ndarray
    logp: np.ndarray
    truncated: bool


@dataclasses.dataclass
class Stats:
    """Totals since the last `Engine.take_stats`.

    Attributes:
      tokens: tokens sampled.
      prompt_tokens: prompt tokens prefilled; what was shared is not counted again.
      shared_tokens: prompt tokens that were copied instead.
      prefills: prompts prefilled, whole or in part.
      slot_steps: slots times decoding steps.
      slot_steps_waiting, tokens_waiting: the same, and the tokens sampled, while requests waited for a slot.
      seconds: of all steps.
    """

    tokens: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    prefills: int = 0
    slot_steps: int = 0
    slot_steps_waiting: int = 0
    tokens_waiting: int = 0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of the slot-steps that sampled a token, while requests waited."""
        return self.tokens_waiting / self.slot_steps_waiting if self.slot_steps_waiting else 1.0


@dataclasses.dataclass
class _Text:
    """What has been sampled in a slot so far."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Samples continuations of prompts with one model.

    Args:
      config: the model's shape.
      eos_ids: tokens that end a row.
      num_slots: texts that a data group decodes at once.
      length: tokens of the longest prompt with its continuation; what a slot has room for. By default the model's
        context.
      longest_prompt: by default `length`.
      prompt_bucket: the least width to which prompts are padded.
      chunk: tokens a slot, after which the host looks again even if nothing has ended.
      cache_dtype: of keys and values; by default that of the weights. "int8" halves them once more.
      stop: a text ends after any of these strings, which it keeps; needs `decode`.
      decode: token ids to text.
      mesh: where it runs; by default one device.

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
        self._num_groups = sharding.num_groups(self.mesh)
        self._params = self._slots = self._settings = None
        self._reset()

    def _reset(self) -> None:
        self._scheduler = Scheduler(
            num_groups=self._num_groups, num_slots=self.num_slots, widths=self.widths, room=self.length
        )
        self._texts = [_Text() for _ in range(self._num_groups * self.num_slots)]
        self._stopping = np.zeros(len(self._texts), bool)

    # --- a run ------------------------------------------------------------------------------------------------------

    def begin(self, params: dict, *, seed: int, iteration: int, sampling: Sampling | None = None) -> None:
        """Makes room on the devices and takes the weights, the key and the way to sample of what is asked for next.

        Args:
          params: the weights, on the mesh in the generation layout.
          seed, iteration: enter every random key.
          sampling: temperature and truncation; by default temperature 1, untruncated.
        """
        if self._slots is not None:
            raise ValueError("the engine is at work; call end() before it begins anew.")
        split = isinstance(params["layers"], tuple)
        dtype = self.cache_dtype or str(params["embed"].dtype)
        self._settings = slots.EngineSettings(
            self.config, self.mesh, self.eos_ids, self.num_slots, self.length, self.chunk, dtype, split
        )
        self._slots = slots.empty(self._settings)
        self._params, self._sampling = params, sampling or Sampling()
        self._key = np.uint32(seed), np.uint32(iteration)

    def end(self) -> None:
        """Lets go of the cache and the weights; requests that are not finished are dropped."""
        self._params = self._slots = None
        self._reset()

    def compile(
        self, params: dict, ways: Sequence[Sampling], *, tell: Callable[[int, int, str], None] = lambda *_: None
    ) -> None:
        """Runs every program that the engine can come to call once, with nothing to do: none is compiled later.

        Args:
          params: as in `begin`.
          ways: all that `begin` will be given as `sampling`.
          tell: is called before each, with how many are done, how many there are, and which comes.
        """
        fresh = [(width, rows, False) for width in self.widths for rows in sorted({1, rows_at_once(width)})]
        continued = [(width, 1, True) for width in self.widths[:-1]]
        number, total = 0, len(fresh) + len(continued) + len(self.widths) + len(ways)

        def next_is(name: str) -> None:
            nonlocal number
            tell(number, total, name)
            number += 1

        self.begin(params, seed=0, iteration=0)
        try:
            nobody = [[] for _ in range(self._num_groups)]
            for width, rows, after in fresh + continued:
                next_is(f"prefill of {rows} x {width} tokens" + (" after others" if after else ""))
                self._call_prefill(nobody, rows, width, after)
            for width in self.widths:
                next_is(f"copy of {width} tokens")
                self._call_share(nobody, width)
            orders = self._refill()
            for sampling in ways:
                next_is(f"decoding, {sampling}")
                self._sampling = sampling
                self._tick(orders, 1)
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
        return len(self._texts)

    @property
    def live(self) -> int:
        """Continuations that go on."""
        return self._scheduler.live

    @property
    def waiting(self) -> int:
        """Continuations that wait for a slot."""
        return self._scheduler.waiting

    def waiting_by_stage(self) -> dict[Stage, int]:
        """Returns the continuations that wait, by their stage."""
        return self._scheduler.waiting_by_stage()

    def add(self, request: Request) -> None:
        """Puts a request into the queue.

        Raises:
          UserError: its prompt is empty, or does not fit a slot with its continuation.
          ValueError: it asks for no text, or for texts of no token; or the engine has not begun.
        """
        if self._slots is None:
            raise ValueError("the engine is not at work; call begin() before requests are added.")
        if not len(request.indices) or request.max_length < 1:
            raise ValueError(f"a request asks for no text: {len(request.indices)} of {request.max_length} tokens.")
        prompt, longest = len(request.prompt_ids), self.widths[-1]
        if not prompt:
            raise UserError("a prompt is empty; a prompt needs at least one token.")
        if prompt + request.max_length > self.length or prompt > longest:
            raise UserError(
                f"a prompt of {prompt} tokens and {request.max_length} new ones exceed the room of {self.length} "
                f"(prompts of {longest}) that a slot has; shorten the prompts or the responses."
            )
        self._scheduler.add(request)

    def step(self) -> list[tuple[Request, int, Sampled]]:
        """Refills free slots, decodes for a while, returns the continuations that have ended: whose, which, what."""
        if not self.busy:
            return []
        began = time.monotonic()
        orders = self._refill()
        waiting, num_slots = self.waiting, self.total_slots
        # Where nothing waits, slots idle anyway: whoever asked should hear at once, it may ask for more.
        until = max(1, num_slots // _IDLE_SHARE) if waiting else 1
        report = self._tick(orders, until)
        finished, tokens = self._note(report)
        s = self.stats
        s.tokens += tokens
        s.slot_steps += int(report.steps) * num_slots
        if waiting:
            s.slot_steps_waiting += int(report.steps) * num_slots
            s.tokens_waiting += tokens
        s.seconds += time.monotonic() - began
        return finished

    def _tick(self, orders: slots.Orders, until: int) -> slots.Report:
        self._slots, report = slots.tick(
            self._params,
            self._slots,
            orders,
            *self._key,
            np.int32(until),
            settings=self._settings,
            sampling=self._sampling,
        )
        return jax.device_get(report)

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
        out = {id(request): [None] * len(request.indices) for request in requests}
        self.begin(params, seed=seed, iteration=iteration, sampling=Sampling(temperature, top_p, top_k))
        try:
            for request in requests:
                self.add(request)
            while self.busy:
                for request, number, sampled in self.step():
                    out[id(request)][number] = sampled
        finally:
            self.end()
        return [out[id(request)] for request in requests]

    # --- refilling --------------------------------------------------------------------------------------------------

    def _refill(self) -> slots.Orders:
        """Puts waiting continuations into free slots, prompts and all; returns what the next tick begins and ends."""
        S = len(self._texts)
        orders = slots.Orders(
            begin_S=np.zeros(S, bool),
            stop_S=self._stopping,
            token_S=np.zeros(S, np.int32),
            length_S=np.zeros(S, np.int32),
            limit_S=np.zeros(S, np.int32),
            index_S6=np.zeros((S, 6), np.int32),
        )
        self._stopping = np.zeros(S, bool)
        while placed := self._scheduler.place():
            self._write(placed)
            for one in placed:
                s, request = one.slot, one.request
                self._texts[s] = _Text()
                orders.begin_S[s] = True
                orders.token_S[s] = request.prompt_ids[-1]
                orders.length_S[s] = len(request.prompt_ids) - 1
                orders.limit_S[s] = request.max_length
                orders.index_S6[s] = sampling_lib.index_array([request.indices[one.number]])[0]
        return orders

    # --- writing prompts --------------------------------------------------------------------------------------------

    def _write(self, placed: Sequence[Placed]) -> None:
        """Prefills prompts, then copies, then prefills what comes after a copy."""
        fresh = [one for one in placed if one.source is None and len(one.rest)]
        self._prefill(fresh, continued=False)
        self._share([one for one in placed if one.source is not None and one.source != one.slot and one.shared])
        self._prefill([one for one in placed if one.source is not None and len(one.rest)], continued=True)

    def _prefill(self, placed: Sequence[Placed], *, continued: bool) -> None:
        by_width = collections.defaultdict(lambda: [[] for _ in range(self._num_groups)])
        for one in placed:
            by_width[self._scheduler.width(len(one.rest))][one.slot // self.num_slots].append(one)
            self.stats.prompt_tokens += len(one.rest)
            self.stats.prefills += 1
        for width, groups in sorted(by_width.items()):
            first, longest = 0, max(map(len, groups))
            while first < longest:
                rows = rows_at_once(width) if not continued else 1
                rows = rows if longest - first > rows // 2 else 1
                self._call_prefill([group[first : first + rows] for group in groups], rows, width, continued)
                first += rows

    def _call_prefill(self, groups: Sequence[Sequence[Placed]], rows: int, width: int, continued: bool) -> None:
        G = len(groups)
        tokens, length = np.zeros((G * rows, width), np.int32), np.ones(G * rows, np.int32)
        start, slot = np.zeros(G * rows, np.int32), np.zeros(G * rows, np.int32)
        for g, group in enumerate(groups):
            for i, one in enumerate(group, start=g * rows):
                tokens[i, : len(one.rest)], length[i] = one.rest, len(one.rest)
                start[i], slot[i] = one.shared, one.slot % self.num_slots
        number = np.array([len(group) for group in groups], np.int32)
        arrays = (tokens, length, start, slot, number)
        self._slots = slots.prefill(self._params, self._slots, *arrays, settings=self._settings, continued=continued)

    def _share(self, placed: Sequence[Placed]) -> None:
        by_width = collections.defaultdict(lambda: [[] for _ in range(self._num_groups)])
        for one in placed:
            by_width[self._scheduler.width(one.shared)][one.slot // self.num_slots].append(one)
            self.stats.shared_tokens += one.shared
        for width, groups in sorted(by_width.items()):
            self._call_share(groups, width)

    def _call_share(self, groups: Sequence[Sequence[Placed]], width: int) -> None:
        S = self.num_slots
        source, target = np.zeros(len(self._texts), np.int32), np.zeros(len(self._texts), np.int32)
        for g, group in enumerate(groups):
            for i, one in enumerate(group, start=g * S):
                source[i], target[i] = one.source % S, one.slot % S
        number = np.array([len(group) for group in groups], np.int32)
        self._slots = slots.share(self._slots, source, target, number, settings=self._settings, width=width)

    # --- what a tick did --------------------------------------------------------------------------------------------

    def _note(self, report: slots.Report) -> tuple[list[tuple[Request, int, Sampled]], int]:
        """Takes down what was sampled; returns the continuations that have ended, and the number of tokens."""
        finished, total = [], 0
        for s, text in enumerate(self._texts):
            if (occupant := self._scheduler.occupant(s)) is None:
                continue
            new = int(report.sampled_S[s]) - len(text.tokens)
            text.tokens += report.tokens_CS[:new, s].tolist()
            text.logp += report.logp_CS[:new, s].tolist()
            total += new
            ended, cut = not report.live_S[s], self._stopped_at(text.tokens, new)
            if cut is not None:
                self._stopping[s] = not ended
                total -= len(text.tokens) - cut
                del text.tokens[cut:], text.logp[cut:]
            if ended or cut is not None:
                truncated = cut is None and text.tokens[-1] not in self.eos_ids
                ids, logp = np.array(text.tokens, np.int32), np.array(text.logp, np.float32)
                finished.append((*occupant, Sampled(ids, logp, truncated)))
                self._scheduler.free(s)
        return finished, total

    def _stopped_at(self, tokens: Sequence[int], new: int) -> int | None:
        """Returns how many tokens a text has when it holds a stop string for the first time; None if it holds none."""
        if not self.stop or not new:
            return None
        first = len(tokens) - new
        start = max(0, first - max(len(stop.encode()) for stop in self.stop))  # a token has a byte at least
        if not self._has_stop(tokens[start:]):
            return None
        return next(end for end in range(first + 1, len(tokens) + 1) if self._has_stop(tokens[start:end]))

    def _has_stop(self, tokens: Sequence[int]) -> bool:
        text = self.decode(tokens)
        return any(stop in text for stop in self.stop)
