"""Hosts that are not alike, and hosts that stop: is each refused, or ended, on all processes, and after how long?

    python tests/benchmarks/hosts.py [--processes=2,4] [--only=NAME,...] [--stopped=300] [--json=FILE]

Tries every difference by itself: process 0 as it should be, the last one not. All must end with status 2 and one line,
within a minute. Then one process is stopped (SIGSTOP) for minutes and goes on: the others must end themselves, with
status 76 and one line that names it, or JAX must; none may be there a minute after it goes on. With --json, what is
there already is not tried again. Exits with 1 where a target is missed.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

from report import progress

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import jax  # noqa: E402 - the helpers are found now
import tiny_run  # noqa: E402
from unlike_hosts import Host, Hosts, at_iteration  # noqa: E402

from cgrpo_jax.runtime import watchdog  # noqa: E402

LIMIT = 60  # seconds in which all are refused, and in which all end when a stopped process goes on
STALL = 60
CHANGES = {"num_iterations": 1000, "data.num_eval": 0}
ROWS = "".join(f'{{"question": "1+{i}", "answer": "{1 + i}"}}\n' for i in range(8))
REWARD = "def reward(completions, **kw):\n    return [{}] * len(completions)\n"


@dataclasses.dataclass(frozen=True)
class Difference:
    """What one process has otherwise than the others.

    Attributes:
      alike, other: what those and that one are started with.
      changes: keys of the configuration that all have.
      words: that its line holds, on every process.
    """

    other: Host
    words: str
    alike: Host = dataclasses.field(default_factory=Host)
    changes: dict = dataclasses.field(default_factory=dict)


def keys(**changes) -> Host:
    return Host(changes={name.replace("__", "."): value for name, value in changes.items()})


def differences(folder: pathlib.Path) -> dict[str, Difference]:
    """Returns all that is tried, by name; what it needs is written into a folder."""
    one, two = folder / "one", folder / "two"
    for place, answer, reward in ((one, "2", 1.0), (two, "3", 0.5)):
        place.mkdir(exist_ok=True)
        (place / "train.jsonl").write_text(ROWS + f'{{"question": "1+1", "answer": "{answer}"}}\n')
        (place / "reward.py").write_text(REWARD.format(reward))
    data = {"data.kind": "jsonl", "grader.kind": "exact", "critique.kind": "indicative", "data.num_train": 0}
    data["critique.step_checker"] = "equations"
    package = folder / "package"
    if not package.exists():
        shutil.copytree(ROOT / "cgrpo_jax", package / "cgrpo_jax", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "configs", package / "configs", ignore=shutil.ignore_patterns("results"))
        with (package / "cgrpo_jax" / "objective.py").open("a") as file:
            file.write("# another commit\n")
    start = tiny_run.start()
    copy = folder / pathlib.Path(start).name
    if not copy.exists():
        shutil.copytree(start, copy)
        for path in (copy / "checkpoints").glob("*/extra/metadata"):
            path.write_text(path.read_text() + " ")
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        for name in ("one", "two"):
            shutil.copytree(ROOT / "cgrpo_jax" / "assets" / "arithmetic", tokenizer / name / "tokens")
        with (tokenizer / "two" / "tokens" / "tokenizer_config.json").open("a") as file:
            file.write("\n")
    return {
        "temperature": Difference(keys(sampling__temperature=0.5), "sampling.temperature is 0.5 on process "),
        "learning rate": Difference(keys(optimizer__learning_rate=0.5), "optimizer.learning_rate is 0.5 on process "),
        "batch size": Difference(keys(questions_per_iteration=8), "questions_per_iteration is 8 on process "),
        "seed": Difference(keys(seed=5), "seed is 5 on process "),
        "mesh": Difference(keys(mesh__tensor=2), "mesh.tensor is 2 on process "),
        "devices": Difference(Host(devices=3), "the number of its devices is 3 on process "),
        "precision": Difference(Host(environment={"JAX_ENABLE_X64": "1"}), "jax_enable_x64 is true on process "),
        "code": Difference(Host(folder=str(package), package=str(package)), "the code of cgrpo_jax is "),
        "data": Difference(
            keys(data__train=str(two / "train.jsonl")),
            "the hash of the training questions is ",
            keys(data__train=str(one / "train.jsonl")),
            data,
        ),
        "data that is missing": Difference(
            keys(data__train=str(folder / "none" / "train.jsonl")),
            "its own message says why",
            keys(data__train=str(one / "train.jsonl")),
            data,
        ),
        "reward file": Difference(
            keys(grader__kind=f"{two}/reward.py:reward"),
            "the hash of the file of reward.py:reward is ",
            keys(grader__kind=f"{one}/reward.py:reward"),
        ),
        "checkpoint": Difference(keys(model__init=str(copy)), f"the model's {copy.name} is ", keys(model__init=start)),
        "tokenizer": Difference(
            keys(model__tokenizer=str(tokenizer / "two" / "tokens")),
            "the model's tokens/tokenizer_config.json is ",
            keys(model__tokenizer=str(tokenizer / "one" / "tokens")),
        ),
        "command": Difference(Host(command="evaluate"), 'the command is "evaluate" on process '),
        "flag": Difference(
            Host(command="evaluate", flags=("--refine",)), "--refine is true on process ", Host(command="evaluate")
        ),
        "workdir": Difference(Host(workdir=str(folder / "another")), "is not the folder that process 0 calls "),
        "disk": Difference(
            Host(workdir="run", folder=str(two)),
            "is not the folder that process 0 calls run",
            Host(workdir="run", folder=str(one)),
        ),
        "--distributed forgotten": Difference(Host(distributed=False), "so this is one of several processes"),
        "a flag that is none": Difference(Host(flags=("--nonsense",)), "unknown flag --nonsense"),
    }


def refused(name: str, difference: Difference, processes: int, folder: pathlib.Path) -> dict:
    """Starts processes of which the last is not alike; returns how they ended."""
    workdir = folder / f"{name}-{processes}"
    shutil.rmtree(workdir, ignore_errors=True)
    hosts = [*[difference.alike] * (processes - 1), difference.other]
    with Hosts(workdir, hosts, CHANGES | difference.changes) as started:
        ended = started.wait(10 * LIMIT)
    lines = [one.errors for one in ended]
    # The one with a mistake of its own says that instead.
    told = all(len(line) == 1 for line in lines) and all(difference.words in line[0] for line in lines[:-1])
    seconds = max(one.seconds for one in ended)
    row = {"name": name, "processes": processes, "status": [one.status for one in ended], "seconds": round(seconds, 1)}
    said = lines[0][0] if lines[0] else ended[0].out[:2000]
    row["line"] = said.replace(str(folder), "FOLDER")
    row["met"] = row["status"] == [2] * processes and told and seconds < LIMIT and not workdir.exists()
    return row


def stopped(number: int, processes: int, seconds: float, folder: pathlib.Path) -> dict:
    """Stops one of several processes in the midst of a run for so long; returns how all ended, and when."""
    workdir = folder / f"stopped-{number}-{processes}"
    shutil.rmtree(workdir, ignore_errors=True)
    changes = CHANGES | {"compute.stall_timeout": float(STALL), "model.init": tiny_run.start()}
    with Hosts(workdir, [Host()] * processes, changes) as started:
        at_iteration(workdir, 1, started, limit=900)
        began = time.monotonic()
        started.signal(number, signal.SIGSTOP)
        others = tuple(one for one in range(processes) if one != number)
        ended = started.wait(seconds, among=others)
        took = time.monotonic() - began
        time.sleep(max(0.0, seconds - took))
        started.signal(number, signal.SIGCONT)
        (itself,) = started.wait(2 * LIMIT, among=(number,))
    row = {"name": f"process {number} stopped for {seconds:g} s", "processes": processes}
    row |= {"status": [one.status for one in ended], "seconds": round(took, 1), "status_of_the_stopped": itself.status}
    row["line"] = next((line for one in ended for line in one.errors), ended[0].out[-500:])
    row["line_of_the_stopped"] = next(iter(itself.errors), itself.out[-300:])
    named = f"process {number} " in row["line"] or f"process {number}," in row["line"]
    row["met"] = all(one.status == watchdog.STATUS for one in ended) and named and itself.status is not None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--only", default="", help="names of differences, and stopped")
    parser.add_argument("--stopped", default=300.0, type=float, help="seconds")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()
    found = json.loads(given.json.read_text())["rows"] if given.json and given.json.exists() else []
    only = [name for name in given.only.split(",") if name]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tried: list[tuple[str, int, Callable[[], dict]]] = []
        for processes in map(int, given.processes.split(",")):
            for label, one in differences(folder).items():
                if not only or label in only:
                    tried.append((label, processes, lambda a=label, b=one, n=processes: refused(a, b, n, folder)))
            for number in (0, processes - 1):
                label = f"process {number} stopped for {given.stopped:g} s"
                if not only or "stopped" in only:
                    tried.append((label, processes, lambda m=number, n=processes: stopped(m, n, given.stopped, folder)))
        for label, processes, attempt in tried:
            if any((row["name"], row["processes"]) == (label, processes) for row in found):
                continue
            row = attempt() | {"load": round(os.getloadavg()[0], 1)}
            progress(
                f"{'met   ' if row['met'] else 'MISSED'} {row['seconds']:6.1f} s {processes} x {label}: {row['line']}"
            )
            found.append(row)
            if given.json:
                about = {
                    "cores": os.cpu_count(),
                    "jax": jax.__version__,
                    "limit_seconds": LIMIT,
                    "stall_timeout": STALL,
                }
                given.json.write_text(json.dumps(about | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(row["met"] for row in found))


if __name__ == "__main__":
    main()
