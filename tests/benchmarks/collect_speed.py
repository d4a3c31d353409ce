"""Does `cgrpo collect` write as fast as its engine does alone?

    python tests/benchmarks/collect_speed.py [--json=FILE] [--pairs=3] [--shape=tiny]

Random float32 weights of SmolLM2-135M's shape, one device, one process. The command's own `main` collects: responses to
made-up questions, a critique of each by the policy, a refinement after each, graded in worker processes and written to
files. A share of the vocabulary ends a text, so lengths are uneven. All that it asks its engine for is noted, with the
tick that each request came before; the engine is then asked for the same without what stands around it, in the same
order at the same ticks, and so computes the same. A pair is one of each, in turn first. What compiles, loads and sums
up is in neither: a collection's seconds are those of `collection.collect_on_disk`, in which grading workers start too.

    collect          tokens that it samples in a second
    collect/engine   its rate, as a share of that of the engine alone
    collect/outside  share of its seconds that pass outside the engine's steps; 3 % at most
    collect/queue    its rate against the engine's that is given all requests of all files at once, which no collection
                     can be, since a critique follows its response: the price of the order, and of a file's last texts
    collect/step     seconds of a step

Expected, before it was first run at full size: outside of steps (texts to tokens and back, prompts, grades) 1 ms a
text of about 50 tokens that cost 100 ms in the engine, so 0.99 of its rate; grading workers and files take some of the
processor's time besides.

It takes about half an hour on two cores. Exits with 1 where a target is missed, or programs were compiled while it
was measured.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import made_model
import numpy as np
from report import progress, row, table
from workloads import COLLECTIONS, OF_ENGINE, CollectWorkload

from cgrpo_jax import collect
from cgrpo_jax.evaluation import collection
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.runs import base
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runtime import processes


@dataclasses.dataclass
class Part:
    """What an engine was asked for until its `end`: the arguments of `begin`, and the requests before each step."""

    arguments: dict[str, Any]
    steps: list[list[Request]] = dataclasses.field(default_factory=lambda: [[]])


@dataclasses.dataclass
class Measured:
    """Of a collection, or of the engine alone: seconds, those in steps, steps, tokens, programs that were compiled."""

    seconds: float = 0.0
    stepping: float = 0.0
    steps: int = 0
    tokens: int = 0
    compiled: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Notes:
    """What is noted of the engine while a collection runs.

    Attributes:
      engine: the one that was at work last.
      parts: what it was asked for, file by file.
      measured: what it took.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.parts: list[Part] = []
        self.measured = Measured()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Notes what happens in the block."""
        notes, plain = self, (Engine.begin, Engine.add, Engine.step, collection.collect_on_disk)
        begin, add, step, collect_on_disk = plain

        def noted_begin(engine, params, **arguments):
            notes.engine = engine
            notes.parts.append(Part({"params": params, **arguments}))
            begin(engine, params, **arguments)

        def noted_add(engine, request):
            notes.parts[-1].steps[-1].append(request)
            add(engine, request)

        def noted_step(engine):
            began, before = time.monotonic(), engine.stats.tokens
            found = step(engine)
            notes.measured.stepping += time.monotonic() - began
            notes.measured.tokens += engine.stats.tokens - before
            notes.measured.steps += 1
            notes.parts[-1].steps.append([])
            return found

        def timed(*args, **keywords):
            began, compiled = time.monotonic(), processes.compilations()
            collect_on_disk(*args, **keywords)
            notes.measured.seconds = time.monotonic() - began
            notes.measured.compiled = processes.compilations() - compiled

        Engine.begin, Engine.add, Engine.step, collection.collect_on_disk = noted_begin, noted_add, noted_step, timed
        try:
            yield
        finally:
            Engine.begin, Engine.add, Engine.step, collection.collect_on_disk = plain


def config_of(work: CollectWorkload, folder: pathlib.Path) -> Config:
    """Returns the configuration of a collection, whose model and questions are written to a folder."""
    longest = work.prompts[-1] + work.response
    model = made_model.write_model(folder / "model", work.config, max_context=longest, end_share=work.end_share)
    rng = np.random.default_rng(0)
    asked = [made_model.text(rng, int(rng.integers(*work.words, endpoint=True))) for _ in range(work.questions)]
    rows = [{"question": one, "answer": str(number)} for number, one in enumerate(asked)]
    response, critique, refinement = work.prompts
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "model.folder": str(model),
            "data.train": str(made_model.write_lines(folder / "questions.jsonl", rows)),
            "grader.kind": "numeric",
            "num_responses": work.responses,
            "max_prompt_length": response,
            "max_response_length": work.response,
            "critic.max_prompt_length": critique,
            "critic.max_length": work.critique,
            "refine.max_prompt_length": refinement,
            "engine.num_slots": work.num_slots,
            "engine.prompt_bucket": work.prompt_bucket,
            "collect.num_critiques": work.critiques,
            "collect.num_refinements": work.refinements,
            "collect.questions_per_file": work.per_file,
        }
    )
    return config_lib.freeze(c)


def collect_once(config: Config, out: pathlib.Path) -> Notes:
    """Collects into a new folder, and returns what was noted."""
    notes = Notes()
    with notes.taken(), contextlib.redirect_stdout(io.StringIO()):
        collect.main(config, str(out / "run"), out=str(out / "collected"))
    return notes


def ask(engine: Engine, parts: Sequence[Part]) -> Measured:
    """Asks an engine for the same at the same ticks, and returns what that took."""
    found, compiled = Measured(), processes.compilations()
    began = time.monotonic()
    for part in parts:
        engine.begin(**part.arguments)
        engine.take_stats()
        for requests in part.steps:
            for request in requests:
                engine.add(request)
            if engine.busy:
                engine.step()
                found.steps += 1
        while engine.busy:
            engine.step()
            found.steps += 1
        engine.end()
        stats = engine.take_stats()
        found.tokens += stats.tokens
        found.stepping += stats.seconds
    found.seconds = time.monotonic() - began
    found.compiled = processes.compilations() - compiled
    return found


def at_once(parts: Sequence[Part]) -> list[Part]:
    """Returns all requests of all parts as those of one, before its first step."""
    return [Part(parts[0].arguments, [[request for part in parts for step in part.steps for request in step]])]


def measure(work: CollectWorkload, folder: pathlib.Path, *, pairs: int) -> list[dict]:
    """Returns the rows of the report.

    Raises:
      SystemExit: the engine alone computes something else, or a program was compiled meanwhile.
    """
    config = config_of(work, folder)
    progress("collecting once, which compiles")
    first = collect_once(config, folder / "first")
    engine, parts = first.engine, first.parts
    assert engine is not None, "a collection has an engine"
    queue = at_once(parts)
    ask(engine, queue)  # whose prompts may enter in other numbers at once
    collected, alone, queued = [], [], []
    for pair in range(pairs):
        for what in ("collect", "engine")[:: 1 if pair % 2 == 0 else -1]:
            if what == "collect":
                collected.append(collect_once(config, folder / f"pair{pair}").measured)
            else:
                alone.append(ask(engine, parts))
        queued.append(ask(engine, queue))
        rates = ", ".join(f"{one[-1].rate:.1f}" for one in (collected, alone, queued))
        progress(f"{pair + 1} of {pairs}: {rates} tok/s")
    _check(collected, alone, queued)
    return rows_of(work, collected, alone, queued)


def _check(collected: Sequence[Measured], alone: Sequence[Measured], queued: Sequence[Measured]) -> None:
    """Ends the program where the two have not computed the same, or one has compiled."""
    whole = {(one.tokens, one.steps) for one in (*collected, *alone)}
    if len(whole) > 1:
        sys.exit(f"a collection and its engine alone differ in tokens and steps: {sorted(whole)}")
    if compiled := sum(one.compiled for one in (*collected, *alone, *queued)):
        sys.exit(f"{compiled} programs were compiled while it was measured")


def rows_of(
    work: CollectWorkload, collected: Sequence[Measured], alone: Sequence[Measured], queued: Sequence[Measured]
) -> list[dict]:
    """Returns the rows of the report on what was measured, pair by pair."""
    asked = f"{work.questions} questions x {work.responses}, {work.critiques} critiques, {work.refinements} refinements"
    what = f"{asked}; {collected[0].tokens} tokens, {work.num_slots} slots, {work.per_file} questions a file"
    ratios, orders = (
        [ours.rate / theirs.rate for ours, theirs in zip(collected, others, strict=True)] for others in (alone, queued)
    )
    outside = [1 - one.stepping / one.seconds for one in collected]
    step = [one.stepping / one.steps for one in collected]
    return [
        row("collect", [one.rate for one in collected], what, unit="tok/s"),
        row("collect/engine", ratios, "of the engine's rate at the same requests and ticks", target=OF_ENGINE),
        row("collect/outside", outside, "of the seconds, outside of steps", target=1 - OF_ENGINE, most=True),
        row("collect/queue", orders, "of the engine's rate with all requests at once"),
        row("collect/step", step, f"{collected[0].steps} steps", unit="s"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--shape", choices=tuple(COLLECTIONS), default="smollm2-135m")
    given = parser.parse_args(arguments)
    processes.start()  # as the command does; compilations are counted from here
    with tempfile.TemporaryDirectory() as folder:
        found = measure(COLLECTIONS[given.shape], pathlib.Path(folder), pairs=given.pairs)
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(one["met"] is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
