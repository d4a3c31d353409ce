"""Kills runs at random moments: resumed, each must be bitwise the run that nothing has interrupted.

    PYTHONPATH=.:tests/helpers python tests/benchmarks/kills.py [--kills=N] [--places=disk,bucket,hosts] [--seconds=S]
        [--seed=TEXT] [--cases=N,...] [--variants=NAME,...] [--json=FILE]

A tiny run of four iterations has a few thousand events: what it does with files in its folder (opens, renames, makes,
removes), and the ticks of its engine, from its start to its end, its compilation, saves and logs included. One of them
is drawn at random, and there the process is killed; then the same command is given again, until it ends well. Ways:

- `kill`: SIGKILL. `twice`: also the run that resumes, and the one after it.
- `term`: SIGTERM, which saves and ends, and SIGKILL some events later.
- `full`: from there on no file takes another byte (RLIMIT_FSIZE), as on a full disk: one line, status 2.

Variants: `plain`, `lora` (adapters, with a KL term), `adafactor` (all weights, saved at every other iteration); where
--variants names it, `critic` (an adapter of a critic learns beside the policy). Places, with the percent of the cases
that lie there:

- `disk` (64).
- `bucket` (24): an event is a request to it; `full`: it takes no more from there on.
- `hosts` (12): two processes with a device each, of which one, drawn too, meets the event; the other must end by
  itself, with one line or by JAX's own abort, within two minutes. A full disk is full for both.

The same are: the last checkpoint's arrays, metrics but for the clock's, samples, and the summary.

A case is a pure function of the seed, its place and its number there, but for when threads write. Each run is a fork of
a process that has imported all, which computes nothing itself. With `--json`, results are written after every case,
each with its commit, and those that a file holds are gone on with. It ends with 1 where a run is another one.
"""

import argparse
import dataclasses
import functools
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
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import bucket_server
import interrupted_runs
import jax
import tiny_run

from cgrpo_jax import train
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, starts
from cgrpo_jax.runtime import watchdog

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
PLACES = {"disk": 64, "bucket": 24, "hosts": 12}  # percent of the cases
ENDED = {"kill": (-signal.SIGKILL,), "twice": (-signal.SIGKILL,), "full": (2,)}
ENDED["term"] = (0, -signal.SIGKILL, -signal.SIGTERM)  # the last: while it starts, before it catches it
# Another process than the one that met the event: nothing was left to do, one line, the watchdog's line, JAX's abort.
OTHERS_ENDED = (0, 2, watchdog.STATUS, -signal.SIGABRT)
MOST = 6  # runs until one ends well
LONGEST = 1200.0  # seconds of a run on hosts that share this machine with others
LEFT_ALONE = 120.0  # seconds in which a process ends when another is gone
LAST_WORDS = 10.0  # seconds in which workers that outlive a killed run end
Actions = dict[int, int | str]  # at an event, by its number: a signal, or "full"
_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree")


