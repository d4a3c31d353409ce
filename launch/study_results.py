"""The numbers of a study as one JSON file: what was asked, registered and run, and each run's row. Used by study.py."""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import study_report
import study_sharing
from registration import Registration

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import files
from cgrpo_jax.runtime.json_files import read_json_object

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "results" / "studies"
VERSION = 1
_Taken = Mapping[str, Mapping[str, float]]  # from folders to the seconds that their processes have taken

# What is read of a study's file, with its kinds; a list holds the kind of its items.
_FORM: Mapping[str, Any] = {
    "study": str,
    "question": str,
    "paper": str,
    "decides": str,
    "columns": [{"name": str, "unit": float, "digits": int}],
    "measured": str,
    "settings": [{"name": str, "label": str}],
    "arms": [{"name": str, "label": str, "sees": str, "against": {}}],
    "registered": {"commit": str, "time": str, "changed": [str]},
    "tasks": [str],
    "predicted_minutes": float,
    "runs": int,
    "cost": {"machine_seconds": float, "cpu_seconds": float, "cpus": [int], "commits": [str], "first_start": str},
    "rows": [{"setting": str, "arm": str, "seed": int, "run": str, "machine_seconds": float, "numbers": {}}],
    "place": int,
}


def machine_seconds(processes: Sequence[Mapping]) -> float:
    """Returns how long processes have taken a machine: each the share of it that it had.

    Example: two processes of 60 s, which ran side by side (`jobs` is 2), have taken 60 s.
    """
    return sum(
        (study_report.number(one, ("seconds",)) or 0.0) / (study_report.number(one, ("jobs",)) or 1.0)
        for one in processes
    )


def predicted_minutes(study: Mapping, runs: Sequence[Any]) -> float:
    """Returns how long runs of a study are expected to take the machine, by the minutes that its settings state.

    Args:
      study: from `study_file.load`.
      runs: of it, each folder of which counts once.
    """
    minutes = {one["name"]: {"run": 1.0, "warm_start": 1.0} | one.get("minutes", {}) for one in study["settings"]}
    times = {one["name"]: one.get("times", 1.0) for one in study["arms"]}
    return sum(
        minutes[run.setting]["run"] * times[run.arm] if run.is_arm else minutes[run.setting]["warm_start"]
        for run in study_sharing.distinct(runs)
    )


