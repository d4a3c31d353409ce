"""Runs a study: trains every arm, seed and setting of a study file, and prints one table.

    python launch/study.py --study=configs/studies/arithmetic.py --workdir=DIR

  --study      file whose get_study() returns the arms, such as configs/studies/arithmetic.py
  --workdir    folder of the study: DIR/SETTING/ARM/seedN holds one run, DIR/SETTING/ARM/seedN.log what it printed
  --jobs       runs at once, each on its share of the cores (default: 2); 1 on an accelerator
  --only       regular expression: of all runs, those whose SETTING/ARM/seedN it matches, and their warm starts
  --report     train nothing, print the table of what is done

The same command again goes on where the last one stopped: finished runs stay, an interrupted one resumes. The table is
also written to DIR/table.md, every number to DIR/results.json and, with matplotlib, the entropy to DIR/entropy.png.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import study_report

from cgrpo_jax import cli
from cgrpo_jax import config as config_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.rundir import RunDir

TRAIN = (sys.executable, "-m", "cgrpo_jax.train")
WARM_START = "warm_start"

# What a study file must name.
KEYS = {
    "study": {"config", "settings", "arms", "entropy"},
    "settings": {"name", "label", "overrides", "headline_only"},
    "arms": {"name", "label", "sees", "overrides", "headline", "seeds"},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of the study; `config` is what config.json must hold, `needs` the run whose weights it starts from."""

    setting: str
    arm: str
    seed: int
    folder: pathlib.Path
    overrides: Mapping[str, Any]
    arguments: Sequence[str]
    config: Mapping[str, Any]
    needs: "Run | None" = None

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.arm}/seed{self.seed}"

    def summary(self) -> dict | None:
        """Returns the results, or None unless the run has finished with the configuration that the study now has."""
        paths = RunDir(self.folder)
        if not paths.summary.exists() or (self.needs and self.needs.summary() is None):
            return None
        was = json.loads(paths.config.read_text(encoding="utf-8"))
        # Keys that came into being after the run don't outdate it, unless the study sets them.
        added = config_lib.flatten(self.config).keys() - config_lib.flatten(was).keys() - self.overrides.keys()
        if config_lib.differences(was, self.config, sorted(added)):
            return None
        summary = json.loads(paths.summary.read_text(encoding="utf-8"))
        # A run that was made longer keeps its old summary until it ends.
        return summary if summary["iterations"] == self.config["num_iterations"] else None


def load(path: str) -> dict:
    """Returns the study of a study file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"study file {path} does not exist; give one like configs/studies/arithmetic.py")
    try:
        study = runpy.run_path(path)["get_study"]()
        for kind, keys in KEYS.items():
            for item in [study] if kind == "study" else study[kind]:
                if missing := sorted(keys - item.keys()):
                    raise KeyError(f"{', '.join(missing)} in {item.get('name', 'get_study()')}")
    except Exception as error:
        what = f"{type(error).__name__}: {error}".replace("KeyError:", "it lacks")
        raise UserError(f"study file {path} fails to load: {what}; see configs/studies/arithmetic.py") from error
    return study


def plan(study: Mapping, workdir: pathlib.Path) -> list[Run]:
    """Returns all runs in the order in which they start: seed by seed, in each the headline arms first.

    Raises:
      UserError: an override names a key that no configuration has, or a value of a wrong type.
    """

    def make(setting: Mapping, arm: str, seed: int, overrides: Mapping, needs: Run | None = None) -> Run:
        overrides = {**setting["overrides"], **overrides, "seed": seed}
        folder = workdir / setting["name"] / arm / f"seed{seed}"
        changes = [f"--config.{key}={value}" for key, value in overrides.items()]
        config = config_lib.load(study["config"])
        config_lib.override(config, changes)
        arguments = [f"--config={study['config']}", f"--workdir={folder}", *changes]
        return Run(setting["name"], arm, seed, folder, overrides, arguments, config_lib.to_json(config), needs)

    runs, warm_starts = [], {}
    jobs = [
        (seed, not arm["headline"], setting, arm)
        for setting in study["settings"]
        for arm in study["arms"]
        for seed in arm["seeds"]
        if arm["headline"] or not setting["headline_only"]
    ]
    for seed, _, setting, arm in sorted(jobs, key=lambda job: job[:2]):  # stable: otherwise in the file's order
        at = setting["name"], seed
        if at not in warm_starts:
            # Each arm evaluates these weights itself before it trains.
            warm_starts[at] = make(setting, WARM_START, seed, {"num_iterations": 0, "data.num_eval": 0})
            runs.append(warm_starts[at])
        init = {"model.init": str(warm_starts[at].folder / "checkpoints"), "warm_start.num_updates": 0}
        runs.append(make(setting, arm["name"], seed, {**arm["overrides"], **init}, warm_starts[at]))
    return runs


def select(runs: Sequence[Run], only: str) -> list[Run]:
    """Returns the arms' runs whose name the regular expression matches, and the warm starts that they need."""
    try:
        chosen = [run for run in runs if run.needs and re.search(only, run.name)]
    except re.error as error:
        raise UserError(f"--only={only} is not a regular expression ({error}); give one such as seed0") from error
    if not chosen:
        raise UserError(f"--only={only} matches no run; the first is {runs[1].name}")
    return [run for run in runs if run in chosen or any(run is arm.needs for arm in chosen)]


