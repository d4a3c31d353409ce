"""Runs that several studies share: a folder for each different run, named by a digest of what makes it. For study.py.

A run of equal settings is made once, whatever the studies, arms and settings are called that it belongs to.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import runner

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, recipes, resume_policy
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime.json_files import read_json_object

FOLDER = "runs"
_DIGITS = 16


class Made(Protocol):
    """What makes a run: its configuration, or the steps of its recipe, which name its folder."""

    folder: pathlib.Path
    config: Mapping[str, Any]
    steps: Any


def folder_of(run: Made, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a run among the shared ones of `workdir`.

    The digest is of the command, the version of the task, and the keys that differ from the defaults, so that a key
    which comes into being later changes no name. Weights that a run starts from are in it by their own folder's name.

    Args:
      run: planned, in any folder.
      workdir: of the studies.
    """
    alone = [{"command": "train", "config": run.config}]
    made: list[dict[str, Any]] = recipes.kept_of(run.steps)["steps"] if run.steps else alone
    for step in made:
        step["config"] = _set(step["config"])
        step["task"] = task_of(step["config"].get("data.kind", _defaults()["data.kind"]))
    text = json.dumps(made, sort_keys=True).replace(str(run.folder), "RUN").replace(str(workdir), "DIR")
    return workdir / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def check_folders(study: str, runs: Iterable[Any]) -> None:
    """Checks that the folders of runs which are not done hold them as they are now, so that they can go on there.

    Since the digest leaves out keys at their defaults, a default that has changed gives another run the same folder.

    Args:
      study: its name.
      runs: of it, those that are to be done.

    Raises:
      UserError: a folder has work of another configuration.
    """
    for run in distinct(runs):
        if run.summary() is None and (found := _changed(run)):
            raise UserError(
                f"study {study}: {run.folder} holds {run.name} with another configuration ({'; '.join(found[:3])}), as "
                "where a default has changed since; give another --workdir, or remove that folder"
            )


def _changed(run: Any) -> list[str]:
    """Returns by which keys the work in a run's folder is of another run, as `cgrpo train` and `recipe` refuse it."""
    try:
        if run.steps:
            path = run.folder / "recipe.json"
            if not path.exists():
                return []
            done = {one.step.name for one in run.steps if one.is_done()}
            return recipes.changed(
                read_json_object(path).get("steps", []), recipes.kept_of(run.steps)["steps"], done=done
            )
        paths = RunDir(run.folder)
        if not paths.config.exists() or not any(path.name.isdigit() for path in paths.checkpoints.glob("*")):
            return []
        return runner.differences(
            read_json_object(paths.config), run.config, list(run.overrides), resume_policy.TRAINING
        )
    except UserError:  # whoever opens the folder says so
        return []


def _set(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a configuration that are not as the defaults have them."""
    defaults = _defaults()
    return {key: value for key, value in config_lib.flatten(config).items() if defaults.get(key) != value}


@functools.cache
def _defaults() -> dict[str, Any]:
    return config_lib.flatten(config_lib.to_json(base.get_config().to_dict()))


def distinct(runs: Iterable[Any]) -> list[Any]:
    """Returns the runs in their order, of those with one folder the first alone."""
    found: dict[pathlib.Path, Any] = {}
    for run in runs:
        found.setdefault(run.folder, run)
    return list(found.values())
