"""How fast `cgrpo finetune` learns chats, against TRL's SFTTrainer on the same model, chats and cores.

    python tests/benchmarks/finetune_speed.py [--json=FILE] [--pairs=3] [--threads=2] [--remat=none] [--pack=1,512]
        [--modes=padded,grouped,packed] [--peer='NAME=COMMAND' ...] [--shape=tiny]

A Hugging Face folder of SmolLM2-135M's shape with random float32 weights is written, and chats of made-up words whose
lengths are about those of GSM8K. Each program learns them in a process of its own, on the first `--threads` processors:
as many tokens an update, AdamW, float32, no activation computed twice. All are run in turn, a ratio is that of
neighbours in time. What is measured is one pass over all chats, after two updates that warm up; loading and compiling
are in none.

    finetune          tokens of prompts and targets, without padding, that are learnt in a second (finetune_steps.py)
    finetune/PEER     the same over a peer's
    finetune/fill     share of our packed positions that hold a token
    finetune/memory   GiB that the process held at most
    loss/PEER         difference of the losses before the first update, relative: whether both compute the same

A peer's COMMAND is a shell command; {model}, {rows}, {json}, {per_update}, {packed}, {pack}, {warmup}, {updates} and
{threads} are filled in. It writes a JSON object with `seconds`, `updates`, `tokens`, `targets`, `positions`, `loss` and
`peak_gib`. By default the peers are the modes of sft_trainer.py, run by this Python, which needs TRL.
A peer that fails is a row that says so, and is not asked again. With --json all is written after every program.

Expected, before it was first run at full size, of a token of this shape, 60 % of which are targets: 0.64 GFLOP in the
layers forward and backward, and 0.23 GFLOP a target in the output layer, whose logits both programs compute again in
the backward pass: 0.77 GFLOP of matrix products. Ours computes 1.00: a pack of 512 is 87 % full, attention within it
takes 0.10, and the output layer computes 1.26 rows a target. `grouped` computes 0.87
(padding 5 %), `padded` 1.3 (padding 65 %), `packed` 1.6, since its attention goes over the whole row. If all reached
the same share of the processor the ratios would be 0.87, 1.3 and 1.6. On the processor of configs/results/README.md the
update reached 169 GFLOP/s, and TRL, in what a GRPO step left after generation, about 55: times 3.1 that gives 2.7, 4.0
and 5.0.

It takes half an hour a pair on two cores, a third of that with --modes=grouped. Exits with 1 where a target is missed.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import made_model
import numpy as np
from report import missing, progress, row, table
from workloads import FINETUNE_TARGET, FINETUNES, SAME_LOSS, FinetuneWorkload

_HERE = pathlib.Path(__file__).parent
_OURS = "finetune"
_MOST_SECONDS = 3600.0  # that a program may take
_ARGUMENTS = (
    "--json={json} --model={model} --rows={rows} --per_update={per_update} --warmup={warmup} --updates={updates}"
)


def write_chats(path: pathlib.Path, work: FinetuneWorkload) -> pathlib.Path:
    """Writes chats of one question and one answer each, whose lengths are lognormal, and returns their file."""
    rng = np.random.default_rng(0)

    def words(median: int) -> str:
        drawn = median * np.exp(work.spread * rng.standard_normal())
        return made_model.text(rng, int(np.clip(round(drawn), 1, work.longest)))

    rows = [{"user": words(work.question), "assistant": words(work.answer)} for _ in range(work.chats)]
    turns = [[{"role": role, "content": text} for role, text in one.items()] for one in rows]
    return made_model.write_lines(path, [{"messages": one} for one in turns])


def own_command(*, remat: str) -> str:
    """Returns the command of our own updates, which are run as a peer's are."""
    path = shlex.quote(":".join(filter(None, (str(_HERE.parents[1]), *sys.path))))
    program = shlex.join([sys.executable, str(_HERE / "finetune_steps.py"), f"--remat={remat}"])
    return f"PYTHONPATH={path} {program} {_ARGUMENTS} --pack={{pack}}"


def trl_commands() -> dict[str, str]:
    """Returns the commands of TRL's trainer, by mode."""
    program = shlex.join([sys.executable, str(_HERE / "sft_trainer.py")])
    modes = ("padded", "grouped", "packed")
    return {
        f"trl-{mode}": f"{program} --mode={mode} {_ARGUMENTS} --packed={{packed}} --threads={{threads}}"
        for mode in modes
    }


