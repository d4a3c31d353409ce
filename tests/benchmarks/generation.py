"""How fast the generation engine samples, against other programs and against what the machine and the lengths permit.

    python tests/benchmarks/generation.py [--json=FILE] [--peer='NAME=COMMAND' ...] [--only=NAME,...]
                                          [--pairs=3] [--shape=tiny]

Random float32 weights of SmolLM2-135M's shape, one device. Each number is the median of `--pairs` measurements, with
the least and the greatest; what is compared is measured in turn, so a ratio is that of neighbours in time.

    throughput   prompts of 64 tokens, 64 new ones each, no early stop: 4 x 4 rows, and 16 x 4
    uneven       512 texts of very uneven lengths through 64 slots: against the same engine that is given the next 64
                 only when all of the last have ended (a plain batch), against what list scheduling of these lengths
                 permits, and the share of slot-steps that sampled a token while texts waited
    stages       an iteration of Critique-GRPO (stages.py): its stages in a pipeline against a barrier after each, and
                 against as many tokens of plain GRPO and the prompts that come to it
    machine      a decoding step against its matrix products alone, its parts, and prefill

`--only` takes beginnings of the rows' names, such as `throughput` or `uneven/distinct,machine/64`.

A peer's COMMAND is a shell command, run again for each pair in an environment of its own. In it {rows}, {prompts},
{generations}, {prompt_len}, {new_tokens} and {json} are filled in. It reports the tokens it generates in a second:
as `gen_tok_s` in the JSON file, at any depth of its objects, or as `tok_s` in a JSON object on its last line. The
peers that targets are set for are `trl` and `tunix`. On uneven lengths a peer generates one batch of as many rows as
there are slots, all as long as the longest; what it would take for all batches follows from that.

It takes an hour with two peers on two cores. Exits with 1 where a target is missed.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import stages
from report import peer_speed, progress, row, table
from workloads import (
    OCCUPANCY,
    OF_MACHINE,
    OF_PERMITTED,
    TARGETS,
    UNEVEN_TARGETS,
    WORKLOADS,
    Workload,
    lengths,
    permitted_gain,
)

from cgrpo_jax import sharding
from cgrpo_jax.inference import decoding, kv_cache, sampling, slots, weights
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.running_slots import Until
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models import transformer
from cgrpo_jax.records import RowIndex


@dataclasses.dataclass
class Bench:
    """The model on its device, and how it is measured.

    Attributes:
      work, params: what is generated, with which weights.
      mesh: of one device.
      pairs: measurements of each number.
      peers: name to command.
      wanted: whether rows whose names begin so are asked for.
    """

    work: Workload
    params: dict
    mesh: jax.sharding.Mesh
    pairs: int
    peers: dict[str, str]
    wanted: Callable[[str], bool]

    def engine(self, num_slots: int, new: int, *, prompt: int = 0) -> Engine:
        prompt = prompt or self.work.prompt
        return Engine(
            self.work.config,
            eos_ids=(),
            num_slots=num_slots,
            length=prompt + new,
            longest_prompt=prompt,
            prompt_bucket=self.work.prompt,
            mesh=self.mesh,
        )

    def settings(self, num_slots: int, new: int, chunk: int = 64) -> slots.EngineSettings:
        """Returns what the programs of `engine` are compiled for, to call them alone."""
        length, split = self.work.prompt + new, weights.splits(self.mesh)
        return slots.EngineSettings(self.work.config, self.mesh, (), num_slots, length, chunk, "float32", split)

    def prompts(self, number: int) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return list(rng.integers(0, self.work.config.vocab_size, (number, self.work.prompt), dtype=np.int32))


def throughput(bench: Bench) -> Iterator[dict]:
    """Rows that all end together."""
    work = bench.work
    for (questions, samples), targets in zip(work.batches, TARGETS, strict=True):
        rows = questions * samples
        name, what = f"throughput/{rows}", f"{questions} x {samples} rows, {work.prompt} + {work.new} tokens"
        if not bench.wanted(name):
            continue
        engine, prompts = bench.engine(rows, work.new), bench.prompts(questions)
        indices = [[RowIndex(question=q, response=n) for n in range(samples)] for q in range(questions)]

        def ours(engine=engine, prompts=prompts, indices=indices, rows=rows) -> float:
            began = time.monotonic()
            engine.generate(bench.params, prompts, indices, seed=0, iteration=0, max_length=work.new)
            return rows * work.new / (time.monotonic() - began)

        progress(f"{name}: compiling")
        ours()
        peers = {peer: command for peer, command in bench.peers.items() if bench.wanted(f"{name}/{peer}")}
        speeds, ratios = [], {peer: [] for peer in peers}
        sizes = dict(prompts=questions, generations=samples, prompt_len=work.prompt, new_tokens=work.new)
        for pair in range(bench.pairs):
            speeds.append(ours())
            progress(f"{name}: {pair + 1} of {bench.pairs}, {speeds[-1]:.1f} tok/s")
            for peer, command in peers.items():
                ratios[peer].append(speeds[-1] / peer_speed(peer, command, **sizes))
        yield row(name, speeds, what, unit="tok/s")
        for peer, values in ratios.items():
            yield row(f"{name}/{peer}", values, f"{what}, against {peer}", target=targets.get(peer))


def uneven(bench: Bench) -> Iterator[dict]:
    """Texts of very uneven lengths."""
    # A long text that comes among the last costs all schedules alike; of 200 seeds, this one permits the median gain.
    work, drawn = bench.work, lengths(bench.work, seed=3)
    for variant, samples in (("distinct", 1), ("shared", work.samples)):
        name = f"uneven/{variant}"
        if not bench.wanted(name):
            continue
        prompts = bench.prompts(work.texts // samples)
        requests = [  # one a text, since each has its own length
            Request(prompts[i // samples], [RowIndex(question=i // samples, response=i % samples)], length)
            for i, length in enumerate(drawn)
        ]
        engine, settings = bench.engine(work.num_slots, work.longest), bench.settings(work.num_slots, work.longest)
        progress(f"{name}: compiling")
        short = [dataclasses.replace(one, max_length=1) for one in requests]
        run(engine, bench.params, [short[: work.num_slots], short[-1:]])  # many prompts at once, and one
        step_of_all, prefill_of_four = step_timer(bench, settings), prefill_timer(bench, settings, 4)
        found = {key: [] for key in ("", "/gain", "/permitted", "/of-permitted", "/occupancy")}
        # A peer generates distinct prompts.
        peers = {peer: command for peer, command in bench.peers.items() if samples == 1}
        peers = {peer: command for peer, command in peers.items() if bench.wanted(f"{name}/{peer}")}
        ratios = {peer: [] for peer in peers}
        for pair in range(bench.pairs):
            step, prefill = step_of_all(), prefill_of_four() / 4
            stats = run(engine, bench.params, [requests])
            batches = [requests[i : i + work.num_slots] for i in range(0, len(requests), work.num_slots)]
            plain = run(engine, bench.params, batches)
            gain = plain.seconds / stats.seconds
            permitted = permitted_gain(
                drawn, work.num_slots, step_seconds=step, prefill_seconds=prefill, prefills=len(prompts)
            )
            speed = sum(drawn) / stats.seconds
            for key, value in zip(found, (speed, gain, permitted, gain / permitted, stats.occupancy), strict=True):
                found[key].append(value)
            progress(
                f"{name}: {pair + 1} of {bench.pairs}, {stats.seconds:.2f} s with {stats.prefills} prefills, "
                f"in batches {plain.seconds:.2f} s with {plain.prefills}; a step {step:.4f} s, a prefill {prefill:.4f}"
            )
            for peer, command in peers.items():
                questions, each = work.batches[-1]  # as many rows as slots
                sizes = dict(prompts=questions, generations=each, prompt_len=work.prompt, new_tokens=work.longest)
                padded = peer_speed(peer, command, **sizes)
                useful = sum(drawn) / (len(batches) * work.num_slots * work.longest)
                ratios[peer].append(speed / (padded * useful))
        what = f"{work.texts} texts of {work.usual[0]} to {work.usual[1]} tokens, {work.long_share:.0%} of "
        what += f"{work.longest}; {len(prompts)} prompts, {work.num_slots} slots"
        yield row(name, found[""], what, unit="tok/s")
        yield row(f"{name}/gain", found["/gain"], f"{what}; against batches")
        yield row(f"{name}/permitted", found["/permitted"], f"{what}; gain that list scheduling permits")
        yield row(f"{name}/of-permitted", found["/of-permitted"], f"{what}; gain / permitted", target=OF_PERMITTED)
        yield row(f"{name}/occupancy", found["/occupancy"], f"{what}; while texts wait", target=OCCUPANCY)
        for peer, values in ratios.items():
            yield row(f"{name}/{peer}", values, f"{what}; against {peer}", target=UNEVEN_TARGETS.get(peer))


def in_stages(bench: Bench) -> Iterator[dict]:
    """An iteration of Critique-GRPO."""
    work = bench.work
    if not bench.wanted("stages"):
        return
    drawn = lengths(dataclasses.replace(work, texts=work.questions * work.responses), seed=0)
    one = stages.draw(
        drawn, questions=work.questions, prompt=work.prompt, critique=work.critique, vocab=work.config.vocab_size
    )
    new = int(one.lengths_QN.max())
    engine = bench.engine(work.num_slots, new, prompt=one.longest_prompt)
    small = bench.engine(work.num_slots, new)  # as plain GRPO would have it, which needs no room for long prompts
    progress("stages: compiling")
    for each in (engine, small):
        each.compile(bench.params, [sampling.Sampling()])
    found = {key: [] for key in ("", "/of-plain", "/of-barrier", "/raw", "/raw-small", "/occupancy")}
    for pair in range(bench.pairs):
        plain, piped, walled = (
            way(one, engine, bench.params) for way in (stages.plain, stages.pipelined, stages.barrier)
        )
        alone = stages.plain(one, small, bench.params)
        # The prompts that come to it, at the rate at which the engine prefills such prompts one at a time.
        extra = piped.prompt_tokens - plain.prompt_tokens
        rate = prefill_rate(bench, engine, one.longest_prompt // 2)
        expected = plain.seconds * piped.tokens / plain.tokens + extra / rate
        values = (piped.tokens / piped.seconds, piped.seconds / expected, piped.seconds / walled.seconds,
                  piped.seconds / plain.seconds, piped.seconds / alone.seconds, piped.occupancy)  # fmt: skip
        for key, value in zip(found, values, strict=True):
            found[key].append(value)
        progress(
            f"stages: {pair + 1} of {bench.pairs}, pipelined {piped.seconds:.2f} s (expected {expected:.2f}), barriers "
            f"{walled.seconds:.2f}, plain {plain.seconds:.2f}, {extra} prompt tokens more at {rate:.0f} a second"
        )
    what = f"{work.questions} questions x {work.responses}, 30% all failed, {sum(one.tokens.values())} tokens, "
    what += f"{work.num_slots} slots"
    yield row("stages", found[""], f"{what}; pipelined", unit="tok/s")
    yield row("stages/of-plain", found["/of-plain"], f"{what}; time / as much plain GRPO", target=1.07, most=True)
    yield row("stages/of-barrier", found["/of-barrier"], f"{what}; time / with barriers", target=0.8, most=True)
    listed = [stages.listed_steps(one, work.num_slots, barriers=barriers) for barriers in (False, True)]
    yield row(
        "stages/listed-of-barrier",
        [listed[0] / listed[1]],
        f"{what}; steps of list scheduling, {listed[0]} / {listed[1]}",
    )
    yield row("stages/raw", found["/raw"], f"{what}; time / plain GRPO of the responses, same slots")
    yield row("stages/raw-small", found["/raw-small"], f"{what}; time / plain GRPO in slots of its own size")
    yield row("stages/occupancy", found["/occupancy"], f"{what}; while texts wait", target=OCCUPANCY)


def prefill_rate(bench: Bench, engine: Engine, length: int) -> float:
    """Returns the tokens a second at which an engine prefills prompts of a length, one at a time."""
    prompts = np.random.default_rng(1).integers(0, bench.work.config.vocab_size, (8, length), dtype=np.int32)

    def seconds(width: int) -> float:  # one after the other, a token each
        batches = [[Request(prompt[:width], [RowIndex(question=i)], 1)] for i, prompt in enumerate(prompts)]
        return run(engine, bench.params, batches).seconds

    return len(prompts) * (length - 1) / (seconds(length) - seconds(1))


def run(engine: Engine, params: dict, batches: Sequence[Sequence[Request]]):
    """Generates the batches one after another, and returns the engine's `Stats`."""
    engine.begin(params, seed=0, iteration=0)
    engine.take_stats()
    for batch in batches:
        for request in batch:
            engine.add(request)
        while engine.busy:
            engine.step()
    engine.end()
    return engine.take_stats()


