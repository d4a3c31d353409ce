"""The warm start of a run: supervised lessons before the first iteration, kept like the run itself.

What it has learned so far lies in `WORKDIR/warm_start` when it is stopped, every minute, and when it ends; a run that
was killed goes on there, bitwise as if nothing had happened. The folder goes when the run's first checkpoint is whole.
"""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import optax

from cgrpo_jax.datasets.fingerprints import TASK
from cgrpo_jax.datasets.problems import MadeUp
from cgrpo_jax.datasets.tasks import arithmetic_lessons, snippet_lessons
from cgrpo_jax.errors import Stopped, UserError
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import TrainRow, TrainState
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import load_questions, resume_policy
from cgrpo_jax.runs.open_run import OpenRun
from cgrpo_jax.runtime import console, files, processes
from cgrpo_jax.runtime.digests import Damaged
from cgrpo_jax.training import checkpoint_seal, checkpoint_steps, sft
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training.checkpoint import Checkpoints, read_extra

_UPDATES_PER_QUESTION = 10  # between two times that it asks whether to stop
_SECONDS_PER_SAVE = 60


def run(opened: OpenRun, params: Callable[[], dict], *, going_on: Callable[[], None]) -> dict:
    """Returns the weights after the lessons, all of them or those that are left.

    Args:
      opened: the run.
      params: returns the weights before the lessons; not called where some of these are done.
      going_on: called every few updates; may raise `Stopped`, and what was learned is saved first.
    """
    wanted, total = opened.config.warm_start, opened.config.warm_start.num_updates
    optimizer = sft.make_optimizer(num_updates=total, learning_rate=wanted.learning_rate)
    processes.decide(lambda: _remove_another(opened), f"reading {opened.run.warm_start}")
    with Checkpoints(opened.run.warm_start, max_to_keep=1) as kept:
        begun, first = _begun(opened, kept, optimizer)
        state = optimizer_lib.init_state(params(), optimizer) if begun is None else begun
        lessons = _lessons(opened)
        for _ in range(first * wanted.rows_per_update):  # those that it has learned
            next(lessons)
        states = _states(opened, state, lessons, optimizer)
        saved = time.monotonic()

        def save(number: int) -> None:
            if kept.latest_step != number:
                kept.save(number, state, {"config": opened.config_json(), "task": opened.inputs.get(TASK)})

        for number in console.progress_bar(range(first, total), desc="warm start", unit="update", initial=first):
            if number % _UPDATES_PER_QUESTION == 0:
                try:
                    going_on()
                except Stopped:
                    if number:
                        save(number)
                        console.say(f"the warm start is kept as it is after {number} of {total} updates")
                    raise
                if processes.largest(int(time.monotonic() - saved > _SECONDS_PER_SAVE)):
                    save(number)
                    saved = time.monotonic()
            state = next(states)
        save(total)
    return state.params


def forget(opened: OpenRun, checkpoints: Checkpoints) -> None:
    """Removes what `run` has kept, once the run has a checkpoint of its own."""
    if not opened.config.warm_start.num_updates:
        return
    checkpoints.wait()
    if processes.is_first():
        files.remove_folder(opened.run.warm_start)


def _begun(
    opened: OpenRun, kept: Checkpoints, optimizer: optax.GradientTransformation
) -> tuple[TrainState | None, int]:
    """Returns what an earlier start of the run has learned, and in how many updates; None and 0 where there is none."""
    model = opened.model
    shapes = model.placed(params_lib.param_shapes(model.config))
    found = kept.restore_latest(
        optimizer_lib.state_shapes(shapes, optimizer),
        on_skip=lambda step, why: console.say(f"the warm start after {step} updates can't be read ({why})"),
    )
    if not found:
        return None, 0
    number, state, _ = found
    console.say(f"the warm start goes on after {number} updates")
    return jax.tree.map(jax.numpy.asarray, state), number


def _remove_another(opened: OpenRun) -> bool:
    """Removes what another configuration, or another version of the task, has learned: a run without a checkpoint may
    be started with any.

    Likewise what can't be read: the lessons are there to be learned again.
    """
    folder, now = opened.run.warm_start, opened.config_json()
    if not folder.is_dir():
        return False
    try:
        extra = read_extra(folder)
        same = not config_lib.differences(extra["config"], now, ignore=resume_policy.TRAINING)
        same = same and extra.get("task") == opened.inputs.get(TASK)
        newest, step, _ = checkpoint_steps.find(folder, None)
        checkpoint_seal.check(newest / str(step), ("params", "rest"))
    except UserError:  # nothing whole is in it
        same = False
    except Damaged as error:
        console.say(f"what {folder} holds can't be read ({error}): the warm start begins again")
        same = False
    if not same:
        files.remove_folder(folder)
        if folder.exists():
            raise UserError(f"{folder} holds what another configuration has learned, and can't be removed; remove it.")
    return not same


def _lessons(opened: OpenRun) -> Iterator[TrainRow]:
    config, prompts = opened.config, opened.model.prompts
    wanted, source = config.warm_start, load_questions.source(config)
    assert isinstance(source, MadeUp)  # `validate` says so of a warm start
    if source.kind == "snippets":
        lessons = functools.partial(snippet_lessons.lessons, prompts, glossary=source.glossary())
    else:
        lessons = functools.partial(arithmetic_lessons.lessons, prompts, held_out=source.held_out_facts())
    return lessons(seed=config.seed, lengths=tuple(wanted.chain_lengths), rare_rate=wanted.rare_rate)


def _states(
    opened: OpenRun, state: TrainState, lessons: Iterator[TrainRow], optimizer: optax.GradientTransformation
) -> Iterator[TrainState]:
    config, model = opened.config, opened.model
    return sft.updates(
        state,
        model.config,
        lessons,
        optimizer=optimizer,
        rows_per_update=config.warm_start.rows_per_update,
        shape=opened.settings.learner.shape,
        max_length=max(config.max_response_length, config.critic.max_length),
        mesh=model.mesh,
        dtype=model.dtype,
    )
