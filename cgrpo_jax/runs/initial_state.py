"""The state that a run starts from: that of its newest checkpoint, or that of weights that no update has seen yet.

Either way with the weights that stay as they are: what adapters belong to, and what the KL term compares with.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import TrainState
from cgrpo_jax.runs import critic_weights, start_weights, warm_start
from cgrpo_jax.runs.iteration import Iteration
from cgrpo_jax.runs.open_run import OpenRun, TrainingFolder
from cgrpo_jax.runtime import console, files, processes
from cgrpo_jax.runtime import text as text_lib
from cgrpo_jax.runtime.digests import Damaged
from cgrpo_jax.training import learner as learner_lib
from cgrpo_jax.training.checkpoint import restore_params, save_params


@dataclasses.dataclass
class Progress:
    """What a checkpoint keeps besides the weights: all that the rest of the run depends on or reports."""

    iteration: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    all_failed_start: float | None = None
    eval_before: dict | None = None
    unsolved_before: list[int] | None = None
    skipped_in_a_row: int = 0  # updates, up to the last one, whose gradient was not finite
    best: dict | None = None  # `best_checkpoint.better` of all evaluations
    evaluation_due: bool = False  # the last iteration's was cut short by a signal
    base_step: int | None = None  # as `start_weights.base_step` returns it
    inputs: dict = dataclasses.field(default_factory=dict)  # `fingerprints.of_all` of what it reads
    extra_questions: int = 0  # that its iterations have drawn beyond their batches
    critic_skipped_in_a_row: int = 0  # likewise, of a critic that learns

    def add(self, done: Iteration, *, all_failed: float) -> None:
        """Counts an iteration, all of whose responses to this share of its questions have failed."""
        if done.number == 0:
            self.all_failed_start = all_failed
        self.num_tokens += done.sampled_tokens
        self.extra_questions += done.num_extra


# Among the `inputs` of a run: what `finetune` learns, and what its loss is measured on. No other command has any.
TRAINING_ROWS, HELD_OUT_ROWS = "the training rows", "the held-out rows"
_MOST = 2**63 - 1
# What each value of `Progress` may be in a checkpoint.
_RULES: dict[str, Callable[[Any], bool]] = {
    "iteration": lambda value: _is_count(value),
    "num_tokens": lambda value: _is_count(value),
    "seconds": lambda value: _is_number(value) and value >= 0,
    "all_failed_start": lambda value: value is None or _is_number(value),
    "eval_before": lambda value: value is None or _is_of(value, str, float | int | None),
    "unsolved_before": lambda value: value is None or (isinstance(value, list) and all(map(_is_count, value))),
    "skipped_in_a_row": lambda value: _is_count(value),
    "best": lambda value: value is None or _is_best(value),
    "evaluation_due": lambda value: isinstance(value, bool),
    "base_step": lambda value: value is None or _is_count(value),
    "inputs": lambda value: _is_of(value, str, str),
    "extra_questions": lambda value: _is_count(value),
    "critic_skipped_in_a_row": lambda value: _is_count(value),
    "questions": lambda value: True,  # of earlier versions, in the place of `inputs`
}
_REQUIRED = ("iteration", "num_tokens", "seconds")  # which every version has written


def check_progress(step: int, extra: Mapping[str, Any]) -> None:
    """Checks what a checkpoint says of a run: that it is of this step, and that it can be a `Progress`.

    Raises:
      Damaged: it is not so.
    """
    for name in [name for name in _REQUIRED if name not in extra]:
        raise Damaged(f"its {name} is missing")
    for name, value in extra.items():
        if name not in _RULES:
            raise Damaged(f"{text_lib.quoted(name)} is nothing that this version knows")
        if not _RULES[name](value):
            raise Damaged(f"its {name} can't be {text_lib.quoted(value)}")
    if extra["iteration"] != step:
        raise Damaged(f"it is of iteration {extra['iteration']}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_of(value: Any, key: Any, kind: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, key) and isinstance(inner, kind) for name, inner in value.items()
    )


def _is_best(value: Any) -> bool:
    whole = isinstance(value, dict) and value.keys() == {"step", "metric", "value"}
    return whole and _is_count(value["step"]) and isinstance(value["metric"], str) and _is_number(value["value"])


@dataclasses.dataclass(frozen=True)
class InitialState:
    """All that iterations start from.

    Attributes:
      state: what is trained, that of a critic that learns included.
      progress: how far it is.
      base: what the adapters belong to, where these are trained.
      reference: what the KL term compares with, in the layout of generation; where adapters are trained, the base's
        own weights. None without that term.
      skipped: newer checkpoints could not be read.
    """

    state: TrainState
    progress: Progress
    base: lora.Base | None = None
    reference: dict | None = None
    skipped: bool = False


def resume(opened: OpenRun, folder: TrainingFolder) -> InitialState | None:
    """Returns what the newest checkpoint that can be read holds, and says so; None where there is none.

    Args:
      opened: the run.
      folder: with its checkpoints.

    Raises:
      UserError: no checkpoint can be read, or what the run reads is no longer what it was.
    """
    model, learner = opened.model, opened.settings.learner
    skipped = []

    def on_skip(step: int, why: str) -> None:
        skipped.append(step)
        console.say(f"checkpoint {step} can't be read ({why}); using the one before")

    shapes = learner_lib.state_shapes(model.config, model.mesh, learner)
    if learning := opened.settings.critic_learning:
        critic = critic_weights.state_shapes(shapes, opened.own_critic, learning)
        shapes = dataclasses.replace(shapes, critic=critic)
    found = folder.checkpoints.restore_latest(shapes, check=check_progress, on_skip=on_skip)
    if not found:
        return None
    _, restored, extra = found
    progress = _progress(extra, opened)
    state = jax.tree.map(jax.numpy.asarray, restored)
    if learner.adapters:
        frozen = start_weights.frozen_params(opened.config, model, opened.run, step=progress.base_step)
        initial = _with_base(state, progress, frozen, opened)
    else:
        reference = None
        if learner.has_reference:
            shapes = model.placed(params_lib.param_shapes(model.config))
            reference = model.to_score(restore_params(opened.run.reference, shapes))
        initial = InitialState(state, progress, reference=reference)
    initial = dataclasses.replace(initial, skipped=bool(skipped))
    left = opened.settings.num_iterations - progress.iteration
    done = progress.iteration
    console.say(f"resuming after iteration {done}" if left > 0 else f"{done} iterations are done: none is left")
    return initial


def _progress(extra: dict[str, Any], opened: OpenRun) -> Progress:
    """Returns what a checkpoint keeps; raises a `UserError` where the run's questions are not those that it began with.

    A reward function that has changed is said only: one that raised ends a run, and is fixed before it resumes.
    """
    kept: dict[str, Any] = {
        name: value for name, value in extra.items() if name != "questions"
    }  # in the place of `inputs`, once
    if "inputs" not in kept:
        console.say("an older version began this run: whether its questions are still the same is not known")
        kept["inputs"] = opened.inputs
    kept["inputs"] = {
        name: opened.inputs[name] if digest == opened.earlier_inputs.get(name) else digest
        for name, digest in kept["inputs"].items()
    }
    changed = fingerprints.changed(kept["inputs"], opened.inputs)
    if fingerprints.TASK in changed:
        was, now = (inputs.get(fingerprints.TASK, "an unknown one") for inputs in (kept["inputs"], opened.inputs))
        raise UserError(
            f"{opened.run.path} began with another version of its task: {was}, not {now}; resume it with the package "
            "that began it, or give another --workdir."
        )
    if (TRAINING_ROWS in kept["inputs"]) != (TRAINING_ROWS in opened.inputs):
        command = "finetune" if TRAINING_ROWS in kept["inputs"] else "train"
        raise UserError(
            f"{opened.run.path} is a run of cgrpo {command}; resume it with that, or give another --workdir."
        )
    if others := [name for name in changed if not fingerprints.is_function(name)]:
        raise UserError(
            f"changed since {opened.run.path} began: {', '.join(others)}; restore the files (data.train, data.eval, "
            "data.pass_rates, code.modules, critique.others, finetune.rows, finetune.eval_rows), or give another "
            "--workdir."
        )
    if changed:
        console.say(f"changed since {opened.run.path} began, and used as it is now: {', '.join(changed)}")
    kept["inputs"] = dict(opened.inputs)
    return Progress(**kept)


def drop_after(opened: OpenRun, initial: InitialState | None) -> None:
    """Drops what was written after the state that a run resumes from, None for its start, and will be again."""
    run, every = opened.run, opened.settings.kept.checkpoint_every
    # A save ends before the next one begins: what a killed run has lost is less than two of them are apart.
    expected = 2 * every if initial and not initial.skipped else 0
    step = initial.progress.iteration if initial else 0

    def drop() -> list[str]:
        with files.checked(run.path):
            return run.drop_after(step - 1, expected=expected)

    aside = processes.decide(drop, f"writing {run.path}")
    if aside:
        console.say(f"iterations after {step} will be written again; what was written of them: {', '.join(aside)}")


def start(
    opened: OpenRun,
    *,
    evaluate: Callable[[dict], tuple[dict | None, list[bool | None] | None]],
    clock: console.Clock,
    going_on: Callable[[], None],
) -> InitialState:
    """Returns the state before the first update, and keeps in the run's folder the weights that stay as they are.

    Args:
      opened: the run.
      evaluate: returns the held-out metrics of weights, and which questions they solve.
      clock: times the warm start.
      going_on: called every few updates of the warm start and after it; may raise.
    """
    config, model, run, learner = opened.config, opened.model, opened.run, opened.settings.learner
    progress = Progress(base_step=start_weights.base_step(config), inputs=dict(opened.inputs))

    def initial_params() -> dict:
        return start_weights.initial_params(config, model, step=progress.base_step)

    if config.warm_start.num_updates:
        with clock("warm_start"):
            params = warm_start.run(opened, initial_params, going_on=going_on)
        going_on()
    else:
        params = initial_params()
    # Else nothing generates, and no device needs the whole weights.
    progress.eval_before, solved = evaluate(model.to_generate(params)) if opened.questions.held_out else (None, None)
    if solved is not None:
        progress.unsolved_before = [q for q, one in enumerate(solved) if one is False]

    def init(trained: dict) -> TrainState:
        state = learner_lib.init_state(trained, settings=learner)
        if not (learning := opened.settings.critic_learning):
            return state
        critic = critic_weights.initial_state(state, opened.own_critic, learning, seed=opened.settings.seed)
        return dataclasses.replace(state, critic=critic)

    if learner.adapters:
        if start_weights.keeps_base(config):
            _save(run.base, params)
        adapters = start_weights.initial_adapters(learner.adapters, model, seed=opened.settings.seed)
        return _with_base(init(adapters), progress, params, opened)
    reference = None
    if learner.has_reference:
        # A copy in any case: updates take the buffers of the state.
        reference = jax.tree.map(jax.numpy.copy, model.to_score(params))
        _save(run.reference, params)
    return InitialState(init(params), progress, reference=reference)


def _with_base(state: TrainState, progress: Progress, params: dict, opened: OpenRun) -> InitialState:
    """Keeps the weights that the adapters belong to; they are the reference too, since adapters start at 0."""
    learner = opened.settings.learner
    assert learner.adapters
    reference = params if learner.has_reference else None
    return InitialState(state, progress, lora.Base(params, learner.adapters.scale), reference)


def _save(folder: pathlib.Path, params: dict) -> None:
    if processes.is_first():  # what a run leaves that was killed before its first checkpoint was whole
        files.remove_folder(folder)
    save_params(folder, params)