def run_all(runs: Sequence[Run], *, jobs: int, workdir: pathlib.Path, command: Sequence[str] = TRAIN) -> list[Run]:
    """Runs what is not done, `jobs` at once, and returns what failed. A run waits for the one that it needs.

    Args:
      runs: in the order in which they are to start, a run after the one that it needs.
      jobs: processes at once; each gets an equal share of the cores.
      workdir: of the study; every process that ends adds a line to its processes.jsonl.
      command: what is started, with a run's arguments after it.
    """
    done = [run for run in runs if run.summary() is not None]
    waiting = [run for run in runs if run not in done]
    print(f"{len(done)} of {len(runs)} runs are done", flush=True)
    failed, running, live = [], {}, set()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir} can't be written ({error}); give another --workdir") from error
    machine = {"commit": _commit(), "cpus": os.cpu_count()}
    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=_pin, initargs=(_shares(jobs),)) as pool:
        try:
            while waiting or running:
                for run in list(waiting):
                    if run.needs in failed:
                        print(f"{run.name}: not started, it needs {run.needs.name}", flush=True)
                        failed.append(run)
                        waiting.remove(run)
                    elif len(running) < jobs and (run.needs is None or run.needs in done):
                        running[pool.submit(_execute, run, command, live, workdir, machine)] = run
                        waiting.remove(run)
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    run, process = running.pop(future), future.result()
                    summary = run.summary() if process["exit_code"] == 0 else None
                    (failed if summary is None else done).append(run)
                    print(f"{run.name}: {_outcome(run, process, summary)}", flush=True)
        finally:
            for pid in list(live):  # only after Ctrl-C or SIGTERM
                os.kill(pid, signal.SIGTERM)
    return failed


def _shares(jobs: int) -> queue.SimpleQueue:
    """Returns a queue with each job's cores; None where a process can't be kept to some cores."""
    shares: queue.SimpleQueue = queue.SimpleQueue()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    for job in range(jobs):
        share = cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs]
        shares.put(share or (cores and [cores[job % len(cores)]]))
    return shares


def _pin(shares: queue.SimpleQueue) -> None:
    """Keeps the calling thread, and with it every process that it starts, to its share of the cores."""
    if cores := shares.get():
        os.sched_setaffinity(0, cores)


def _execute(run: Run, command: Sequence[str], live: set[int], workdir: pathlib.Path, machine: Mapping) -> dict:
    """Runs one process to its end, whatever that is, and returns what it adds to processes.jsonl."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with run.folder.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(
            [*command, *run.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    live.add(process.pid)
    _, status, usage = os.wait4(process.pid, 0)  # its own processor time, and that of the graders it started
    live.discard(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    record = {
        "run": run.name,
        "exit_code": process.returncode,
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        **machine,
    }
    with (workdir / "processes.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record


def _outcome(run: Run, process: Mapping, summary: Mapping | None) -> str:
    if summary is None:
        log = run.folder.with_suffix(".log")
        lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
        # A progress bar that closes may stand after the error.
        why = next((line for line in reversed(lines) if re.match(r"error:|[\w.]+(Error|Exception):", line)), lines[-1])
        return f"failed with exit code {process['exit_code']}: {why or 'it printed nothing'} (see {log})"
    before, after = (study_report.number(summary, (when, "pass@1")) for when in ("eval_before", "eval_after"))
    accuracy = "" if after is None else f"pass@1 {before:.3f} -> {after:.3f}, "
    return f"{accuracy}{process['seconds']:.0f} s"


def _commit() -> str:
    """Returns the commit of this file's repository, with `+` if files differ from it."""

    def git(*arguments: str) -> str:
        here = pathlib.Path(__file__).parent
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(study: str, workdir: str, jobs: int, only: str, report: bool, command: Sequence[str] = TRAIN) -> None:
    """Trains what is left, unless only the report is asked for, and reports."""
    if jobs < 1:
        raise UserError(f"--jobs={jobs} runs nothing; use at least 1")
    folder = pathlib.Path(workdir).resolve()
    arms = load(study)
    runs = plan(arms, folder)
    chosen = select(runs, only)
    if report and not folder.is_dir():
        raise UserError(f"--workdir {workdir} does not exist; leave --report out to train")
    failed = [] if report else run_all(chosen, jobs=jobs, workdir=folder, command=command)
    print("\n" + study_report.write(arms, runs, folder))
    study_report.plot_entropy(arms, runs, folder / "entropy.png")
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(run.name for run in failed)}")
        sys.exit(1)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the runs as Ctrl-C does
    cli.run(
        main,
        require=("study", "workdir"),
        flags={
            "study": cli.Flag("study file"),
            "jobs": cli.Flag("runs at once", int, 2),
            "only": cli.Flag("regular expression of the runs", str, ""),
            "report": cli.Flag("only report", bool, False),
        },
    )
