"""The warm start of the quickstart: lessons in solving, critiquing and refining chains whose facts are all taught.

It is supervised fine-tuning through the same packer and the same update as reinforcement learning: rows whose loss is
`nll`. What it yields stands where the paper starts, at a model that can solve, critique and refine but has gaps.
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import train_step as train_step_lib


def warm_start(
    params: dict,
    config: ModelConfig,
    rows: Iterator[TrainRow],
    *,
    num_updates: int,
    rows_per_update: int,
    learning_rate: float,
    shape: train_step_lib.PackShape,
    max_length: int,
    progress: Callable[[Iterable], Iterable] = iter,
    **kw,
) -> dict:
    """Returns the weights after supervised fine-tuning on lessons.

    Args:
      params, config: the model; `params` is not used afterwards.
      rows: the lessons, such as `lessons` of chains.
      num_updates, rows_per_update: how much is learned.
      learning_rate: peak; it rises over a tenth of the updates and falls to 0 along a cosine.
      shape, max_length: of packed batches.
      progress: wraps the range of updates, to show how far it is.
      **kw: `remat`, `dtype`, `mesh`, as in `train_step.accumulate_gradients`.
    """
    rate = optimizer_lib.make_schedule(
        "cosine", peak=learning_rate, warmup_steps=num_updates // 10, num_steps=num_updates
    )
    optimizer = optimizer_lib.make_optimizer(learning_rate=rate, weight_decay=0.01)
    state = optimizer_lib.init_state(params, optimizer)
    settings = train_step_lib.LossSettings(max_length=max_length)
    for _ in progress(range(num_updates)):
        state, _ = train_step_lib.update(
            state,
            [next(rows) for _ in range(rows_per_update)],
            optimizer=optimizer,
            config=config,
            settings=settings,
            shape=shape,
            **kw,
        )
    return state.params


def lessons(
    prompts: Prompts,
    *,
    seed: int,
    lengths: Sequence[int],
    held_out: frozenset[arithmetic.Fact],
    rare_rate: float = 0.0,
) -> Iterator[TrainRow]:
    """Yields an endless stream of supervised rows: two in five solve, one in ten critique, half refine.

    Args:
      prompts: the same prompts that reinforcement learning uses.
      seed: of the stream.
      lengths: steps that a chain may have.
      held_out: facts that appear in no lesson, neither in a chain nor in a wrong attempt at one.
      rare_rate: share of the lessons in solving that do contain one of these facts: with a small rate they are rare
        instead of unseen.
    """
    rng = random.Random(f"lessons {seed}")
    chains = arithmetic.taught_chains(rng, lengths, held_out)
    rare_chains = arithmetic.rare_chains(rng, lengths, held_out)
    makers, weights = (_solve, _critique, _refine), (0.4, 0.1, 0.5)
    while True:
        (make,) = rng.choices(makers, weights)
        rare = make is _solve and rng.random() < rare_rate
        context, target = make(rng, prompts, next(rare_chains if rare else chains), held_out)
        yield lesson(prompts, context, target)


def lesson(prompts: Prompts, context: np.ndarray, target: str) -> TrainRow:
    """Returns the supervised row that teaches to answer a prompt with a text, and to end the turn there."""
    ids = [*prompts.tokenizer.encode(target), prompts.tokenizer.end_of_turn_id]
    return TrainRow(
        context_ids=context,
        target_ids=np.asarray(ids, np.int32),
        old_logp=np.zeros(len(ids), np.float32),
        advantage=1.0,
        loss=LossKind.NLL,
    )


def _solve(rng, prompts: Prompts, question: str, held_out):
    return prompts.for_question(question), arithmetic.solution(question)


def _critique(rng, prompts: Prompts, question: str, held_out):
    steps = _forced(rng, question, held_out) if rng.random() < 0.5 else arithmetic.trace(question)
    response = arithmetic.write(steps)
    answer = arithmetic.answer(question) if rng.random() < 0.3 else None
    return prompts.for_critique(question, response, answer)[0], arithmetic.self_check(question, response)


def _refine(rng, prompts: Prompts, question: str, held_out):
    """A wrong attempt, a critique of any kind (so that no arm of a comparison starts ahead), and what follows from it.

    Critiques that name a result name a made-up one, which the refinement adopts. If they only ever repeated known
    facts, recalling would do, and reading them would not be learned.
    """
    attempt = _forced(rng, question, held_out)
    response = arithmetic.write(attempt)
    error = arithmetic.check_steps(question, response)
    (kind,) = rng.choices(("value", "step", "verdict", "answer", "own", "none"), (4, 1, 1, 2, 1, 1))
    target = arithmetic.trace(question)
    if kind in ("value", "answer"):
        target = _forced(rng, question, held_out, error.step)
    corrected = dataclasses.replace(error, expected=str(target[error.step - 1][1]))
    critique = {
        "value": texts.execution(False, corrected),
        "step": texts.execution(False, error, reveal_value=False),
        "verdict": texts.indicative(False),
        "answer": texts.indicative(False, answer=arithmetic.results(target)),
        "own": arithmetic.self_check(question, response),
        "none": None,
    }[kind]
    return prompts.for_refinement(question, response, critique)[0], arithmetic.write(target)


def _forced(rng, question: str, held_out, step: int | None = None):
    """Returns a chain's steps with one made-up result, such that no step is a held-out fact."""
    while True:
        number = step or rng.randrange(len(arithmetic.trace(question))) + 1
        value = arithmetic.made_up_result(rng, arithmetic.trace(question)[number - 1][1])
        steps = arithmetic.trace(question, {number: value})
        if not held_out & {fact for fact, _ in steps}:
            return steps
