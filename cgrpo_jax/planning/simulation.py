"""An iteration's generation without devices: the run's own engine, queue and coroutines, with lengths for a model.

    calls = simulate(questions, {"policy": engine}, {"policy": weights})["policy"]

What is scheduled depends on lengths alone, never on what anything costs: so it is simulated once, and priced as often
as there are chips to compare (pricing.py). On the same lengths a real engine makes the same calls (tests).
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from cgrpo_jax.inference import kv_cache, orchestrator, slot_writes, slots
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.orchestrator import Orchestrator, gather
from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.inference.paged.running import RunningPages
from cgrpo_jax.inference.paged.scheduler import PagedCall
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.running_slots import RunningSlots, Until
from cgrpo_jax.inference.sampling import Sampling, index_array
from cgrpo_jax.inference.slot_scheduler import Placed
from cgrpo_jax.planning.workload import Asked, Chain, Question
from cgrpo_jax.records import Problem, RowIndex, Stage
from cgrpo_jax.rewards.grader import Grade, Grader, Pending

# How many positions of the cache a step reads: `(length_NS, live_NS) -> [N]`, of one data group.
Reads = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tick:
    """One call that decodes, of N steps. All data groups take as many, each as long as the one that reads the most.

    Attributes:
      read_N: positions of the cache that a step reads, in the data group in which these are the most.
      needed_N: likewise, those that the texts have.
      live_N3: texts that decode, of all data groups, by their stage.
      waiting: whether texts waited for a slot.
      num_slots: of all data groups; with pages, only those that have a text.
      entering: tokens of prompts that the call takes of each data group, with pages; 0: none enters.
      entered_3: tokens of prompts that enter, of all data groups, by stage.
      groups: data groups.
      rows: slots that are computed of each data group, with pages; 0: all.
      ahead: whether it is dispatched before the report of the call before is read.
    """

    read_N: np.ndarray
    needed_N: np.ndarray
    live_N3: np.ndarray
    waiting: bool
    num_slots: int
    entering: int = 0
    entered_3: tuple[int, ...] = (0, 0, 0)
    groups: int = 1
    rows: int = 0
    ahead: bool = False

    @property
    def steps(self) -> int:
        return len(self.read_N)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that enter."""
        return sum(self.entered_3)

    @property
    def tokens(self) -> int:
        """Tokens that are sampled."""
        return int(self.live_N3.sum())


Call = slot_writes.Write | Tick


