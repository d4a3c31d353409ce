"""The model that an evaluation or a diagnosis is of: how it is loaded, and what its results are called after."""

import datetime
import os
import pathlib
from collections.abc import Callable, Sequence

from cgrpo_jax import assemble, checks, runtime
from cgrpo_jax import config as config_lib
from cgrpo_jax.checkpoint import SavedWeights
from cgrpo_jax.parts import Results, fingerprint
from cgrpo_jax.records import Problem
from cgrpo_jax.rundir import RunDir


def started(results: Results, workdir: str) -> datetime.datetime:
    """Returns when the run started, or results without a run: what prompts that print the date go on to print."""
    begun = runtime.decide(
        lambda: results.started() or RunDir(workdir).started().isoformat(), f"reading {workdir} and {results.path}"
    )
    return datetime.datetime.fromisoformat(begun)


def load(config, *, now: datetime.datetime, prepare: Callable | None = None):
    """Returns the configuration, checked and prepared, the policy, and the frozen critic with its weights or None.

    Args:
      config: as it was given.
      now: from `started`.
      prepare: makes of the configuration the one that the engine is built for. Without it no critic is loaded.

    Raises:
      UserError: something of it can't be used.
    """
    checks.check(config)
    prepared = prepare(config) if prepare else config
    mesh = assemble.make_mesh(prepared)
    model = assemble.load_model(prepared, mesh, now=now)
    return prepared, model, assemble.load_critic(prepared, mesh, now=now) if prepare else None


def about(
    config, workdir: str, results: Results, problems: Sequence[Problem], *, started: datetime.datetime
) -> dict[str, object]:
    """Returns what the results depend on, for `Results.open`."""
    return {
        "started": started.isoformat(),
        "weights": _weights(config, workdir, results),
        "questions": fingerprint(problems),
        "config": config_lib.to_json(config),
    }


def _weights(config, workdir: str, results: Results) -> str:
    """Names the weights that `assemble.trained_params` will return; of a run beside the results, wherever both lie."""
    checkpoints = RunDir(workdir).checkpoints
    if checkpoints.exists():
        return f"{os.path.relpath(checkpoints, results.path)}, step {_step(checkpoints)}"
    if config.model.init:
        return f"{config.model.init}, step {_step(pathlib.Path(config.model.init))}"
    return config.model.folder


def _step(folder: pathlib.Path) -> int:
    with SavedWeights(folder) as weights:
        return weights.step