class Fork:
    """A fork that works; what it prints is in `log`.

    It prints into a pipe: a file would take nothing either, where the disk is full.
    """

    def __init__(self, work: Callable[[], None], log: pathlib.Path):
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

        self._process = multiprocessing.get_context("fork").Process(target=child)
        log.write_bytes(b"")
        self._process.start()
        os.close(writing)
        self.pid = self._process.pid or 0

        def keep() -> None:
            with open(reading, "rb", buffering=0) as said, log.open("ab", buffering=0) as file:
                while data := said.read(1 << 16):
                    file.write(data)

        self._thread = threading.Thread(target=keep, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Returns its status, or minus the signal that has killed it; None where it does not end in so many seconds."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)
            self._process.join()
            return None
        self._thread.join(LAST_WORDS)
        return self._process.exitcode


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the processes of a run ended: statuses, None for one that hung, and what each said."""

    statuses: tuple[int | None, ...]
    said: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        return not any(self.statuses) and None not in self.statuses


class Counter:
    """Counts the events of this process, and does what is to happen at some; a disk is full for all of `others`."""

    def __init__(self, folder: pathlib.Path, actions: Actions, others: Sequence[int] = ()):
        self.count, self._folder, self._actions, self._others = 0, str(folder), actions, others
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
            for pid in (os.getpid(), *self._others):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        elif action:
            os.kill(os.getpid(), action)


def actions_of(way: str, rng: random.Random, events: int) -> Actions:
    moment = rng.randint(1, events)
    if way == "full":
        return {moment: "full"}
    if way == "term":
        return {moment: signal.SIGTERM, moment + rng.randint(1, 120): signal.SIGKILL}
    return {moment: signal.SIGKILL}


class Room:
    """Where the runs lie, all from the miniature's weights, and of each variant the run that nothing interrupts."""

    processes = 1

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self.logs = [folder / f"log{number}" for number in range(self.processes)]
        self.events: dict[str, list[int]] = {}  # of each variant: those of each process
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(tiny_run.shared() / "programs"))
        if Fork(lambda: print(tiny_run.start()), self.logs[0]).wait():
            raise RuntimeError(self.logs[0].read_text())
        self.start = self.logs[0].read_text().split()[-1]

    def changes(self, variant: str) -> dict:
        return COMMON | {"model.init": self.start} | VARIANTS[variant]

    def clear(self, folder: pathlib.Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def counts(self, folder: pathlib.Path, number: int = 0) -> pathlib.Path:
        """Returns the file of how many events a process had."""
        return folder.with_suffix(f".events{number}")

    def ended(self, statuses: Sequence[int | None]) -> Ended:
        return Ended(tuple(statuses), tuple(log.read_text(errors="replace").strip() for log in self.logs))

    def run(self, variant: str, folder: pathlib.Path, actions: Actions | None = None, at: int = 0) -> Ended:
        """Runs; process `at` does what `actions` say."""

        def work() -> None:
            counter = Counter(folder, actions or {})
            train.main(tiny_run.config(self.changes(variant)), str(folder))
            self.counts(folder).write_text(str(counter.count))

        return self.ended([Fork(work, self.logs[0]).wait()])

    def whole(self, variant: str) -> pathlib.Path:
        """Returns the uninterrupted run of a variant; made at the first call."""
        folder = self.folder / f"whole-{variant}"
        if variant not in self.events:
            if not (ended := self.run(variant, folder)).is_well:
                raise RuntimeError("\n".join(ended.said))
            counts = (self.counts(folder, number) for number in range(self.processes))
            self.events[variant] = [int(file.read_text()) for file in counts]
        return folder

    def differs(self, variant: str, folder: pathlib.Path) -> str:
        """Returns what is not the same in a run as in the uninterrupted one; "" where all is."""
        work = lambda: interrupted_runs.assert_same_run(  # noqa: E731
            folder, self.whole(variant), LENGTH, COMMON | VARIANTS[variant]
        )
        return self.logs[0].read_text().strip()[-400:] if Fork(work, self.logs[0]).wait() else ""


class BucketRoom(Room):
    """Runs lie in a bucket; after each its folder is copied to the disk, where it is compared."""

    def __init__(self, folder: pathlib.Path, server: bucket_server.Server):
        super().__init__(folder)
        self.server = server

    def clear(self, folder: pathlib.Path) -> None:
        super().clear(folder)
        for name in self.server.names("mine", f"{folder.name}/"):
            del self.server.buckets["mine"][name]

    def run(self, variant: str, folder: pathlib.Path, actions: Actions | None = None, at: int = 0) -> Ended:
        left, pids, full, counted = dict(actions or {}), [], [], itertools.count(1)

        def on_request(method: str, what: str, number: int) -> int | None:
            self.counts(folder).write_text(str(event := next(counted)))
            action = left.pop(event, None)
            if action == "full":
                full.append(True)
            elif action:
                os.kill(pids[0], action)
            refused = full and " writes " in what
            return 403 if refused else 503 if action == signal.SIGKILL else None

        def work() -> None:
            while not pids_are_known.is_set():
                time.sleep(0.01)
            train.main(tiny_run.config(self.changes(variant)), f"gs://mine/{folder.name}")

        pids_are_known = multiprocessing.get_context("fork").Event()
        self.server.faults = on_request
        fork = Fork(work, self.logs[0])
        pids.append(fork.pid)
        pids_are_known.set()
        ended = self.ended([fork.wait()])
        self.server.faults = lambda method, what, number: None
        shutil.rmtree(folder, ignore_errors=True)
        self.server.save("mine", folder.name, folder)
        return ended


class HostsRoom(Room):
    """Runs are of two processes, as of two hosts that share a disk."""

    processes = 2

    def run(self, variant: str, folder: pathlib.Path, actions: Actions | None = None, at: int = 0) -> Ended:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        arguments = [*tiny_run.arguments(folder, self.changes(variant)), "--distributed"]
        pids = multiprocessing.get_context("fork").Array("i", self.processes)

        def work(number: int) -> None:
            os.environ |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(self.processes)}
            os.environ |= {"JAX_PROCESS_ID": str(number), "XLA_FLAGS": ""}
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            while not all(pids):
                time.sleep(0.01)
            counter = Counter(folder, dict(actions or {}) if number == at else {}, pids)
            # As the command does, which also says to the other why it ends.
            cli.run(
                train.main,
                require=("config", "workdir"),
                flags={"distributed": cli.DISTRIBUTED},
                argv=arguments,
            )
            self.counts(folder, number).write_text(str(counter.count))

        forks = [Fork(functools.partial(work, number), log) for number, log in enumerate(self.logs)]
        pids[:] = [fork.pid for fork in forks]
        statuses = {at: forks[at].wait(LONGEST)}
        for number in {*range(self.processes)} - {at}:
            statuses[number] = forks[number].wait(LEFT_ALONE)
        return self.ended([statuses[number] for number in range(self.processes)])


