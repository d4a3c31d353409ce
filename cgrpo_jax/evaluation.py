"""Held-out accuracy: greedy pass@1 and unbiased pass@k."""

from collections.abc import Callable, Sequence

import numpy as np

from cgrpo_jax.engine import Sampling
from cgrpo_jax.passk import pass_at_k
from cgrpo_jax.pipeline import Pipeline, Progress
from cgrpo_jax.records import Author, Problem, Rollout
from cgrpo_jax.rollout import respond, score
from cgrpo_jax.writers import Writer, at_work

# Evaluation draws from a stream of its own, the same at every evaluation of a run.
_STREAM = 2**31


def evaluate(
    model,
    params: dict,
    problems: Sequence[Problem],
    *,
    pipeline: Pipeline,
    num_samples: int,
    ks: Sequence[int],
    temperature: float,
    top_p: float,
    max_length: int,
    pass_threshold: float,
    seed: int,
    on_tick: Callable[[Progress], None] | None = None,
) -> tuple[dict[str, float], list[list[Rollout]]]:
    """Evaluates weights on problems, as the paper does: greedy for pass@1, sampled for k > 1.

    Args:
      model: an `assemble.Model`.
      params: the weights.
      problems: what to answer.
      pipeline: with the grader.
      num_samples: samples a question.
      ks: the k of pass@k; pass@1 is greedy whatever stands here.
      temperature, top_p: of the samples.
      max_length: tokens a response may have.
      pass_threshold: reward from which a response is right.
      seed: of the samples.
      on_tick: as in `Pipeline.run`.

    Returns:
      (`pass@k` for each k, `mean@n` (accuracy of the n samples), mean length in tokens and truncated share of the
      greedy responses; the rollouts, for each question the greedy one and then its samples)
    """

    def answers(temperature: float, top_p: float, n: int) -> list[list[Rollout]]:
        writer = Writer(
            engine=model.engine,
            params=params,
            prompts=model.prompts,
            author=Author.POLICY,
            weights_step=0,
            seed=seed,
            iteration=_STREAM,
            sampling=Sampling(temperature, top_p),
        )

        async def answer(q: int, problem: Problem) -> list[Rollout]:
            rows = await respond(writer, problem, question=q, num_responses=n, max_length=max_length)
            return await score(rows, problem)

        with at_work(writer) as engines:
            questions = [answer(q, problem) for q, problem in enumerate(problems)]
            return pipeline.run(questions, engines=engines, on_tick=on_tick)

    greedy = answers(0.0, 1.0, 1)
    sampled = answers(temperature, top_p, num_samples) if max(ks) > 1 else [[] for _ in problems]
    correct_Q = np.array([sum(row.reward >= pass_threshold for row in group) for group in sampled])
    result = {"pass@1": float(np.mean([row.reward >= pass_threshold for (row,) in greedy]))}
    result |= {f"pass@{k}": float(pass_at_k(correct_Q, num_samples, k)) for k in ks if k > 1}
    if max(ks) > 1:
        result[f"mean@{num_samples}"] = float(correct_Q.mean() / num_samples)
    result["mean_length"] = float(np.mean([len(row.token_ids) for (row,) in greedy]))
    result["truncated"] = float(np.mean([row.truncated for (row,) in greedy]))
    return result, [g + s for g, s in zip(greedy, sampled, strict=True)]