class SimulatedSlots:
    """Slots of texts whose lengths are known, in the place of `RunningSlots`, or `RunningPages`: it records the calls.

    Args:
      params: not looked at.
      settings, widths: as for `RunningSlots`.
      seed, iteration, sampling: not looked at.
      lengths: tokens of each text, by its index.
      reads: positions that a step reads; by default as the engine's cache does.
      calls: to which calls are added.
      waiting: how many texts wait for a slot.
      in_flight: how many calls are dispatched and not read.
    """

    def __init__(
        self,
        params: Any,
        settings: slots.EngineSettings,
        *,
        widths: Sequence[int],
        seed: int,
        iteration: int,
        sampling: Sequence[Sampling],
        lengths: Mapping[tuple[int, ...], int],
        reads: Reads | None,
        calls: list[Call],
        waiting: Callable[[], int],
        in_flight: Callable[[], int] = lambda: 0,
    ):
        del params, seed, iteration, sampling
        self.settings, self.widths, self.lengths = settings, widths, lengths
        self.calls, self.waiting, self.in_flight = calls, waiting, in_flight
        self.reads = reads or reads_of(settings)
        S = settings.num_groups * settings.num_slots
        self._length_S, self._left_S, self._sampled_S, self._stage_S = np.zeros((4, S), int)
        self._ends_S = np.zeros(S, bool)  # whether a text ends by itself
        self._end = settings.eos_ids[0] if settings.eos_ids else 0
        self._token = next(i for i in range(len(settings.eos_ids) + 1) if i not in settings.eos_ids)

    def write(self, placed: Sequence[Placed]) -> None:
        """Records the calls that write what is placed."""
        groups, num_slots = self.settings.num_groups, self.settings.num_slots
        self.calls += slot_writes.writes(placed, widths=self.widths, num_groups=groups, num_slots=num_slots)

    def run(self, call: PagedCall, orders: slots.Orders, until: Until) -> slots.Report:
        """Does with pages what `tick` does, beside what enters of prompts."""
        return self.tick(orders, until, call)

    def tick(self, orders: slots.Orders, until: Until, call: PagedCall | None = None) -> slots.Report:
        """Decodes as `slots.tick` does, with texts that end when their lengths say so."""
        self._begin(orders)
        live_S = self._left_S > 0
        unread = int(np.sum(orders.occupied_S & ~live_S))
        ends = np.sort(self._left_S[live_S])  # after so many steps
        most = call.steps if call else self.settings.chunk
        enough = min(until.ended, until.unread - unread, len(ends))
        steps = int(min(most, ends[enough - 1] if enough > 0 else 1)) if len(ends) else 0
        steps = 1 if call and call.tokens else steps
        step_N1 = np.arange(steps)[:, None]
        live_NS = step_N1 < self._left_S
        self._record(self._length_S + step_N1, live_NS, call)
        gained_S = np.minimum(self._left_S, steps)
        tokens_CS = np.full((self.settings.chunk, len(live_S)), self._token, np.int32)
        over = np.flatnonzero(live_S & (gained_S == self._left_S) & self._ends_S)
        tokens_CS[gained_S[over] - 1, over] = self._end
        self._length_S += gained_S
        self._sampled_S += gained_S
        self._left_S -= gained_S
        logp_CS = np.zeros(tokens_CS.shape, np.float32)
        return slots.Report(tokens_CS, logp_CS, self._sampled_S.copy(), self._left_S > 0, np.array(steps, np.int32))

    def _begin(self, orders: slots.Orders) -> None:
        self._left_S[np.asarray(orders.stop_S)] = 0
        for s in np.flatnonzero(orders.begin_S):
            index = tuple(map(int, orders.index_S6[s]))
            limit, tokens = int(orders.limit_S[s]), self.lengths[index]
            sampled = int(orders.pages.sampled_S[s]) if orders.pages else 0
            self._length_S[s], self._sampled_S[s], self._stage_S[s] = orders.length_S[s], sampled, index[4]
            self._left_S[s], self._ends_S[s] = min(tokens, limit) - sampled, tokens <= limit

    def _record(self, length_NS: np.ndarray, live_NS: np.ndarray, call: PagedCall | None) -> None:
        groups, num_slots = self.settings.num_groups, self.settings.num_slots
        parts = [slice(g * num_slots, (g + 1) * num_slots) for g in range(groups)]
        read_GN, needed_GN = (
            np.stack([of(length_NS[:, part], live_NS[:, part]) for part in parts])
            for of in (self.reads, kv_cache.positions_needed)
        )
        entering, entered_3 = 0, (0, 0, 0)
        if call and call.tokens:
            ends, entered = (
                [[of(part) for part in group] for group in call.parts]
                for of in (lambda part: part.end, lambda part: part.end - part.start)
            )
            read_GN = read_GN + self._read_by_parts(ends, entered, call.tokens)[:, None]
            needed_GN = needed_GN + np.array([sum(group) for group in ends])[:, None]
            every = [part for group in call.parts for part in group]
            of = {stage: [part for part in every if part.text.request.stage == stage] for stage in Stage}
            entering = call.tokens
            entered_3 = tuple(sum(part.end - part.start for part in of[stage]) for stage in Stage)
        read, needed = read_GN.max(0), needed_GN.max(0)
        live_N3 = np.stack([live_NS[:, self._stage_S == stage].sum(-1) for stage in Stage], axis=-1)
        counts = (call.texts if call else groups * num_slots, entering, entered_3, groups, call.rows if call else 0)
        self.calls.append(Tick(read, needed, live_N3, self.waiting() > 0, *counts, ahead=self.in_flight() > 0))

    def _read_by_parts(
        self, ends: Sequence[Sequence[int]], entered: Sequence[Sequence[int]], tokens: int
    ) -> np.ndarray:
        """Returns the positions that the parts of prompts of each data group read, in a call that takes so many."""
        pages = self.settings.pages
        assert pages
        fetched = functools.partial(ragged_attention.positions_fetched_again, page_size=pages.size, tokens=tokens)
        both = zip(ends, entered, strict=True)
        return np.array([fetched(np.array(end, int), np.array(n, int)).sum() for end, n in both])


def reads_of(settings: slots.EngineSettings) -> Reads:
    """Returns how many positions a step reads with an engine's own cache; the first step is that of a call.

    Over pages a text that ends within a call stays in its attention, as one of a single token.
    """
    pages = settings.pages
    if not pages:
        return functools.partial(kv_cache.positions_read, length=settings.length, split=settings.split)

    def read(length_NS: np.ndarray, live_NS: np.ndarray) -> np.ndarray:
        fetched = ragged_attention.positions_fetched(length_NS + 1, page_size=pages.size)
        ended = ragged_attention.positions_fetched(np.array(1), page_size=pages.size)
        return np.where(live_NS, fetched, live_NS[:1] * ended).sum(-1)

    return read