def machine(bench: Bench) -> Iterator[dict]:
    """A step and its parts against its matrix products, and prefill."""
    work = bench.work
    for questions, samples in work.batches:
        name, S = f"machine/{questions * samples}", questions * samples
        if not bench.wanted(name):
            continue
        settings, what = bench.settings(S, work.new), f"{S} rows, {work.prompt} + {work.new} tokens"
        progress(f"{name}: compiling")
        step, parts = step_timer(bench, settings), part_timers(bench, settings)
        steps, found = [], {key: [] for key in parts}
        for pair in range(2 * bench.pairs):
            for key, measure in parts.items():  # the products last, right before the step
                found[key].append(measure())
            steps.append(step())
            progress(f"{name}: {pair + 1} of {2 * bench.pairs}, a step {steps[-1]:.4f} s")
        shares = [products / step for products, step in zip(found["products"], steps, strict=True)]
        yield row(f"{name}/share", shares, f"{what}; matrix products alone / a step", target=OF_MACHINE)
        yield row(f"{name}/step", [1e3 * s for s in steps], f"{what}; a decoding step", unit="ms")
        for key, values in found.items():
            yield row(f"{name}/{key}", [1e3 * s for s in values], f"{what}; {key} of a step, alone", unit="ms")
    for number in (1, 4):
        if bench.wanted(f"machine/prefill/{number}"):
            settings = bench.settings(work.num_slots, work.longest)
            measure = prefill_timer(bench, settings, number)
            seconds = [measure() for _ in range(bench.pairs)]
            speeds, what = [number * work.prompt / s for s in seconds], f"{number} prompts of {work.prompt} at once"
            yield row(f"machine/prefill/{number}", speeds, what, unit="tok/s")


