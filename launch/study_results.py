"""The numbers of a study as one JSON file: what was asked, registered and run, and each run's row. Used by study.py."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import study_report
import study_sharing
from registration import Registration

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import files

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "results" / "studies"
VERSION = 1


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


def write(
    study: Mapping, name: str, runs: Sequence[Any], workdir: pathlib.Path, folder: pathlib.Path,
    registered: Registration, place: int,
) -> None:  # fmt: skip
    """Writes FOLDER/NAME.json.

    Args:
      study: from `study_file.load`.
      name: of the study.
      runs: all of it.
      workdir: that they are in, with processes.jsonl.
      folder: of the results.
      registered: the study's registration.
      place: in the list of studies, from 0.
    """
    found = numbers(study, runs, workdir, registered) | {"place": place}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / f"{name}.json", json.dumps({"study": name, **found}, indent=1) + "\n")


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
            "machine_seconds": round(machine_seconds(own), 3),
            "cpu_seconds": round(sum(study_report.number(one, ("cpu_seconds",)) or 0.0 for one in own), 3),
            "cpus": sorted({one["cpus"] for one in own if isinstance(one.get("cpus"), int)}),
            "commits": sorted({str(one.get("commit")) for one in own}),
            "first_start": min((str(one["started"]) for one in own if one.get("started")), default=""),
        },
        "rows": rows,
    }
