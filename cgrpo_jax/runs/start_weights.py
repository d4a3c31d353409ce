"""Which weights a run starts from, keeps, and has trained."""

import os
import pathlib

import jax

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import load
from cgrpo_jax.runs.build_model import Model
from cgrpo_jax.runs.build_training import lora_settings
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, local_copies, places, watchdog
from cgrpo_jax.training import checkpoint_steps, updates_seen
from cgrpo_jax.training.checkpoint import read_extra, restore_params
from cgrpo_jax.training.checkpoint_steps import Step


def initial_params(config: Config, model: Model, *, step: int | None = None) -> dict:
    """Returns the weights that a run starts from; `step` names one of several in `model.init`, else the newest."""
    m, template = config.model, model.placed(params_lib.param_shapes(model.config))
    if m.init:
        return restore_params(m.init, template, step=step)
    shardings = sharding.shardings_of(template)
    if m.folder:
        folder = local_copies.local(m.folder, suffixes=local_copies.MODEL)
        return load.load_params(folder, model.config, shardings=shardings, progress=lambda *_: watchdog.alive())
    return params_lib.init_params(model.config, seed=config.seed, shardings=shardings)


def initial_adapters(settings: lora.LoraSettings, model: Model, *, seed: int) -> dict:
    """Returns the adapters that a run starts from."""
    shardings = sharding.shardings_of(model.placed(lora.adapter_shapes(model.config, settings)))
    return sharding.put(jax.device_get(lora.init_adapters(model.config, settings, seed=seed)), shardings)


def keeps_base(config: Config) -> bool:
    """Returns whether a run that trains adapters keeps what they belong to: weights that no other folder has."""
    return bool(config.warm_start.num_updates or not (config.model.init or config.model.folder))


def base_step(config: Config) -> int | None:
    """Returns the step in `model.init` that a new run's adapters will belong to; None where it is of no folder.

    Kept with the run: the folder's newest step may be another one when the run is resumed or evaluated.
    """
    if not config.lora.rank or keeps_base(config) or not config.model.init:
        return None
    return _number(places.place(config.model.init))


def frozen_params(config: Config, model: Model, run: RunDir, *, step: int | None) -> dict:
    """Returns the weights that the adapters of a run belong to: those it has kept, or those it started from.

    Args:
      config, model, run: of the run.
      step: what `base_step` returned when the run started.

    Raises:
      UserError: they are missing or damaged.
    """
    if not keeps_base(config):  # whatever lies in the run's folder
        return initial_params(config, model, step=step)
    if not run.base.is_dir():  # else a model drawn at random would take its place
        raise UserError(
            f"{run.base} is missing, the weights that the adapters in {run.checkpoints} belong to; restore it from a "
            "copy, or start again in another --workdir."
        )
    return restore_params(run.base, model.placed(params_lib.param_shapes(model.config)))


def trained_params(config: Config, model: Model, run: RunDir, *, step: Step = None) -> tuple[dict, str]:
    """Returns weights of a run, adapters merged, as generation reads them, and where they come from.

    A folder without checkpoints gives the weights that the configuration starts from, and that is said.

    Args:
      config, model, run: of the run.
      step: which checkpoint; the newest by default.

    Raises:
      UserError: there are neither, or no checkpoint of that step.
    """
    settings = lora_settings(config)
    if not run.checkpoints.exists():
        if step is not None:
            raise UserError(f"{run.path} has no checkpoints; leave --step out, or train first.")
        if not (config.model.folder or config.model.init):
            raise UserError(f"{run.path} has no checkpoints and the configuration names no weights; train first.")
        what = "checkpoint" if run.config.exists() else "run"
        console.say(f"no {what} in {run.path}: the weights that the configuration starts from")
        return model.to_generate(initial_params(config, model)), config.model.init or config.model.folder
    if settings is None:
        params = restore_params(run.checkpoints, model.placed(params_lib.param_shapes(model.config)), step=step)
        return model.to_generate(params), str(run.checkpoints)
    adapters = restore_params(run.checkpoints, model.placed(lora.adapter_shapes(model.config, settings)), step=step)
    base_step = read_extra(run.checkpoints, step=step).get("base_step")
    base = lora.Base(frozen_params(config, model, run, step=base_step), settings.scale)
    return model.to_generate(adapters, base), str(run.checkpoints)


def num_updates(run: RunDir, *, step: Step = None) -> int:
    """Returns how many updates the weights of `trained_params` have seen; 0 of those that a run starts from."""
    return updates_seen.read(run.checkpoints, step=step) if run.checkpoints.exists() else 0


def name_of_weights(config: Config, run: RunDir, *, beside: pathlib.Path, step: Step = None) -> str:
    """Names the weights that `trained_params` returns; those of a run by their way from `beside`, wherever both lie."""
    if run.checkpoints.exists():
        away = places.is_bucket(run.checkpoints) != places.is_bucket(beside)
        name = run.checkpoints if away else os.path.relpath(run.checkpoints, beside)
        return f"{name}, step {_number(run.checkpoints, step)}"
    if config.model.init:
        return f"{config.model.init}, step {_number(places.place(config.model.init))}"
    return config.model.folder


def _number(folder: pathlib.Path, step: Step = None) -> int:
    return checkpoint_steps.find(folder, step)[1]
