"""Runs the points of a sweep, each in a folder of its own, and collects their results into one table.

    python launch/sweep.py --sweep=configs/sweeps/quickstart.py --workdir=DIR
    python launch/sweep.py --sweep=FILE --workdir=SHARED/DIR --slices=a,b -- --topology=v6e:8x8 --zone=Z --project=P

  --sweep      file whose get_sweep() returns `config` and `points`; launch/points.py has what builds points
  --workdir    folder of the sweep, also gs://: DIR/POINT holds one run, DIR/POINT.log what it printed (in a bucket
               when it has ended; until then it lies under ~/.cache/cgrpo_jax/logs); of a point whose name is too long
               for a folder, its beginning and a digest. One sweep at a time works in it
  --jobs       runs at once on this machine, each on its share of the cores (default: 1)
  --slices     names of TPU slices instead: each takes one point at a time, through launch/tpu_pod.py with the flags
               after --; it is created when its first point starts and, unless --keep is among these, deleted at the
               end. DIR must be a folder that this machine and all hosts of the slices see under the same path, or a
               bucket; DIR/pods/NAME (beside the logs, where DIR is in a bucket) holds what the hosts of a slice print.
               What tpu_pod.py refuses is refused at once
  --only       regular expression of the points to run; the table has all that are done
  --dry-run    say of every point whether it is done and what would be started

The same command again resumes where the last one stopped: finished points stay, an interrupted one resumes. A point
that fails does not stop the others; the exit status is then 1. The table is also in DIR/table.md, all numbers in
DIR/results.json.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import command_line
import runner
import study_report
import tpu_pod

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import files, places

TPU_POD = (sys.executable, str(pathlib.Path(__file__).with_name("tpu_pod.py")))
_LONGEST_NAME, _DIGITS = 200, 12  # of a folder: file systems have 255 bytes at most, and files beside it add to it
_TAKEN = ("pods", "table.md", "results.json", "processes.jsonl", "processes.jsonl.log")  # in the sweep's folder
COLUMNS = (("pass@1 before", ("eval_before", "pass@1"), 1, 3), *study_report.COLUMNS)


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of the sweep; `config` is what its config.json must hold."""

    name: str
    folder: pathlib.Path
    overrides: Mapping[str, Any]
    arguments: Sequence[str]
    config: Mapping[str, Any]
    needs: None = None

    def summary(self) -> dict | None:
        """Returns the results, or None unless the run has finished with the configuration that the sweep now has."""
        return runner.summary(self.folder, self.config, list(self.overrides))

    def state(self) -> str:
        """Returns `done`, `resumes` or `new`."""
        if self.summary() is not None:
            return "done"
        return "resumes" if RunDir(self.folder).config.exists() else "new"