class _Grades:
    """A grader whose grades come when a run's own would, and say nothing: what fails is known beforehand."""

    kind, judge = "simulated", None

    def is_remote(self, kind: str) -> bool:
        return False

    def takes_groups(self, kind: str) -> bool:
        return False

    def submit(self, *_: Any, **__: Any) -> Pending:
        return Pending(lambda: Grade(0.0, None, ""))

    def send(self) -> None:
        pass


def simulate(
    questions: Sequence[Question],
    engines: Mapping[str, Engine],
    params: Mapping[str, Any],
    *,
    writers: Mapping[Stage, str | None] | None = None,
    reads: Reads | None = None,
    apart: bool = False,
) -> dict[str, list[Call]]:
    """Returns the calls that each engine makes in an iteration, in their order.

    Args:
      questions: what is written.
      engines: of a run, by who writes.
      params: their weights, as arrays or as shapes.
      writers: who writes each stage, by default the policy; None for what no engine writes, such as an endpoint, which
        takes no time here.
      reads: positions that a step reads; by default as the engines' cache does.
      apart: as for `ask`.

    Raises:
      UserError: a prompt and its continuation exceed a slot.
    """
    asked = [asked for question in questions for asked in question.all]
    lengths = {tuple(map(int, index_array([index])[0])): n for one in asked for index, n in one.tokens.items()}
    calls: dict[str, list[Call]] = {name: [] for name in engines}
    began: list[Engine] = []
    try:
        for name, engine in engines.items():
            engine.make_running = functools.partial(
                SimulatedSlots,
                lengths=lengths,
                reads=reads,
                calls=calls[name],
                waiting=lambda engine=engine: engine.waiting,
                in_flight=lambda engine=engine: engine.in_flight,
            )
            engine.begin(params[name], seed=0, iteration=0)
            began.append(engine)
        ask(questions, engines, writers=writers, apart=apart)
    finally:
        for engine in began:
            engine.end()
            engine.make_running = RunningPages if engine.pages else RunningSlots
    return calls


def ask(
    questions: Sequence[Question],
    engines: Mapping[str, Engine],
    *,
    writers: Mapping[Stage, str | None] | None = None,
    apart: bool = False,
) -> None:
    """Asks engines at work, real or simulated, for all texts of an iteration, each when a run would.

    Args:
      questions, engines, writers: as for `simulate`.
      apart: each text as a request of its own, whose limit is its length: so a real engine, whose texts end where they
        will, writes texts of the lengths given.
    """
    by = writers or dict.fromkeys(Stage, "policy")
    nothing_to_solve = Problem(0, "", "")

    async def write(one: Asked) -> None:
        if (writer := by[one.stage]) is None:
            return
        if apart:
            await gather([write_one(engines[writer], one.prompt_ids, *text) for text in one.tokens.items()])
        else:
            await orchestrator.write(engines[writer], Request(one.prompt_ids, list(one.tokens), one.max_length))

    async def write_one(engine: Engine, prompt_ids: np.ndarray, index: RowIndex, tokens: int) -> None:
        await orchestrator.write(engine, Request(prompt_ids, [index], tokens))

    async def follow(chain: Chain) -> None:
        for step in chain:
            await gather([write(one) for one in step])

    async def solve(question: Question) -> None:
        await write(question.responses)
        await orchestrator.grade([""] * len(question.responses.tokens), nothing_to_solve)
        for phase in question.phases:
            await gather([follow(chain) for chain in phase])

    Orchestrator(cast(Grader, _Grades())).run([solve(one) for one in questions], engines=list(engines.values()))


def prefilled(calls: Sequence[Call]) -> tuple[int, int]:
    """Returns the positions that prefills compute, padding included, and the tokens of prompts among them."""
    found = [call for call in calls if isinstance(call, slot_writes.Prefill)]
    ticks = [call for call in calls if isinstance(call, Tick)]
    positions = sum(call.positions for call in found) + sum(call.groups * call.entering for call in ticks)
    return positions, sum(call.tokens for call in found) + sum(call.prompt_tokens for call in ticks)


def counts(calls: Sequence[Call]) -> collections.Counter[str]:
    """Returns how often each program is called, by its name."""
    return collections.Counter(map(program_name, calls))


def program_name(call: Call) -> str:
    """Returns the name of the program that a call runs."""
    if isinstance(call, Tick):
        return f"decoding beside {call.entering} tokens of prompts" if call.entering else "decoding"
    if isinstance(call, slot_writes.Copy):
        return f"copy of {call.width} tokens"
    return f"prefill of {call.rows} x {call.width} tokens" + (" after others" if call.continued else "")
