"""Runs many runs: some at once, each on its own share of this machine or on its own slice. For study.py and sweep.py.

What is done stays, what was interrupted resumes, and what fails does not stop the others.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import registration
import study_report

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import lengths, old_keys, validate
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import files, folder_lock, local_copies, places
from cgrpo_jax.runtime.json_files import read_json_object

CGRPO = (sys.executable, "-m", "cgrpo_jax")
TRAIN = (sys.executable, "-m", "cgrpo_jax.train")
_mine = threading.local()  # the slot of a thread


class Run(Protocol):
    """What is run: `folder` is that of the run, `needs` another run that must be done before."""

    name: str
    folder: pathlib.Path
    arguments: Sequence[str]
    needs: "Run | None"

    def summary(self) -> dict | None:
        """Returns the results, or None unless the run is done."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place where one run at a time goes: what is started there, with a run's arguments after it, on which cores."""

    command: Sequence[str]
    cores: Sequence[int] = ()  # empty: any


def local_slots(jobs: int, command: Sequence[str] = TRAIN) -> list[Slot]:
    """Returns this machine in `jobs` shares of its cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    slots = []
    for job in range(jobs):
        share = cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs]
        slots.append(Slot(command, tuple(share or cores[job % len(cores) : job % len(cores) + 1] if cores else ())))
    return slots


def expect(what: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raises a `UserError` if a part of a study or sweep file is not of its kind: a list where a dict must be, say."""
    if not isinstance(value, kind):
        raise UserError(f"{what} is {value!r:.60}, not {wanted}")


def expect_overrides(what: str, overrides: Any) -> None:
    """Raises a `UserError` unless `overrides` is a dict whose keys can be those of a configuration."""
    expect(f"{what}'s overrides", overrides, Mapping, "a dict from keys to values")
    for key in overrides:
        expect(f"a key of {what}'s overrides", key, str, "a string")


def summary(folder: pathlib.Path, config: Mapping[str, Any], overridden: Sequence[str]) -> dict | None:
    """Returns the results of a run, or None unless it has finished with this configuration and version of its task.

    One whose files can't be read has not: it is started again, and goes on, or says what is wrong with them.

    Args:
      folder: of the run.
      config: what its config.json must hold.
      overridden: dotted keys that the study or the sweep sets.
    """
    paths = RunDir(folder)
    if not paths.summary.exists():
        return None
    try:
        written, results = (read_json_object(path) for path in (paths.config, paths.summary))
    except UserError:
        return None
    if differences(written, config, overridden):
        return None
    # A run that was made longer keeps its old summary until it ends.
    wanted = {"iterations": config["num_iterations"], "task": task_of(config["data"]["kind"])}
    return results if all(results.get(key) == value for key, value in wanted.items()) else None


def differences(
    written: Mapping[str, Any], config: Mapping[str, Any], overridden: Sequence[str], free: Sequence[str] = ()
) -> list[str]:
    """Returns the keys by which a run is of another configuration, such as `"seed: 0 -> 1"`.

    Args:
      written: what its config.json holds.
      config, overridden: as in `summary`.
      free: further keys that may differ.
    """
    was = old_keys.translate(written)
    flat = config_lib.flatten(config)
    # Keys that came into being after the run don't outdate it, unless they are set; lengths at 0 are the run's choice.
    added = flat.keys() - config_lib.flatten(was).keys() - set(overridden)
    chosen = {key for key in lengths.KEYS if flat.get(key) == 0}
    kept = old_keys.defaults_of_then(written, flat).keys() - set(overridden)
    unread = validate.never_read(was, config)
    return config_lib.differences(was, config, sorted({*added, *chosen, *kept, *unread, *free}))


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Makes a folder of runs, and keeps other sweeps and studies out of it within the block.

    Yields:
      A check that it is still this one's, which raises a `UserError`: a bucket has no locks, and the later one goes on.

    Raises:
      UserError: another one works in it, or it can't be made.
    """
    busy = f"another sweep or study works in {workdir}; wait for it to end, or give another --workdir"
    with contextlib.ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            check = held.enter_context(folder_lock.owned(workdir, busy=busy))
        except OSError as error:
            raise UserError(f"--workdir {workdir} can't be written ({error}); give another --workdir") from error
        yield check


def logs_of(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder on this machine of what processes print: that of the runs, or of one in a bucket a cache."""
    if not places.is_bucket(workdir):
        return workdir
    return local_copies.folder().with_name("logs") / hashlib.sha256(str(workdir).encode()).hexdigest()[:16]


