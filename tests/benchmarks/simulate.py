"""Whether a simulated iteration takes as long as a real one, on this machine, with what each program measures here.

    python tests/benchmarks/simulate.py [--shape=tiny] [--pairs=3] [--only=even,uneven,stages] [--json=FILE]

Each program that a simulation calls is run by itself, in turn, and its time taken; then the iteration is simulated with
these, and run on the real engine, its texts as long as in the simulation. The calls of both are the same (checked here
by the engine's totals, call by call in the tests). Target: the simulated seconds are within 10 % of the clock.

    even      prompts and texts of one length each
    uneven    few very long texts
    stages    an iteration of Critique-GRPO, of which 30 % of the questions are critiqued and refined

The host's part, which places texts and reads them, is what the simulation itself takes: it is the same code. Exits with
1 where the target is missed. Measure on a machine that does nothing else.
"""

import argparse
import functools
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from report import progress, row, table
from workloads import WORKLOADS, Workload, lengths

from cgrpo_jax import sharding
from cgrpo_jax.inference import kv_cache, slot_programs, slot_writes, slots, weights
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.running_slots import RunningSlots, Until
from cgrpo_jax.inference.sampling import Sampling, index_array
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.planning import pricing, simulation, workload
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.planning.pricing import DecodeCosts
from cgrpo_jax.planning.workload import Asked, Question
from cgrpo_jax.records import RowIndex, Stage

WITHIN = 0.1
SECONDS = pricing.Rates(hbm=1.0, flops=math.inf, links=math.inf, operation=0.0, dispatch=0.0)  # a "byte" is a second


class MeasuredCosts:
    """Seconds of an engine's programs here, each as the `bytes` of a `Cost`: the median of so many runs."""

    def __init__(self, engine: Engine, params: dict, runs: int):
        self.settings, self.runs = engine.settings(params), runs
        self.running = RunningSlots(
            params, self.settings, widths=engine.widths, seed=0, iteration=0, sampling=(Sampling(),)
        )

    def _seconds(self, call: Callable[[], None]) -> float:
        call()  # compiled, and in the processor's memory
        found = []
        for _ in range(self.runs):
            jax.block_until_ready(self.running.slots)
            began = time.monotonic()
            call()
            jax.block_until_ready(self.running.slots)
            found.append(time.monotonic() - began)
        return statistics.median(found)

    @functools.cache  # noqa: B019 - lives as long as the benchmark
    def _prefill(self, rows: int, width: int, continued: bool) -> float:
        program = slot_programs.prefill_program(self.settings, rows=rows, width=width, continued=continued)
        _, length, _, slot, number = inputs = program.zeros()
        length[:], slot[:], number[:] = width, np.arange(rows) % self.settings.num_slots, rows

        def call() -> None:
            self.running.slots = program(self.running.params, self.running.slots, *inputs)

        return self._seconds(call)

    @functools.cache  # noqa: B019
    def _copy(self, width: int, number: int) -> float:
        program = slot_programs.share_program(self.settings, width=width)
        _, target, count = inputs = program.zeros()
        target[:], count[:] = np.arange(len(target)), number

        def call() -> None:
            self.running.slots = program(self.running.slots, *inputs)

        return self._seconds(call)

    def _tick(self, steps: int, held: int) -> float:
        S = self.settings.num_slots
        every, full = np.ones(S, bool), lambda value: np.full(S, value, np.int32)
        index_S6 = index_array([RowIndex(question=s) for s in range(S)])
        orders = slots.Orders(every, ~every, every, full(1), full(held), full(steps), index_S6)
        return self._seconds(lambda: void(self.running.tick(orders, Until(S + 1, S + 1))))

    @functools.cached_property
    def decode(self) -> DecodeCosts:
        read, chunk = kv_cache.read_at_once(split=self.settings.split), self.settings.chunk
        steps = min(chunk, self.settings.length - 2)
        one, many = self._tick(1, 1), self._tick(steps, 1)
        step = (many - one) / (steps - 1)
        position = 0.0
        if kv_cache.cache_length(self.settings.length, split=self.settings.split) > read:
            position = (self._tick(1, read + 1) - one) / (read * self.settings.num_slots)
            step -= position * read * self.settings.num_slots
        around = one - (many - one) / (steps - 1)
        return DecodeCosts(Cost(bytes=around), Cost(bytes=step), Cost(bytes=position))

    def prefill(self, call: slot_writes.Prefill) -> Cost:
        return Cost(bytes=self._prefill(call.rows, call.width, call.continued))

    def copy(self, call: slot_writes.Copy) -> Cost:
        return Cost(bytes=self._copy(call.width, max(map(len, call.groups))))