def mistake(way: str, ended: Ended, at: int, *, interrupted: bool) -> str:
    """Returns what is wrong with how a run ended; "" where nothing is."""
    said = " | ".join(text[-400:] for text in ended.said)
    if ended.is_well:
        return ""
    if not interrupted or ended.statuses[at] not in ENDED[way]:
        return f"status {ended.statuses}: {said}"
    if ended.statuses[at] == -signal.SIGTERM and "folder: " in ended.said[at]:
        return f"SIGTERM is not heeded: {said}"
    for number, (status, text) in enumerate(zip(ended.statuses, ended.said, strict=True)):
        if number != at and status not in (OTHERS_ENDED if ended.statuses[at] else (0,)):
            return f"process {number} ends with {status}: {said}"
        lines = re.findall(r"^error: ", text.replace("\r", "\n"), re.M)
        if status in (2, watchdog.STATUS) and ("Traceback" in text or len(lines) != 1):
            return f"not one line of process {number}: {text[-400:]}"
    return ""


def case(room: Room, seed: str, number: int, variants: Sequence[str]) -> dict:
    """Interrupts a run of one of the variants; returns where, and what became of it."""
    rng = random.Random(f"{seed}/{number}")
    variant = variants[number % len(variants)]
    way = WAYS[number // len(variants) % len(WAYS)]
    whole = room.whole(variant)
    folder = room.folder / "case"
    room.clear(folder)
    left = 3 if way == "twice" else 1  # interruptions
    found = {"case": number, "variant": variant, "way": way, "events": [], "statuses": [], "fault": ""}
    for _ in range(MOST):
        at = rng.randrange(room.processes) if room.processes > 1 else 0
        actions = actions_of(way, rng, room.events[variant][at]) if left else {}
        found["events"].append(min(actions, default=0))
        left -= 1 if left else 0
        ended = room.run(variant, folder, actions, at)
        found["statuses"].append([ended.statuses[at], *(ended.statuses[:at] + ended.statuses[at + 1 :])])
        if ended.is_well and (folder / "summary.json").exists():
            break
        if fault := mistake(way, ended, at, interrupted=bool(actions)):
            return found | {"fault": fault}
    else:
        return found | {"fault": f"not done after {MOST} runs"}
    difference = room.differs(variant, folder)
    if difference:
        return found | {"fault": difference}
    left_over = [path.name for path in (folder / "checkpoints").iterdir()]
    kept = [path.name for path in (whole / "checkpoints").iterdir()]
    return found | ({"fault": f"checkpoints {sorted(left_over)}"} if sorted(left_over) != sorted(kept) else {})


def numbers_of(place: str, kills: int) -> Sequence[int]:
    """Returns the numbers of the cases in a place, of so many in all."""
    elsewhere = {name: kills * percent // 100 for name, percent in PLACES.items() if name != "disk"}
    return range(elsewhere.get(place, kills - sum(elsewhere.values())))


def room_in(place: str, folder: pathlib.Path, server: bucket_server.Server) -> Room:
    if place == "bucket":
        return BucketRoom(folder, server)
    return HostsRoom(folder) if place == "hosts" else Room(folder)


def told(rows: Sequence[dict]) -> None:
    """Prints how many of each kind there were, and what was wrong."""
    for place in PLACES:
        for variant in VARIANTS:
            ways = [row["way"] for row in rows if (row["place"], row["variant"]) == (place, variant)]
            if ways:
                print(f"{place}, {variant}: " + ", ".join(f"{way} {ways.count(way)}" for way in WAYS))
    for row in rows:
        if row["fault"]:
            where = f"case {row['case']} ({row['place']}, {row['variant']}, {row['way']}, events {row['events']})"
            print(f"  {where}: {row['fault']}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="cases, in all places")
    parser.add_argument("--places", default=",".join(PLACES), help="which, with commas between")
    parser.add_argument("--cases", default="", help="their numbers in each place, with commas between, instead")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no other case begins")
    parser.add_argument("--seed", default="0", help="by which they are drawn")
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    parser.add_argument("--variants", default=",".join(DRAWN), help="of the runs, in whose turn cases are")
    options = parser.parse_args(argv)
    variants = options.variants.split(",")
    if unknown := [one for one in variants if one not in VARIANTS]:
        parser.error(f"--variants {unknown[0]} is unknown; use some of {', '.join(VARIANTS)}")
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    rows = [row for row in rows if row["seed"] == options.seed]
    began, commit = time.monotonic(), starts.commit() or "unknown"
    done = {(row["place"], row["case"]) for row in rows}
    with tempfile.TemporaryDirectory() as name, bucket_server.serve() as server:
        server.make_bucket("mine")
        os.environ.update(bucket_server.environment(server.url))
        for place in options.places.split(","):
            numbers = list(map(int, options.cases.split(","))) if options.cases else numbers_of(place, options.kills)
            left = [one for one in numbers if (place, one) not in done]
            room = room_in(place, pathlib.Path(name) / place, server) if left else None
            for number in left:
                if room is None or time.monotonic() - began > options.seconds:
                    break
                head = {"seed": options.seed, "commit": commit, "place": place}
                rows.append(head | case(room, options.seed, number, variants))
                if options.json:
                    rows.sort(key=lambda row: (list(PLACES).index(row["place"]), row["case"]))
                    options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    told(rows)
    num_faults = sum(bool(row["fault"]) for row in rows)
    print(f"{len(rows)} cases, {num_faults} faults, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if num_faults else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the forks': none of them looks for another one
    sys.exit(main())