def ask(name: str, command: str, sizes: Mapping[str, object], *, threads: int) -> dict | str:
    """Runs a program and returns what it measured, or why it did not."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "measured.json"
        for key, value in {**sizes, "json": file, "threads": threads}.items():
            command = command.replace("{" + key + "}", str(value))
        # This program's path is not the peer's.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        try:
            done = subprocess.run(
                command,
                shell=True,
                env=environment | {"OMP_NUM_THREADS": str(threads)},
                capture_output=True,
                text=True,
                timeout=_MOST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"took more than {_MOST_SECONDS:.0f} s"
        if done.returncode or not file.is_file():
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
            last = (done.stderr or done.stdout).strip().split("\n")[-1][-200:]
            return f"ended with {done.returncode}: {last}"
        found = json.loads(file.read_text(encoding="utf-8"))
    progress(f"{name}: {found['tokens'] / found['seconds']:.1f} tokens/s, {found['seconds']:.1f} s")
    return found


@dataclasses.dataclass
class Results:
    """What was measured.

    Attributes:
      of: of each program, by its name, what each run of it measured.
      pairs: of each peer, its run and ours beside it.
      failed: why a program failed, of those that did.
    """

    of: dict[str, list[dict]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    pairs: dict[str, list[tuple[dict, dict]]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def take(self, name: str, found: dict | str) -> None:
        if isinstance(found, str):
            self.failed[name] = found
            return
        self.of[name].append(found)
        if name != _OURS:
            self.pairs[name].append((self.of[_OURS][-1], found))

    def rows(self, peers: Sequence[str], what: str) -> list[dict]:
        """Returns the rows of the report; with what is the same for all programs."""
        found, ours = [], self.of[_OURS]
        if _OURS in self.failed:
            found.append(missing(_OURS, self.failed[_OURS], target=0))
        if ours:
            fill = [one["tokens"] / one["positions"] for one in ours]
            compiled = sum(one["compiled"] for one in ours)
            found.append(row(_OURS, _rates(ours), f"{what}; {_each(ours)}; {compiled} compilations", unit="tok/s"))
            found.append(row(f"{_OURS}/fill", fill, "of the packed positions"))
            found.append(row(f"{_OURS}/memory", [one["peak_gib"] for one in ours], "of the process", unit="GiB"))
        for peer in peers:
            if peer in self.failed:
                found.append(missing(f"{_OURS}/{peer}", self.failed[peer], target=FINETUNE_TARGET))
            if both := self.pairs[peer]:
                found += _compared(peer, both)
        return found


def _rate(one: Mapping[str, float]) -> float:
    return one["tokens"] / one["seconds"]


def _rates(some: Sequence[Mapping[str, float]]) -> list[float]:
    return [_rate(one) for one in some]


def _each(some: Sequence[Mapping[str, float]]) -> str:
    """Says what a program's update has."""
    tokens, targets, positions = (
        sum(one[name] for one in some) / sum(one["updates"] for one in some)
        for name in ("tokens", "targets", "positions")
    )
    return f"{tokens:.0f} tokens an update, {targets:.0f} learnt, {positions:.0f} positions"


def _compared(peer: str, both: Sequence[tuple[dict, dict]]) -> list[dict]:
    """Returns the rows on a peer, of runs of ours and its own."""
    theirs = [one for _, one in both]
    ratios = [_rate(ours) / _rate(one) for ours, one in both]
    losses = [abs(one["loss"] / ours["loss"] - 1) for ours, one in both]
    versions = " ".join(f"{name} {number}" for name, number in theirs[0].get("versions", {}).items())
    held = f"{max(one['peak_gib'] for one in theirs):.1f} GiB"
    what = f"{np.median(_rates(theirs)):.4g} tok/s; {_each(theirs)}; {held}"
    said = f"{both[0][0]['loss']:.4f}, {theirs[0]['loss']:.4f}"
    return [
        row(f"{_OURS}/{peer}", ratios, f"{what}; {versions}" if versions else what, target=FINETUNE_TARGET),
        row(f"loss/{peer}", losses, said, target=SAME_LOSS, most=True),
    ]


def measure(
    work: FinetuneWorkload, peers: Mapping[str, str], folder: pathlib.Path, given: argparse.Namespace
) -> list[dict]:
    """Runs all in turn, and returns the rows of the report."""
    model = made_model.write_model(folder / "model", work.config, max_context=max(2048, work.packed))
    chats = write_chats(folder / "chats.jsonl", work)
    sizes = work.sizes | {"model": model, "rows": chats}
    commands = {_OURS: own_command(remat=given.remat), **peers}
    results, rows = Results(), []
    what = f"{work.chats} chats, {work.per_update} an update, remat {given.remat}, packs of {sizes['pack']}"
    for pair in range(given.pairs):
        progress(f"{pair + 1} of {given.pairs}")
        for name, command in commands.items():
            if name not in results.failed:
                results.take(name, ask(name, command, sizes, threads=given.threads))
            rows = results.rows(list(peers), what)
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        if _OURS in results.failed:
            break
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--pack", default="", help="token rows and tokens of each; by default the shape's")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--modes", default="padded,grouped,packed", help="of TRL, where no --peer is given")
    parser.add_argument("--shape", choices=tuple(FINETUNES), default="smollm2-135m")
    given = parser.parse_args(arguments)
    work = FINETUNES[given.shape]
    if given.pack:
        rows, length = map(int, given.pack.split(","))
        work = dataclasses.replace(work, pack=(rows, length))
    peers = dict(peer.partition("=")[::2] for peer in given.peer) or trl_commands(given.modes)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])  # of all that is run from here
    with tempfile.TemporaryDirectory() as folder:
        found = measure(work, peers, pathlib.Path(folder), given)
    print(table(found))
    return int(any(one["met"] is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
