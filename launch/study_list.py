"""All studies of a list, one after the other, in one folder: what is missing is run while the hours last. For study.py.

Equal runs of several studies are one run (`study_sharing`). Every study is written as JSON, and as a table and a page
of its runs in DIR/NAME; what was left out is said.
"""

import dataclasses
import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import registration
import runner
import study_file
import study_report
import study_results
import study_sharing

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import files

ORDER = registration.ROOT / "configs" / "studies" / "order.py"


@dataclasses.dataclass(frozen=True)
class Listed:
    """A study of the list: its name, what its file holds, its runs, how it was registered."""

    name: str
    study: Mapping[str, Any]
    runs: Sequence[Any]
    registered: registration.Registration


def paths_of(order: pathlib.Path) -> list[pathlib.Path]:
    """Returns the study files of a list.

    Args:
      order: a Python file whose `get_order()` returns their paths.

    Raises:
      UserError: there is no such file, it fails to run, or two studies have one name.
    """
    if not order.is_file():
        raise UserError(f"--order {order} does not exist; give a file such as configs/studies/order.py")
    try:
        with config_lib.configs_found(order.resolve()):
            found = [pathlib.Path(one) for one in runpy.run_path(str(order))["get_order"]()]
    except Exception as error:
        raise UserError(f"--order {order} fails to load ({error}); see configs/studies/order.py") from error
    names = [one.stem for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--order {order} names {twice[0]} twice; give each study a file name of its own")
    return found


def load(order: pathlib.Path, workdir: pathlib.Path, plan: Callable[..., list[Any]], *, trains: bool) -> list[Listed]:
    """Returns the studies of a list with all their runs, each checked if it is to train.

    Args:
      order: as in `paths_of`.
      workdir: of the shared runs.
      plan: `study.plan`.
      trains: whether the runs must be such as can start.

    Raises:
      UserError: one of them can't be run, or files of one differ from what is committed.
    """
    found = []
    for path in paths_of(order):
        study = study_file.load(str(path))
        registered = registration.of_study(path, study)
        if trains and registered.changed:
            raise UserError(
                f"study {path.stem} is registered by a commit before it runs, and {', '.join(registered.changed)} "
                "differs from what is committed; commit it, then run."
            )
        found.append(Listed(path.stem, study, plan(study, workdir, trains=trains, shared=True), registered))
    return found


def prediction(listed: Sequence[Listed]) -> str:
    """Returns a table of the studies: runs, those that an earlier one has too, hours, and hours so far."""
    lines = ["| study | runs | shared with earlier ones | hours | hours so far |", "|---|---|---|---|---|"]
    seen: set[pathlib.Path] = set()
    total = 0.0
    for one in listed:
        new = [run for run in study_sharing.distinct(one.runs) if run.folder not in seen]
        arms = [run for run in study_sharing.distinct(one.runs) if run.is_arm]
        shared = sum(run.folder in seen for run in arms)
        hours = study_results.predicted_minutes(one.study, new) / 60
        total += hours
        lines.append(f"| [{one.name}]({one.name}.py) | {len(arms)} | {shared} | {hours:.1f} | {total:.1f} |")
        seen |= {run.folder for run in one.runs}
    return "\n".join(lines) + "\n"


def run_all(
    listed: Sequence[Listed], workdir: pathlib.Path, *, slots: Sequence[runner.Slot], hours: float,
    choose: Callable[[Listed], Sequence[Any]], check: Callable[[], None], results: pathlib.Path,
) -> list[Any]:  # fmt: skip
    """Runs what is missing, study by study, and returns what failed.

    Args:
      listed: the studies in their order.
      workdir: of the shared runs.
      slots: where they run.
      hours: of this machine, by the seconds of all processes in the folder: when they are used no further run starts.
      choose: of a study, the runs that are wanted.
      check: as in `runner.run_all`.
      results: folder of the studies' JSON.
    """

    def may_start() -> bool:
        return used(workdir) < hours

    registration.code()  # which commit runs, before anything is written
    failed: list[Any] = []
    for place, one in enumerate(listed):
        wanted = study_sharing.distinct(choose(one))
        if wanted:
            print(f"\n{one.name}: {one.study.get('question', '')}", flush=True)
            left = _without_failed(wanted, failed)
            failed += runner.run_all(left, slots=slots, workdir=workdir, check=check, may_start=may_start)
            write_page(one, workdir)
        write_results(one, workdir, results, place, wanted=bool(wanted))
    return failed


def _without_failed(wanted: Sequence[Any], failed: list[Any]) -> list[Any]:
    """Returns the runs of a study but for those that have failed in an earlier one, or that need such a run.

    The latter are added to `failed`; the former are there already.
    """
    folders = {run.folder: run for run in failed}
    left = []
    for run in wanted:
        if run.folder in folders:
            print(f"{run.name}: not started, it has failed as {folders[run.folder].name}", flush=True)
        elif run.needs and run.needs.folder in folders and run.summary() is None:
            print(f"{run.name}: not started, it needs {run.needs.name}", flush=True)
            failed.append(run)
        else:
            left.append(run)
    return left


def report(
    listed: Sequence[Listed], workdir: pathlib.Path, results: pathlib.Path, choose: Callable[[Listed], Sequence[Any]]
) -> None:
    """Writes all that `run_all` writes, of what is done, and runs nothing."""
    for place, one in enumerate(listed):
        write_page(one, workdir)
        write_results(one, workdir, results, place, wanted=bool(choose(one)))


def write_results(one: Listed, workdir: pathlib.Path, results: pathlib.Path, place: int, *, wanted: bool) -> None:
    """Writes a study's JSON; one of which no run is wanted is left as it is.

    Rows of runs that the study has stay, also where this workdir has not run them (`study_results.write`).
    """
    if wanted or not (results / f"{one.name}.json").exists():
        study_results.write(one.study, one.name, one.runs, workdir, results, one.registered, place, shared=True)


def check_results(listed: Sequence[Listed], results: pathlib.Path) -> None:
    """Raises a `UserError` if the JSON of a study is damaged: before anything runs, as rows of it are to stay."""
    for one in listed:
        if (results / f"{one.name}.json").exists():
            study_results.read(results, one.name)


def write_page(one: Listed, workdir: pathlib.Path) -> None:
    """Writes a study's table, the page of its runs and its entropy into WORKDIR/NAME, and prints the table."""
    if not any(run.is_arm and run.summary() is not None for run in one.runs):
        return
    own = {str(run.folder.relative_to(workdir)) for run in one.runs}
    processes = [process for process in study_report.processes_of(workdir) if process.get("folder") in own]
    folder = workdir / one.name
    with files.checked(folder):
        folder.mkdir(parents=True, exist_ok=True)
        print("\n" + study_report.write(one.study, one.runs, folder, processes))
        study_report.write_page(one.study, one.runs, folder)
        study_report.plot_entropy(one.study, one.runs, folder)


def used(workdir: pathlib.Path) -> float:
    """Returns the hours of this machine that the processes in a folder have taken."""
    return study_results.machine_seconds(study_report.processes_of(workdir)) / 3600


def left_out(listed: Sequence[Listed]) -> list[str]:
    """Returns what of each study is not done, in words."""
    found = []
    for one in listed:
        arms = [run for run in one.runs if run.is_arm]
        missing = sum(run.summary() is None for run in arms)
        if missing:
            found.append(f"{one.name}: {missing} of {len(arms)} runs")
    return found