def timer(call: Callable, state, *, calls: int = 1) -> Callable[[], float]:
    """Returns what measures the seconds of a call `state -> state`, of so many at a time, from where it was left."""

    def measure() -> float:
        nonlocal state
        began = time.monotonic()
        for _ in range(calls):
            state = jax.block_until_ready(call(state))
        return (time.monotonic() - began) / calls

    measure()  # compiles
    return measure


def step_timer(bench: Bench, settings: slots.EngineSettings) -> Callable[[], float]:
    """Returns what measures the seconds of a decoding step, over a tick with a live text in every slot."""
    S, new = settings.num_slots, min(bench.work.new, settings.chunk)
    every, full = np.ones(S, bool), lambda value: np.full(S, value, np.int32)
    index_S6 = sampling.index_array([RowIndex(question=s) for s in range(S)])
    orders = slots.Orders(every, ~every, every, full(1), full(bench.work.prompt - 1), full(new), index_S6)
    rest = (orders, np.uint32(0), np.uint32(0), np.array(Until(S, S), np.int32))

    def call(state):
        return slots.tick(bench.params, state[0], *rest, settings=settings, sampling=sampling.Sampling())

    tick = timer(call, (slots.empty(settings), None))
    return lambda: tick() / new


def prefill_timer(bench: Bench, settings: slots.EngineSettings, number: int) -> Callable[[], float]:
    """Returns what measures the seconds in which so many prompts are prefilled at once."""
    zeros, last = np.zeros(number, np.int32), bench.work.prompt - 1
    arrays = np.stack(bench.prompts(number)), zeros + last, zeros, np.arange(number, dtype=np.int32), np.int32([number])

    def call(state):
        return slots.prefill(bench.params, state, *arrays, settings=settings, continued=False)

    return timer(call, slots.empty(settings), calls=8)


