"""What the processes of a run must have alike: configuration, questions, reward functions, models, checkpoints.

What they would compute differently, or hang over, is refused on all of them before they compute (agreement.py). Files
may lie elsewhere on each host, under the same names: what they hold is compared.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.sandbox.modules import Modules
from cgrpo_jax.runs import build_inference, keys, model_source
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.model_source import ModelSource
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import agreement, key_values, local_copies, processes
from cgrpo_jax.training import checkpoint_steps
from cgrpo_jax.training.checkpoint_steps import Step


def check_given(config: Config, writes: Mapping[str, str | pathlib.Path]) -> None:
    """Checks that all processes were given one configuration, and folders that are the same for all.

    Args:
      config: the configuration.
      writes: folders that are written, by the flags that name them.

    Raises:
      UserError: on all processes, where one was not.
    """
    agreement.check_same("configuration", of_config(config))
    for flag, folder in writes.items():
        agreement.check_shared(folder, flag=flag)


def of_config(config: Config) -> dict[str, Any]:
    """Returns the value of each key as all processes must have it; of a path, the name of the file alone.

    Example:
      >>> of_config(replaced(config, {"seed": 1, "model.folder": "/mnt/a/Qwen3-8B"}))
      {'seed': 1, ..., 'model.folder': 'Qwen3-8B', ...}
    """
    values = config_lib.flatten(config_lib.to_json(config))
    paths = {name for name, key, _ in keys.items(config) if key.is_path}
    return {name: _file_names(value) if name in paths else value for name, value in values.items()}


def _file_names(value: str | Sequence[str]) -> str | list[str]:
    if not isinstance(value, str):
        return [pathlib.PurePath(one).name for one in value]
    return ",".join(pathlib.PurePath(one).name for one in value.split(","))


def agreed_inputs(
    config: Config,
    settings: RunSettings,
    problems: Mapping[str, Sequence[Problem]],
    modules: Modules,
    *,
    checkpoints: pathlib.Path | None,
    step: Step,
) -> dict[str, str]:
    """Returns `fingerprints.of_all`, once all processes have found the same in all files that the run reads.

    Args:
      config, settings: of the run.
      problems, modules: by kind; that programs import.
      checkpoints: of the run, where its weights are read; `step` of them.

    Raises:
      UserError: they have not, or one can't read a file.
    """
    same: dict[str, str] = {}
    with processes.agree("reading the run's files"):
        inputs = fingerprints.of_all(
            config.gate_kind,
            problems,
            also=config.other_rewards,
            task=None if settings.stages.rows else task_of(config.data.kind),
        )
        inputs |= modules.digests() | build_inference.others_digest(config, settings.stages)
        if key_values.place()[1] > 1:
            same = of_inputs(problems, inputs)
            same |= of_models(config, settings.frozen_folders)
            if checkpoints and checkpoints.exists():
                same |= of_checkpoint(checkpoints, step, "the run's checkpoint")
    agreement.check_same("files", same)
    return processes.share(inputs)[0]  # in which functions have the names that process 0 knows them by


def of_inputs(problems: Mapping[str, Sequence[Problem]], inputs: Mapping[str, str]) -> dict[str, str]:
    """Returns what `fingerprints.of_all` returned of problems as all processes must have it.

    Args:
      problems: by kind, such as "training".
      inputs: their hashes, and those of the functions that grade them.
    """
    numbers = {f"the number of {kind} questions": str(len(some)) for kind, some in problems.items()}
    files = {
        f"the file of {pathlib.PurePath(name).name}" if fingerprints.is_function(name) else name: value
        for name, value in inputs.items()
    }
    return numbers | {f"the hash of {name}": value for name, value in files.items()}


def of_models(config: Config, folders: Mapping[str, str]) -> dict[str, str]:
    """Returns the hashes of the files that policy and frozen models are read from.

    Args:
      config: the configuration.
      folders: of the frozen models, by what they are.

    Raises:
      UserError: `model.init` holds no checkpoint.
    """
    found = _of_source(model_source.of_policy(config), "model")
    for whose, folder in folders.items():
        found |= _of_source(model_source.of_frozen(folder), whose)
    return found


def _of_source(source: ModelSource, whose: str) -> dict[str, str]:
    found = {}
    weights = local_copies.local(source.weights, suffixes=local_copies.MODEL) if source.weights else None
    for place in dict.fromkeys((source.description, source.tokenizer, weights)):
        if place and place.is_file():  # a SentencePiece file
            found[f"the {whose}'s {place.name}"] = fingerprints.of_file(place)
        elif place:
            files = sorted(path for path in place.iterdir() if path.suffix in local_copies.MODEL and path.is_file())
            found |= {f"the {whose}'s {place.name}/{path.name}": fingerprints.of_file(path) for path in files}
    return found | (of_checkpoint(source.init, None, f"the {whose}'s {source.init.name}") if source.init else {})


def of_checkpoint(directory: pathlib.Path, step: Step, name: str) -> dict[str, str]:
    """Returns the hash of a checkpoint, whose arguments are those of `checkpoint_steps.find`, under a name."""
    folder, number, _ = checkpoint_steps.find(directory, step)
    return {name: f"step {number}, {fingerprints.of_folder(folder / str(number))}"}
