"""The configuration of a run that is there: its folder is enough to resume, sample, evaluate or diagnose it.

config = read("runs/quickstart")         # a ConfigDict, which flags may change; None where there is no run
check_same_model(other, RunDir("runs/quickstart"))
"""

import pathlib

from ml_collections import config_dict

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, old_keys
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.refinement_sections import Critic
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, files, places
from cgrpo_jax.runtime.json_files import read_json_object

# Where a model lies, which may have moved since; all else of it is what the run's weights are of.
_PLACES = ("model.folder", "model.init", "model.tokenizer", "critic.folder")


def read(workdir: str | pathlib.Path) -> config_dict.ConfigDict | None:
    """Returns the configuration that a run's `config.json` holds, also one of an earlier version; None without a run.

    Keys that the run's version did not have yet are as they were then (`old_keys`), else their defaults.

    Raises:
      UserError: the file is damaged, or has a key, or a value, that this version does not know.
    """
    path = RunDir(workdir).config
    with files.checked(path):
        if not path.is_file():
            return None
    fix = "restore it from a copy, or give the configuration with --config"
    values = config_lib.flatten(old_keys.translate(read_json_object(path, missing=fix, broken=fix)))
    config = base.get_config()
    known = config_lib.flatten(config.to_dict())
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{path} has {key}, which is no key of this version; give a configuration with --config.")
        is_number = isinstance(known[key], float) and value in ("inf", "-inf", "nan")  # as JSON has them
        try:
            config.update_from_flattened_dict({key: float(value) if is_number else config_lib.tuples(value)})
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: {key} can't be {value!r}; {fix}.") from error
    return config


def keep_defaults(config: config_dict.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Gives a file's configuration the defaults that the run in a folder was started with, where these were others.

    They would be refused as those of another run. A folder without a run, or one that can't be read, changes nothing.
    """
    path = RunDir(workdir).config
    if places.is_elsewhere(path):  # the machines that will run it look there
        return
    with files.checked(path):
        if not path.is_file():
            return
    try:
        old = read_json_object(path, missing="", broken="")
    except UserError:  # whoever opens the folder says so
        return
    found = old_keys.defaults_of_then(old, config_lib.flatten(config.to_dict()))
    config.update_from_flattened_dict(found)
    for key, value in found.items():
        console.say(f"{key} is {value}, as by default when the run in {path.parent} was started")


def check_same_model(config: Config, run: RunDir) -> None:
    """Checks that a configuration is of the model whose weights a run has, so that none are read as another's.

    A folder, checkpoint or tokenizer may lie elsewhere than when the run started: if the old place is empty.

    Raises:
      UserError: keys of the model, of its adapters or of a critic that learns are not those of the run.
    """
    if not run.checkpoints.exists():
        return
    try:
        saved = read(run.path)
    except UserError as error:  # the configuration was given another way
        console.say(f"whether the weights in {run.path} are of this configuration is not known: {error}")
        return
    if saved is None:
        return
    old = config_lib.freeze(saved)
    changed = config_lib.differences(config_lib.to_json(old), config_lib.to_json(config))
    found = [one for one in changed if _is_of_the_weights(one.partition(":")[0], old, config)]
    if found:
        raise UserError(
            f"the weights in {run.path} are of another configuration ({'; '.join(found)}); leave --config and these "
            "keys out: the run's own configuration is read."
        )


def _is_of_the_weights(key: str, old: Config, new: Config) -> bool:
    """Whether the weights of a run with the old value of a key can't be read, or mean another model, with the new."""
    adapters, was, now = old.lora.rank > 0, config_lib.value(old, key), config_lib.value(new, key)
    if key in _PLACES and was:
        place = places.place(was)
        moved = not place.exists() and was not in ("arithmetic", "snippets")
        if moved or (now and place.exists() and places.place(now).exists() and place.samefile(now)):
            return False
    if key == "model.init":  # else the run's own checkpoint has all weights, and the model is described elsewhere
        return adapters or not (old.model.folder or old.model.num_layers)
    if key == "warm_start.num_updates":  # which say where the adapters' base lies
        return adapters and bool(was) != bool(now)
    if key.startswith("critic."):
        return _is_of_the_critic(key, old.critic, new.critic)
    return key == "lora.rank" or key.startswith("model.") or (adapters and key.startswith("lora."))


def _is_of_the_critic(key: str, old: Critic, new: Critic) -> bool:
    """Whether a key says which weights of a critic that learns are read: those of its own, beside the policy's."""
    was, now = (one.training.weights if one.train else "policy" for one in (old, new))
    if key in ("critic.train", "critic.training.weights"):
        return was != now
    if key in ("critic.training.rank", "critic.training.alpha"):
        return was == now == "adapter"
    return key == "critic.folder" and was == now == "model"
