"""Kills runs at random moments: resumed, each must be bitwise the run that nothing has interrupted.

    PYTHONPATH=.:tests/helpers python tests/benchmarks/kills.py [--kills=N] [--seconds=S] [--seed=TEXT] [--json=FILE]
        [--bucket] [--variants=NAME,...]

A tiny run of four iterations has a few thousand events: what it does with files in its folder (opens, renames, makes,
removes), and the ticks of its engine, from its start to its end, its compilation, saves and logs included. One of them
is drawn at random, and there the process is killed; then the same command is given again, until it ends well. Ways:

- `kill`: SIGKILL. `twice`: also the run that resumes, and the one after it.
- `term`: SIGTERM, which saves and ends, and SIGKILL some events later.
- `full`: from there on no file takes another byte (RLIMIT_FSIZE), as on a full disk: one line, status 2.

Variants: `plain`, `lora` (adapters, with a KL term), `adafactor` (all weights, saved at every other iteration); where
--variants names it, `critic` (an adapter of a critic learns beside the policy). With `--bucket` they lie in a bucket,
and an event is a request to it; `full`: it takes no more from there on.
The same are: the last checkpoint's arrays, metrics but for the clock's, samples, and the summary.

A case is a pure function of the seed and its number. Each run is a fork of a process that has imported all, which
computes nothing itself. With `--json`, results are written after every case, each with its commit, and those that a
file holds are gone on with. It ends with 1 where a run is another one.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import bucket_server
import interrupted_runs
import tiny_run

from cgrpo_jax import train
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import starts

LENGTH = interrupted_runs.LENGTH
COMMON = {"num_iterations": LENGTH, "data.num_eval": 4, "eval.num_samples": 1, "eval.k": (1,)}
VARIANTS = {
    "plain": {},
    "lora": {"lora.rank": 2, "objective.kl_coef": 0.05, "warm_start.num_updates": 2, "checkpoints.every": 2},
    "adafactor": {"optimizer.kind": "adafactor", "checkpoints.every": 2},
    "critic": {
        "critic.train": True,
        "critic.training.weights": "adapter",
        "critic.training.learning_rate": 1e-3,
        "critique.kind": "cot",
        "critique.when": "all",
        "critique.num_per_response": 2,
    },
}
DRAWN = ("plain", "lora", "adafactor")  # which a case's number decides by default
WAYS = ("kill", "twice", "term", "full")
ENDED = {"kill": (-signal.SIGKILL,), "twice": (-signal.SIGKILL,), "term": (-signal.SIGKILL, 0), "full": (2,)}
MOST = 6  # runs until one ends well
LAST_WORDS = 10.0  # seconds in which workers that outlive a killed run end
Actions = dict[int, int | str]  # at an event, by its number: a signal, or "full"
_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree")


def forked(work: Callable[[], None], log: pathlib.Path, on_start: Callable[[int], None] = lambda pid: None) -> int:
    """Does work in a fork; returns its status, or minus the signal that has killed it. What it prints is in `log`.

    It prints into a pipe: a file would take nothing either, where the disk is full.
    """
    reading, writing = os.pipe()

    def child() -> None:
        os.dup2(writing, 1), os.dup2(writing, 2)
        os.close(reading), os.close(writing)
        status = 1
        try:
            work()
            status = 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = 2
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001 - it is what a program that ends so prints
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)  # without what the parent would do at its end

    process = multiprocessing.get_context("fork").Process(target=child)
    log.write_bytes(b"")
    process.start()
    os.close(writing)

    def keep() -> None:
        with open(reading, "rb", buffering=0) as said, log.open("ab", buffering=0) as file:
            while data := said.read(1 << 16):
                file.write(data)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    on_start(process.pid or 0)
    process.join()
    thread.join(LAST_WORDS)
    return process.exitcode or 0


class Counter:
    """Counts the events of this process, and does what is to happen at some."""

    def __init__(self, folder: pathlib.Path, actions: Actions):
        self.count, self._folder, self._actions = 0, str(folder), actions
        tick = train.Run._tick
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # here: the event of a full disk may be another thread's
        sys.addaudithook(self._on_event)

        def counted(run, *args) -> None:
            self._next()
            tick(run, *args)

        train.Run._tick = counted

    def _on_event(self, event: str, args: tuple) -> None:
        if event in _EVENTS and args and self._folder in str(args[0]):
            self._next()

    def _next(self) -> None:
        self.count += 1
        action = self._actions.pop(self.count, None)
        if action == "full":
            fill_disk()
        elif action:
            os.kill(os.getpid(), action)


def fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def actions_of(way: str, rng: random.Random, events: int) -> Actions:
    moment = rng.randint(1, events)
    if way == "full":
        return {moment: "full"}
    if way == "term":
        return {moment: signal.SIGTERM, moment + rng.randint(1, 120): signal.SIGKILL}
    return {moment: signal.SIGKILL}


class Room:
    """Where the runs lie: the weights that they start from, and of each variant the run that nothing interrupts."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.log = folder, folder / "log"
        self.start = folder / "start"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        changes = {"warm_start.num_updates": 300, "data.num_eval": 0, "num_iterations": 0}
        self._must(lambda: train.main(tiny_run.config(changes), str(self.start)))
        self.events = {}

    def _must(self, work: Callable[[], None]) -> None:
        if forked(work, self.log):
            raise RuntimeError(self.log.read_text())

    def changes(self, variant: str) -> dict:
        return COMMON | {"model.init": str(self.start)} | VARIANTS[variant]

    def clear(self, folder: pathlib.Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def run(self, variant: str, folder: pathlib.Path, actions: Actions | None = None) -> int:
        def work() -> None:
            counter = Counter(folder, actions or {})
            train.main(tiny_run.config(self.changes(variant)), str(folder))
            folder.with_suffix(".events").write_text(str(counter.count))

        return forked(work, self.log)

    def whole(self, variant: str) -> pathlib.Path:
        """Returns the uninterrupted run of a variant; made at the first call."""
        folder = self.folder / f"whole-{variant}"
        if variant not in self.events:
            if self.run(variant, folder):
                raise RuntimeError(self.log.read_text())
            self.events[variant] = int(folder.with_suffix(".events").read_text())
        return folder

    def differs(self, variant: str, folder: pathlib.Path) -> str:
        """Returns what is not the same in a run as in the uninterrupted one; "" where all is."""
        tiny_run.start = lambda: str(self.start)
        work = lambda: interrupted_runs.assert_same_run(  # noqa: E731
            folder, self.whole(variant), LENGTH, COMMON | VARIANTS[variant]
        )
        return self.log.read_text().strip()[-400:] if forked(work, self.log) else ""


class BucketRoom(Room):
    """Runs lie in a bucket; after each its folder is copied to the disk, where it is compared."""

    def __init__(self, folder: pathlib.Path, server: bucket_server.Server):
        super().__init__(folder)
        self.server = server

    def clear(self, folder: pathlib.Path) -> None:
        super().clear(folder)
        for name in self.server.names("mine", f"{folder.name}/"):
            del self.server.buckets["mine"][name]

    def run(self, variant: str, folder: pathlib.Path, actions: Actions | None = None) -> int:
        left, pids, full, counted = dict(actions or {}), [], [], itertools.count(1)
        events = folder.with_suffix(".events")

        def on_request(method: str, what: str, number: int) -> int | None:
            events.write_text(str(event := next(counted)))
            action = left.pop(event, None)
            if action == "full":
                full.append(True)
            elif action:
                os.kill(pids[0], action)
            refused = full and " writes " in what
            return 403 if refused else 503 if action == signal.SIGKILL else None

        def work() -> None:
            train.main(tiny_run.config(self.changes(variant)), f"gs://mine/{folder.name}")

        self.server.faults = on_request
        status = forked(work, self.log, pids.append)
        self.server.faults = lambda method, what, number: None
        shutil.rmtree(folder, ignore_errors=True)
        self.server.save("mine", folder.name, folder)
        return status


def case(room: Room, seed: str, number: int, variants: Sequence[str]) -> dict:
    """Interrupts a run of one of the variants; returns where, and what became of it."""
    rng = random.Random(f"{seed}/{number}")
    variant = variants[number % len(variants)]
    way = WAYS[number // len(variants) % len(WAYS)]
    whole = room.whole(variant)
    folder = room.folder / "case"
    room.clear(folder)
    left = 3 if way == "twice" else 1  # interruptions
    found = {"case": number, "variant": variant, "way": way, "events": [], "fault": ""}
    for _ in range(MOST):
        actions = actions_of(way, rng, room.events[variant]) if left else {}
        found["events"].append(min(actions, default=0))
        left -= 1 if left else 0
        status = room.run(variant, folder, actions)
        if status == 0 and (folder / "summary.json").exists():
            break
        said = room.log.read_text().strip()
        if status not in ENDED[way] or not found["events"][-1]:
            return found | {"fault": f"status {status}: {said[-400:]}"}
        if status == 2 and ("Traceback" in said or len(re.findall(r"^error: ", said.replace("\r", "\n"), re.M)) != 1):
            return found | {"fault": f"not one line: {said[-400:]}"}
    else:
        return found | {"fault": f"not done after {MOST} runs"}
    difference = room.differs(variant, folder)
    if difference:
        return found | {"fault": difference}
    left_over = [path.name for path in (folder / "checkpoints").iterdir()]
    kept = [path.name for path in (whole / "checkpoints").iterdir()]
    return found | ({"fault": f"checkpoints {sorted(left_over)}"} if sorted(left_over) != sorted(kept) else {})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="cases")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no other case begins")
    parser.add_argument("--seed", default="0", help="by which they are drawn")
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    parser.add_argument("--bucket", action="store_true", help="runs lie in a bucket")
    parser.add_argument("--variants", default=",".join(DRAWN), help="of the runs, in whose turn cases are")
    options = parser.parse_args(argv)
    variants = options.variants.split(",")
    if unknown := [one for one in variants if one not in VARIANTS]:
        parser.error(f"--variants {unknown[0]} is unknown; use some of {', '.join(VARIANTS)}")
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    rows = [row for row in rows if row["seed"] == options.seed]
    began, commit = time.monotonic(), starts.commit() or "unknown"
    with tempfile.TemporaryDirectory() as name, bucket_server.serve() as server:
        server.make_bucket("mine")
        os.environ.update(bucket_server.environment(server.url))
        room = BucketRoom(pathlib.Path(name), server) if options.bucket else Room(pathlib.Path(name))
        done = {row["case"] for row in rows}
        for number in range(options.kills):
            if number in done or time.monotonic() - began > options.seconds:
                continue
            rows.append({"seed": options.seed, "commit": commit} | case(room, options.seed, number, variants))
            if options.json:
                rows.sort(key=lambda row: row["case"])
                options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    faults = [row for row in rows if row["fault"]]
    for variant in variants:
        ways = [row["way"] for row in rows if row["variant"] == variant]
        print(f"{variant}: " + ", ".join(f"{way} {ways.count(way)}" for way in WAYS))
    for row in faults:
        print(f"  case {row['case']} ({row['variant']}, {row['way']}, events {row['events']}): {row['fault']}")
    print(f"{len(rows)} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
