"""Lessons in solving, critiquing and refining chains whose facts are all taught: the quickstart's warm start."""

import dataclasses
import random
from collections.abc import Iterator, Sequence

from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.records import TrainRow
from cgrpo_jax.training.sft import lesson

TAUGHT = "chains worked out, checked, and corrected after a critique"  # for those who read of a run
_SLIPS = 0.01  # share of the lessons in solving with a made-up result


def lessons(
    prompts: Prompts,
    *,
    seed: int,
    lengths: Sequence[int],
    held_out: frozenset[arithmetic.Fact],
    rare_rate: float = 0.0,
) -> Iterator[TrainRow]:
    """Yields an endless stream of supervised rows: a quarter solve, one in ten critique, the others refine.

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
    makers, weights = (_solve, _critique, _refine), (0.25, 0.1, 0.65)
    while True:
        (make,) = rng.choices(makers, weights)
        rare = make is _solve and rng.random() < rare_rate
        context, target = make(rng, prompts, next(rare_chains if rare else chains), held_out)
        yield lesson(prompts, context, target)


def _solve(rng, prompts: Prompts, question: str, held_out):
    """The worked chain, now and then with a slip.

    Without slips the policy becomes so sure that what was held out has a probability of 1e-6, at which the weight of a
    refined token, gamma pi / (pi + gamma)^2, is nothing, and what it was taught wrongly is never unlearned.
    """
    slips = rng.random() < _SLIPS
    steps = _forced(rng, question, held_out) if slips else arithmetic.trace(question)
    return prompts.for_question(question), arithmetic.write(steps)


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
    assert error is not None, "an attempt with a made-up result has a wrong step"
    (kind,) = rng.choices(("value", "step", "verdict", "answer", "own", "none"), (6, 1, 1, 3, 1, 1))
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