def run_all(
    runs: Sequence[Run],
    *,
    slots: Sequence[Slot],
    workdir: pathlib.Path,
    check: Callable[[], None] = lambda: None,
    may_start: Callable[[], bool] = lambda: True,
) -> list[Run]:
    """Runs what is not done, one run a slot at a time, and returns what failed. A run waits for the one that it needs.

    Args:
      runs: in the order in which they are to start, a run after the one that it needs.
      slots: where they run.
      workdir: of all of them; every process that ends adds a line to its processes.jsonl.
      check: called before a run starts; what it raises ends all.
      may_start: whether another run may start; once it says no, those that run go on to their ends.

    Raises:
      UserError: the folder can't be written; what runs is stopped.
    """
    done = [run for run in runs if run.summary() is not None]
    waiting = [run for run in runs if run not in done]
    print(f"{len(done)} of {len(runs)} runs are done", flush=True)
    failed, running, live = [], {}, set()
    machine = {"commit": registration.code() or "unknown", "cpus": os.cpu_count(), "jobs": len(slots)}
    free: queue.SimpleQueue = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    with concurrent.futures.ThreadPoolExecutor(len(slots), initializer=_take, initargs=(free,)) as pool:
        try:
            while waiting or running:
                for run in list(waiting):
                    if run.needs in failed:
                        print(f"{run.name}: not started, it needs {run.needs.name}", flush=True)
                        failed.append(run)
                        waiting.remove(run)
                    elif len(running) < len(slots) and (run.needs is None or run.needs in done) and may_start():
                        check()
                        running[pool.submit(_execute, run, live, workdir, machine)] = run
                        waiting.remove(run)
                if not running:  # none may start
                    break
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    run, process = running.pop(future), future.result()
                    _keep(run, process, workdir)
                    summary = run.summary() if process["exit_code"] == 0 else None
                    (failed if summary is None else done).append(run)
                    print(f"{run.name}: {_outcome(run, process, summary, workdir)}", flush=True)
        finally:
            for pid in list(live):  # only after Ctrl-C or SIGTERM
                os.kill(pid, signal.SIGTERM)
            for future, run in running.items():  # its seconds were spent
                with contextlib.suppress(UserError):  # why the folder can't be written is raised already
                    _keep(run, future.result(), workdir)
    return failed


def _take(free: queue.SimpleQueue) -> None:
    """Gives the calling thread a slot, and keeps it, with every process that it starts, to the slot's cores."""
    _mine.slot = free.get()
    if _mine.slot.cores:
        os.sched_setaffinity(0, _mine.slot.cores)


def _execute(run: Run, live: set[int], workdir: pathlib.Path, machine: Mapping) -> dict:
    """Runs one process to its end, whatever that is, and returns what is kept of it."""
    started, path = time.monotonic(), _log(run, workdir)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with files.checked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a")
    with log:
        process = subprocess.Popen(
            [*_mine.slot.command, *run.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    live.add(process.pid)
    _, status, usage = os.wait4(process.pid, 0)  # its own processor time, and that of the graders it started
    live.discard(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    record = {
        "run": run.name,
        "folder": str(run.folder.relative_to(workdir)),
        "started": at,
        "exit_code": process.returncode,
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        **machine,
    }
    return record


def _keep(run: Run, process: Mapping, workdir: pathlib.Path) -> None:
    """Keeps what has become of a process; called by one thread, since a bucket takes one line at a time.

    Raises:
      UserError: the folder can't be written.
    """
    with files.checked(workdir):
        if there := places.in_bucket(workdir):  # a program can't print into a bucket
            path = _log(run, workdir)
            (there / path.relative_to(logs_of(workdir)).as_posix()).upload(path)
        files.append(workdir / "processes.jsonl", json.dumps(process) + "\n")


def _log(run: Run, workdir: pathlib.Path) -> pathlib.Path:
    folder = logs_of(workdir) / run.folder.parent.relative_to(workdir)
    return folder / f"{run.folder.name}.log"  # not with_suffix: gamma=0.1 has no suffix


def _outcome(run: Run, process: Mapping, summary: Mapping | None, workdir: pathlib.Path) -> str:
    if summary is None:
        log = _log(run, workdir)
        lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
        # A progress bar that closes may stand after the error.
        why = next((line for line in reversed(lines) if re.match(r"error:|[\w.]+(Error|Exception):", line)), lines[-1])
        return f"failed with exit code {process['exit_code']}: {why or 'it printed nothing'} (see {log})"
    measured = (study_report.number(summary, (when, "pass@1")) for when in ("eval_before", "eval_after"))
    before, after = ("?" if value is None else f"{value:.3f}" for value in measured)
    accuracy = "" if before == after == "?" else f"pass@1 {before} -> {after}, "
    return f"{accuracy}{process['seconds']:.0f} s"
