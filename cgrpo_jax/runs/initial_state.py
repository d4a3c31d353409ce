"""What a run begins with: the state of its newest checkpoint, or that of weights that no update has seen yet.

Either way with the weights that stay as they are: what adapters belong to, and what the KL term compares with.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.datasets.problems import glossary, held_out_facts
from cgrpo_jax.datasets.tasks import arithmetic_lessons, snippet_lessons
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import TrainState
from cgrpo_jax.runs import build_model
from cgrpo_jax.runs.open_run import RunParts
from cgrpo_jax.runtime import console, processes
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import sft
from cgrpo_jax.training.checkpoint import restore_params, save_params

_UPDATES_PER_QUESTION = 10  # of a warm start, between two times that it asks whether to go on


@dataclasses.dataclass
class Progress:
    """What a checkpoint keeps beside the weights: all that the rest of the run depends on or reports."""

    iteration: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    all_failed_start: float | None = None
    eval_before: dict | None = None
    unsolved_before: list[int] | None = None
    skipped_in_a_row: int = 0  # updates, up to the last one, whose gradient was not finite
    base_step: int | None = None  # as `build_model.base_step` returns it
    inputs: dict = dataclasses.field(default_factory=dict)  # `fingerprints.of_all` of what it reads


@dataclasses.dataclass
class Beginning:
    """All that iterations start from.

    Attributes:
      state: what is trained.
      progress: how far it is.
      base: what the adapters belong to, where these are trained.
      reference: what the KL term compares with, in the layout of generation; where adapters are trained, the base's
        own weights. None without that term.
    """

    state: TrainState
    progress: Progress
    base: lora.Base | None = None
    reference: dict | None = None


def resume(config, parts: RunParts, optimizer: optax.GradientTransformation) -> Beginning | None:
    """Returns what the newest checkpoint that can be read holds, and says so; None where there is none.

    Args:
      config, parts: of the run.
      optimizer: of its updates.

    Raises:
      UserError: no checkpoint can be read, or what the run reads is no longer what it was.
    """
    model = parts.model
    settings, shapes = build_model.lora_settings(config), params_lib.param_shapes(model.config)
    trained = lora.adapter_shapes(model.config, settings) if settings else shapes
    found = parts.checkpoints.restore_latest(
        optimizer_lib.state_shapes(model.placed(trained), optimizer, offload=config.offload_optimizer),
        on_skip=lambda step, why: console.say(f"checkpoint {step} can't be read ({why}); using the one before"),
    )
    if not found:
        return None
    _, state, extra = found
    begun = Beginning(jax.tree.map(jax.numpy.asarray, state), _progress(extra, parts))
    if settings:
        frozen = build_model.frozen_params(config, model, parts.run, step=begun.progress.base_step)
        _freeze(begun, frozen, config, settings)
    elif config.kl_coef:
        begun.reference = model.to_score(restore_params(parts.run.reference, model.placed(shapes)))
    done = begun.progress.iteration
    left = config.num_iterations - done
    console.say(f"resuming after iteration {done}" if left > 0 else f"{done} iterations are done: none is left")
    return begun


def _progress(extra: dict[str, Any], parts: RunParts) -> Progress:
    """Returns what a checkpoint keeps; raises a `UserError` where the run's questions are not those that it began with.

    A reward function that has changed is said only: one that raised ends a run, and is mended before it goes on.
    """
    kept = {name: value for name, value in extra.items() if name != "questions"}  # in the place of `inputs`, once
    if "inputs" not in kept:
        console.say("an older version began this run: whether its questions are still the same can't be told")
        kept["inputs"] = parts.inputs
    changed = fingerprints.changed(kept["inputs"], parts.inputs)
    if others := [name for name in changed if not fingerprints.is_function(name)]:
        raise UserError(
            f"changed since {parts.run.path} began: {', '.join(others)}; restore the files (data.train, data.eval, "
            "data.pass_rates), or give another --workdir."
        )
    if changed:
        console.say(f"changed since {parts.run.path} began, and used as it is now: {', '.join(changed)}")
    return Progress(**kept | {"inputs": dict(parts.inputs)})


def start(
    config,
    parts: RunParts,
    optimizer: optax.GradientTransformation,
    *,
    evaluate: Callable[[dict], tuple[dict | None, list[int] | None]],
    clock: console.Clock,
    going_on: Callable[[], None],
) -> Beginning:
    """Returns the state before the first update, and keeps in the run's folder the weights that stay as they are.

    Args:
      config, parts: of the run.
      optimizer: of its updates.
      evaluate: returns the held-out metrics of weights, and which questions they solve.
      clock: times the warm start.
      going_on: called every few updates of the warm start and after it; may raise.
    """
    model, run = parts.model, parts.run
    progress = Progress(base_step=build_model.base_step(config), inputs=dict(parts.inputs))
    params = build_model.initial_params(config, model, step=progress.base_step)
    if config.warm_start.num_updates:
        with clock("warm_start"):
            params = _warm_start(config, model, params, going_on)
        going_on()
    progress.eval_before, solved = evaluate(model.to_generate(params))
    if solved is not None:
        progress.unsolved_before = [q for q, one in enumerate(solved) if one is False]
    settings = build_model.lora_settings(config)
    init = functools.partial(optimizer_lib.init_state, optimizer=optimizer, offload=config.offload_optimizer)
    if settings:
        if build_model.keeps_base(config):
            _save(run.base, params)
        begun = Beginning(init(build_model.initial_adapters(config, model)), progress)
        _freeze(begun, params, config, settings)
        return begun
    reference = None
    if config.kl_coef:
        # A copy in any case: updates take the buffers of the state.
        reference = jax.tree.map(jax.numpy.copy, model.to_score(params))
        _save(run.reference, params)
    return Beginning(init(params), progress, reference=reference)


def _freeze(begun: Beginning, params: dict, config, settings: lora.LoraSettings) -> None:
    """Keeps the weights that the adapters belong to; they are the reference too, since adapters start at 0."""
    begun.base = lora.Base(params, settings.scale)
    begun.reference = params if config.kl_coef else None


def _save(folder: pathlib.Path, params: dict) -> None:
    if processes.is_first():  # what a run leaves that was killed before its first checkpoint was whole
        shutil.rmtree(folder, ignore_errors=True)
    save_params(folder, params)


def _warm_start(config, model: build_model.Model, params: dict, going_on: Callable[[], None]) -> dict[str, Any]:
    w = config.warm_start
    about = dict(seed=config.seed, lengths=tuple(w.chain_lengths), rare_rate=w.rare_rate)
    if config.data.kind == "snippets":
        rows = snippet_lessons.lessons(model.prompts, glossary=glossary(config), **about)
    else:
        rows = arithmetic_lessons.lessons(model.prompts, held_out=held_out_facts(config), **about)

    def steps(numbers: range) -> Iterator[int]:
        for number in console.progress_bar(numbers, desc="warm start", unit="update"):
            if number % _UPDATES_PER_QUESTION == 0:
                going_on()
            yield number

    return sft.warm_start(
        params,
        model.config,
        rows,
        num_updates=w.num_updates,
        rows_per_update=w.rows_per_update,
        learning_rate=w.learning_rate,
        shape=build_model.pack_shape(config),
        max_length=max(config.max_response_length, config.max_critique_length),
        progress=steps,
        mesh=model.mesh,
        dtype=model.dtype,
    )