def read(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns what FOLDER/NAME.json holds.

    Raises:
      UserError: it is missing or damaged, or lacks a key that is read of it.
    """
    path = folder / f"{name}.json"
    fix = "restore it from a copy, or remove it and run its study again with --report"
    found = read_json_object(path, missing=fix, broken=fix)
    if missing := sorted(_FORM.keys() - found.keys()):
        raise UserError(f"{path} is no study's: it lacks {', '.join(missing)}; {fix}")
    if wrong := next(_wrong(found, _FORM, ""), "") or _unfit(found):
        raise UserError(f"{path} is no study's: {wrong}; {fix}")
    return found


def _unfit(found: Mapping[str, Any]) -> str:
    """Returns what of a study's file does not go with the rest of it; empty where all does."""
    columns, arms = ({one["name"] for one in found[key]} for key in ("columns", "arms"))
    if found["decides"] not in columns:
        return f"decides is {found['decides']!r}, which is no column"
    if others := {other for arm in found["arms"] for other in arm["against"]} - arms:
        return f"an arm's against is {min(others)!r}, which is no arm"
    for place, column in enumerate(found["columns"]):
        if not column["unit"]:
            return f"columns[{place}].unit is {column['unit']!r}"
    for place, row in enumerate(found["rows"]):
        for key, value in row["numbers"].items():
            if value is not None and type(value) not in (int, float):
                return f"rows[{place}].numbers.{key} is {value!r:.60}"
    return ""


def _wrong(value: Any, form: Any, where: str) -> Iterator[str]:
    """Yields what a value lacks, or has of another kind than its form says."""
    kind = {dict: dict, list: list}.get(type(form), form)
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds or (kind is float and not math.isfinite(value)):
        yield f"{where} is {value!r:.60}"
    elif isinstance(form, dict):
        for key, part in form.items():
            at = f"{where}.{key}" if where else key
            if key not in value:
                yield f"it lacks {at}"
            else:
                yield from _wrong(value[key], part, at)
    elif isinstance(form, list):
        for number, item in enumerate(value):
            yield from _wrong(item, form[0], f"{where}[{number}]")


def write(
    study: Mapping, name: str, runs: Sequence[Any], workdir: pathlib.Path, folder: pathlib.Path,
    registered: Registration, place: int | None = None, *, shared: bool = False,
) -> None:  # fmt: skip
    """Writes FOLDER/NAME.json.

    Args:
      study: from `study_file.load`.
      name: of the study.
      runs: all of it.
      workdir: that they are in, with processes.jsonl.
      folder: of the results.
      registered: the study's registration.
      place: in the list of studies, from 0; None: that of the file that is there, else 0.
      shared: whether the runs' folders are named by what makes them (`study_sharing`). Then rows of the file that is
        there stay where the study still has their run, and this workdir has not.

    Raises:
      UserError: the file that is there is damaged.
    """
    old = read(folder, name) if (folder / f"{name}.json").exists() else None
    if place is None:
        place = old["place"] if old else 0
    found = numbers(study, runs, workdir, registered) | {"place": place}
    if shared and old:
        found = _with_rows_of(old, found, runs, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / f"{name}.json", json.dumps({"study": name, **found}, indent=1) + "\n")


def _with_rows_of(old: Mapping, found: dict[str, Any], runs: Sequence[Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the numbers of a study with the old rows of runs that it still has, and that are not done here.

    A row is of a run by its folder's name, a digest, whatever the study called its arm then. What an old run has cost
    stays with it.
    """
    new = {(row["setting"], row["arm"], row["seed"]): row for row in found["rows"]}
    before = {row["run"]: row for row in old["rows"]}
    columns = [column["name"] for column in found["columns"]]
    rows, kept = [], {}
    for run in (one for one in runs if one.is_arm):
        at, place = (run.setting, run.arm, run.seed), str(run.folder.relative_to(workdir))
        if at in new:
            rows.append(new[at])
        elif place in before:
            kept[place] = before[place]
            values = {column: before[place]["numbers"].get(column) for column in columns}
            rows.append(before[place] | {"setting": run.setting, "arm": run.arm, "seed": run.seed, "numbers": values})
    taken = {place: {"machine_seconds": row["machine_seconds"], "cpu_seconds": 0.0} for place, row in kept.items()}
    taken |= old["cost"].get("taken", {})
    here = found["cost"]["taken"]
    planned = {str(run.folder.relative_to(workdir)) for run in runs}
    of_old = {
        place: one
        for place, one in taken.items()
        if place in planned
        and (place not in here or (place in kept and one["machine_seconds"] > here[place]["machine_seconds"]))
    }
    return found | {"rows": rows, "cost": _joined(found["cost"], old["cost"], of_old) if of_old else found["cost"]}


def _joined(cost: Mapping[str, Any], old: Mapping[str, Any], of_old: _Taken) -> dict[str, Any]:
    """Returns a cost with that of the folders which an old one alone has."""
    starts = [one["first_start"] for one in (cost, old) if one["first_start"]]
    return _total({**cost["taken"], **of_old}) | {
        "cpus": sorted({*cost["cpus"], *old["cpus"]}),
        "commits": sorted({*cost["commits"], *old["commits"]}),
        "first_start": min(starts, default=""),
    }


def _total(taken: _Taken) -> dict[str, Any]:
    """Returns the seconds of all folders, with those of each."""
    sums = {key: round(sum(one[key] for one in taken.values()), 3) for key in ("machine_seconds", "cpu_seconds")}
    return {**sums, "taken": dict(taken)}


def _seconds(processes: Sequence[Mapping]) -> dict[str, float]:
    cpu = sum(study_report.number(one, ("cpu_seconds",)) or 0.0 for one in processes)
    return {"machine_seconds": round(machine_seconds(processes), 3), "cpu_seconds": round(cpu, 3)}


def numbers(study: Mapping, runs: Sequence[Any], workdir: pathlib.Path, registered: Registration) -> dict[str, Any]:
    """Returns what a study's file holds, but for its name: what was asked, what it cost, and a row of each run done.

    A row has the values of the study's columns, None where one was not measured. `machine_seconds` of a run are those
    of all its processes, also of interrupted ones; where several studies have a run, each counts it.
    """
    processes = study_report.processes_of(workdir)
    by_folder: dict[str, list[Mapping]] = {}
    for one in processes:
        by_folder.setdefault(str(one.get("folder")), []).append(one)
    places = {run: str(run.folder.relative_to(workdir)) for run in runs}
    own = [one for place in dict.fromkeys(places.values()) for one in by_folder.get(place, [])]
    columns = study_report.columns_of(study)
    done = {run: found for run in runs if run.is_arm and (found := run.summary()) is not None}
    rows = [
        {
            "setting": run.setting,
            "arm": run.arm,
            "seed": run.seed,
            "run": places[run],
            "machine_seconds": round(machine_seconds(by_folder.get(places[run], [])), 3),
            "numbers": {name: study_report.number(found, path) for name, path, *_ in columns},
        }
        for run, found in done.items()
    ]
    return {
        "version": VERSION,
        "question": study.get("question", ""),
        "paper": study.get("paper", ""),
        "decides": study.get("decides", columns[0][0]),
        "columns": [{"name": name, "unit": unit, "digits": digits} for name, _, unit, digits in columns],
        "measured": study.get("measured", ""),
        "settings": [{"name": one["name"], "label": one["label"]} for one in study["settings"]],
        "arms": [
            {key: one[key] for key in ("name", "label", "sees")}
            | {"against": dict(one.get("against", {})), "overrides": config_lib.to_json(one["overrides"])}
            for one in study["arms"]
        ],
        "registered": {
            "commit": registered.commit,
            "time": registered.time,
            "files": list(registered.files),
            "changed": list(registered.changed),
        },
        "tasks": sorted({str(task_of(run.config["data"]["kind"])) for run in runs}),
        "predicted_minutes": round(predicted_minutes(study, runs), 1),
        "runs": sum(run.is_arm for run in runs),
        "cost": {
            **_total(
                {place: _seconds(by_folder[place]) for place in dict.fromkeys(places.values()) if place in by_folder}
            ),
            "cpus": sorted({one["cpus"] for one in own if isinstance(one.get("cpus"), int)}),
            "commits": sorted({str(one.get("commit")) for one in own}),
            "first_start": min((str(one["started"]) for one in own if one.get("started")), default=""),
        },
        "rows": rows,
    }