def void(_: object) -> None:
    """Takes what nothing reads."""


def iterations(work: Workload) -> dict[str, list[Question]]:
    """Returns the three iterations."""
    rng = np.random.default_rng(0)
    vocab, most = work.config.vocab_size, work.longest

    def responses(question: int, tokens: Sequence[int]) -> Question:
        prompt = rng.integers(0, vocab, work.prompt, dtype=np.int32)
        return Question(Asked(prompt, {RowIndex(question, n): int(one) for n, one in enumerate(tokens)}, most))

    even = [responses(q, [work.new] * work.samples) for q in range(2 * work.num_slots // work.samples)]
    drawn = np.reshape(lengths(work, seed=3), (-1, work.samples))
    uneven = [responses(q, tokens) for q, tokens in enumerate(drawn)]
    shape = workload.Shape(
        num_questions=work.questions,
        num_responses=work.responses,
        num_critiques=1,
        num_refinements=1,
        critiques_all=False,
        max_prompt=dict.fromkeys(Stage, work.prompt + 2 * most + 256),
        max_length=dict.fromkeys(Stage, most),
    )
    prompts, texts = f"fixed({work.prompt})", f"uniform(min={work.usual[0]}, max={most})"
    draws = {"prompts": prompts, "texts": texts, "critiques": f"uniform(min=1, max={work.critique})"}
    drawn_stages = workload.drawn(
        shape, **{name: workload.parse(text) for name, text in draws.items()}, failed=0.3, seed=0
    )
    return {"even": even, "uneven": uneven, "stages": drawn_stages}


def compare(name: str, questions: Sequence[Question], work: Workload, params: dict, pairs: int) -> list[dict]:
    """Returns the rows of one iteration: simulated seconds, the clock's, and how far they are apart."""
    asked = [one for question in questions for one in question.all]
    longest = max(len(one.prompt_ids) for one in asked)
    room = max(len(one.prompt_ids) + max(one.tokens.values()) for one in asked)
    engine = Engine(
        work.config, eos_ids=(), num_slots=work.num_slots, length=room, longest_prompt=longest,
        prompt_bucket=work.prompt, mesh=sharding.one_device(),
    )  # fmt: skip
    progress(f"{name}: compiling")
    engine.compile(params, [Sampling()])
    simulated, clock = [], []
    for pair in range(pairs):
        began = time.monotonic()
        calls = simulation.simulate(questions, {"policy": engine}, {"policy": params}, apart=True)
        host, expected = time.monotonic() - began, engine.take_stats()
        costs = MeasuredCosts(engine, params, runs=3)
        simulated.append(host + pricing.generation(calls, {"policy": costs}, SECONDS).seconds)
        engine.begin(params, seed=0, iteration=0)
        began = time.monotonic()
        simulation.ask(questions, {"policy": engine}, apart=True)
        clock.append(time.monotonic() - began)
        engine.end()
        stats = engine.take_stats()
        totals = [(s.tokens, s.slot_steps, s.prefills, s.prompt_tokens, s.shared_tokens) for s in (expected, stats)]
        if totals[0] != totals[1]:
            sys.exit(f"{name}: the real engine did {totals[1]}, the simulated one {totals[0]}.")
        progress(f"{name}: {pair + 1} of {pairs}, simulated {simulated[-1]:.2f} s, {clock[-1]:.2f} s by the clock")
    apart = [abs(one / other - 1) for one, other in zip(simulated, clock, strict=True)]
    what = f"{len(questions)} questions, {sum(len(one.tokens) for one in asked)} texts, {work.num_slots} slots"
    return [
        row(f"simulate/{name}/simulated", simulated, what, unit="s"),
        row(f"simulate/{name}/clock", clock, what, unit="s"),
        row(f"simulate/{name}/apart", apart, f"{what}; share", target=WITHIN, most=True),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(WORKLOADS), default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="even,uneven,stages")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args(arguments)
    work, mesh = WORKLOADS[given.shape], sharding.one_device()
    params = weights.split_if_needed(params_lib.init_params(work.config, seed=0), config=work.config, mesh=mesh)
    found = []
    for name, questions in iterations(work).items():
        if name in given.only.split(","):
            found += compare(name, questions, work, params, given.pairs)
            if given.json:  # what was measured is kept, whatever comes next
                given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return int(any(one["met"] is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