def load(path: str) -> dict:
    """Returns the sweep of a sweep file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"sweep file {path} does not exist; give one like configs/sweeps/quickstart.py")
    try:
        sweep = runpy.run_path(path)["get_sweep"]()
        runner.expect("get_sweep()", sweep, Mapping, "a dict of `config` and `points`")
        if missing := sorted({"config", "points"} - sweep.keys()):
            raise KeyError(f"{', '.join(missing)} in get_sweep()")
        runner.expect("config", sweep["config"], (str, pathlib.Path), "a path")
        runner.expect("points", sweep["points"], Mapping, "a dict from names to overrides")
        for name, overrides in sweep["points"].items():
            runner.expect("a point's name", name, str, "a string")
            runner.expect_overrides(f"point {name!r}", overrides)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".replace("KeyError:", "it lacks").replace("UserError: ", "")
        raise UserError(f"sweep file {path} fails to load: {what}; see configs/sweeps/quickstart.py") from error
    if not sweep["points"]:
        raise UserError(f"sweep file {path} has no points; see configs/sweeps/quickstart.py")
    return sweep


def plan(sweep: Mapping, workdir: pathlib.Path) -> list[Point]:
    """Returns all points, in the order of the file.

    Raises:
      UserError: an override names a key that no configuration has, or a value of a wrong type, what no run can have, or
        what nothing reads; two points would have one folder.
    """
    found = []
    taken = {name: "the sweep itself" for name in _TAKEN}
    for name, overrides in sweep["points"].items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*", name):
            raise UserError(f"point {name!r} can't name a folder; use letters, digits and any of _.,=+-")
        changes = [f"--config.{key}={value}" for key, value in overrides.items()]
        config = config_lib.load(sweep["config"])
        config_lib.override(config, changes)
        arguments = [f"--config={sweep['config']}", f"--workdir={workdir / folder_name(name)}", *changes]
        try:
            validate.check(config_lib.freeze(config))
            cli.parse(arguments, flags={"config": cli.CONFIG, "workdir": cli.WORKDIR})  # also keys that nothing reads
        except UserError as error:
            raise UserError(f"point {name}: {error}") from error
        folder = workdir / folder_name(name)
        for used in (folder.name, f"{folder.name}.log"):
            if used in taken:
                raise UserError(f"point {name}: its {used} is that of {taken[used]}; give the point another name")
            taken[used] = f"point {name}"
        found.append(Point(name, folder, overrides, arguments, config_lib.to_json(config_lib.freeze(config))))
    return found


def folder_name(name: str) -> str:
    """Returns the name of a point's folder: the point's own, shortened where a file system would not take it.

    Example:
      >>> folder_name("seed=0"), len(folder_name("a" * 1000))
      ('seed=0', 200)
    """
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return f"{name[: _LONGEST_NAME - _DIGITS - 1]}-{digest}"


def select(points: Sequence[Point], only: str) -> list[Point]:
    """Returns the points whose name the regular expression matches."""
    try:
        chosen = [point for point in points if re.search(only, point.name)]
    except re.error as error:
        raise UserError(f"--only={only} is not a regular expression ({error}); give one such as seed=0") from error
    if not chosen:
        raise UserError(f"--only={only} matches no point; the first is {points[0].name}")
    return chosen


def slots_on(slices: Sequence[str], pod_flags: Sequence[str], workdir: pathlib.Path) -> list[runner.Slot]:
    """Returns a slot a slice. A slice is kept between points, and resumes a point that it was preempted in.

    Raises:
      UserError: a slice is named twice, or a flag is given that every slice has its own value of.
    """
    for name in slices:
        if slices.count(name) > 1:
            raise UserError(f"--slices={','.join(slices)} names {name} twice; a slice takes one point at a time")
    for flag in pod_flags:
        if re.match(r"--?(name|logs)(=|$)", flag):
            raise UserError(f"{flag} after -- is set for each slice: --slices names them, DIR/pods has their logs")
    flags = [flag for flag in pod_flags if flag != "--keep"]
    train = ["python", *runner.TRAIN[1:]]
    logs = runner.logs_of(workdir) / "pods"
    own = {name: [f"--name={name}", f"--logs={logs / name}"] for name in slices}
    return [runner.Slot([*TPU_POD, *own[name], "--keep", *flags, "--", *train]) for name in slices]


def check_slots(slots: Sequence[runner.Slot], points: Sequence[Point]) -> None:
    """Raises the `UserError` of tpu_pod.py if it would refuse a slice or a point."""
    for at in range(max(len(slots), len(points))):
        given = [*slots[at % len(slots)].command[len(TPU_POD) :], *points[at % len(points)].arguments]
        tpu_pod.check(**command_line.parse(given, flags=tpu_pod.FLAGS, require=tpu_pod.REQUIRED))


def report(points: Sequence[Point], workdir: pathlib.Path) -> str:
    """Writes table.md and results.json, and returns the table of what is done."""
    done = {point: summary for point in points if (summary := point.summary()) is not None}
    rows = [["point", *(column[0] for column in COLUMNS)], ["---"] * (len(COLUMNS) + 1)]
    for point, summary in done.items():
        values = [(study_report.number(summary, path), unit, digits) for _, path, unit, digits in COLUMNS]
        rows.append([point.name, *("" if v is None else f"{v / unit:.{digits}f}" for v, unit, digits in values)])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    text += f"\n\n{len(done)} of {len(points)} points done.\n"
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_atomically(workdir / "table.md", text)
    results = [{"point": p.name, "overrides": p.overrides, "summary": summary} for p, summary in done.items()]
    files.write_atomically(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    return text


def _is_ours(check: Callable[[], None]) -> bool:
    try:
        check()
    except UserError:  # of another sweep, in a bucket, which may have the slices now
        return False
    return True


def main(
    sweep: str,
    workdir: str,
    jobs: int,
    slices: str,
    only: str,
    dry_run: bool,
    command: Sequence[str],
    train: Sequence[str] = runner.TRAIN,
) -> None:
    """Runs what is left of the sweep, and reports."""
    if jobs < 1:
        raise UserError(f"--jobs={jobs} runs nothing; use at least 1")
    names = [name for name in slices.split(",") if name]
    if command and not names:
        raise UserError("flags after -- are those of the slices; give --slices=NAME,NAME too")
    if names and not places.place(workdir).is_absolute():
        raise UserError(f"--workdir={workdir} is not shared with the slices; give the absolute path of a shared folder")
    folder = places.place(workdir).resolve()
    points = plan(load(sweep), folder)
    chosen = select(points, only)
    slots = slots_on(names, command, folder) if names else runner.local_slots(jobs, train)
    if names:
        check_slots(slots, chosen)
    if dry_run:
        for at, point in enumerate(chosen):
            line = shlex.join([*slots[at % len(slots)].command, *point.arguments])
            print(f"{point.name}: {point.state()}" + ("" if point.state() == "done" else f"\n  {line}"))
        return
    with runner.locked(folder) as check:
        try:
            failed = runner.run_all(chosen, slots=slots, workdir=folder, check=check)
        finally:
            if "--keep" not in command and _is_ours(check):
                for name in names:
                    flags = [f"--name={name}", "--delete", *command]
                    subprocess.run([*TPU_POD, *flags], check=False)  # what it says is for the user to read
        with files.checked(folder):
            print("\n" + report(points, folder), end="")
    if failed:
        print(f"{len(failed)} points failed: {', '.join(point.name for point in failed)}")
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the runs as Ctrl-C does
    command_line.run(
        main,
        doc=__doc__,
        require=("sweep", "workdir"),
        flags={
            "sweep": cli.Flag("sweep file"),
            "workdir": cli.WORKDIR,
            "jobs": cli.Flag("runs at once", int, 1),
            "slices": cli.Flag("names of TPU slices, with commas", str, ""),
            "only": cli.Flag("regular expression of the points", str, ""),
            "dry_run": command_line.DRY_RUN,
        },
    )