def part_timers(bench: Bench, settings: slots.EngineSettings) -> dict[str, Callable[[], float]]:
    """Returns what measures the seconds of a step's layers, unembedding and sampling, and of its matrix products."""
    params, config, S = bench.params, settings.config, settings.num_slots
    layers = params["layers"] if settings.split else kv_cache.split_layers(params)["layers"]
    hidden_SD = jnp.asarray(np.random.default_rng(0).standard_normal((S, config.embed_dim), np.float32))
    place_S, live_S = np.full(S, bench.work.prompt, np.int32), np.ones(S, bool)

    def products(layers, embedding_VD, x_SD):
        """As a step multiplies them; each is a result or leads to one, so that none is left out."""
        x, out = x_SD[:, None], []
        for p in layers:
            q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[name]) for name in "qkv")
            x = x + jnp.einsum("bshk,hkd->bsd", q, p["o"])
            gate, up = (jnp.einsum("bsd,df->bsf", x, p[name]) for name in ("gate", "up"))
            x = x + jnp.einsum("bsf,fd->bsd", gate, p["down"])
            out += [k, v, up]
        return jnp.einsum("...d,vd->...v", x[:, 0], embedding_VD), out

    # The results take the buffers of the last ones: new memory would cost time.
    multiply = jax.jit(lambda _, *given: products(*given), donate_argnums=0, keep_unused=True)
    unembed = jax.jit(
        lambda _, *given: transformer.logits(*given), static_argnums=2, donate_argnums=0, keep_unused=True
    )
    given = layers, transformer.unembedding(params, config), hidden_SD
    advance = jax.jit(decoding.step, static_argnums=1, donate_argnums=2)
    draw = jax.jit(sampling.sample)
    logits_SV, keys_S = transformer.logits(params, config, hidden_SD), jax.random.split(jax.random.key(0), S)
    return {
        "layers": timer(
            lambda out: advance(params, config, out[1], np.ones_like(place_S), place_S, live_S),
            (None, slots.empty(settings).cache),
            calls=16,
        ),
        "unembedding": timer(lambda out: unembed(out, params, config, hidden_SD), jnp.copy(logits_SV), calls=16),
        "sampling": timer(lambda _: draw(logits_SV, keys_S), None, calls=16),
        "products": timer(lambda out: multiply(out, *given), jax.jit(products)(*given), calls=bench.work.new),
    }


# Each yields its rows under its own name.
SECTIONS = {"throughput": throughput, "uneven": uneven, "stages": in_stages, "machine": machine}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--only", default="", metavar="NAME,...")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--shape", choices=tuple(WORKLOADS), default="smollm2-135m")
    given = parser.parse_args(arguments)
    only = given.only.split(",")
    work, mesh = WORKLOADS[given.shape], sharding.one_device()
    params = weights.split_if_needed(params_lib.init_params(work.config, seed=0), config=work.config, mesh=mesh)
    peers = dict(peer.partition("=")[::2] for peer in given.peer)

    def wanted(name: str) -> bool:
        return any(name.startswith(one) or one.startswith(f"{name}/") for one in only)

    bench = Bench(work, params, mesh, given.pairs, peers, wanted)
    found = []
    for name, section in SECTIONS.items():
        if wanted(name):
            found += [one for one in section(bench) if any(one["name"].startswith(name) for name in only)]
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(one["met"] is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
