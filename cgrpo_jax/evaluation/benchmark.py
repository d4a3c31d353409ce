"""Held-out accuracy: how questions are answered, once in memory for training, and line by line on disk for benchmarks.

Greedy answers give pass@1; samples give pass@k and maj@k. Test-time refinement asks the critic about the greedy answer,
and refines it where the critic says that it is wrong. Nothing that is written depends on a gold answer.
"""

import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from cgrpo_jax import rollout
from cgrpo_jax.evaluation import estimators, resumable_results
from cgrpo_jax.inference.generators import Generator, RemoteGenerator, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator, Status, gather
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, problem_id
from cgrpo_jax.rollout import respond, reward_of, score
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import text as text_lib

# Evaluation draws from a stream of its own, the same at every evaluation of a run.
STREAM = 2**31
# Graders whose answers can be compared with each other: of code, or of a judged text, no two are equal.
VOTING = ("math", "numeric", "exact", "trace", "choice")
_MOST_COMPARED, _LONGEST_COMPARED = 32, 100  # wrong answers of a question, and characters of one


# The name of a stage, what solves a question, its generators, and how many texts that takes.
_Stage = tuple[
    str,
    Callable[[int, Problem, dict], Coroutine[Any, Any, dict]],
    tuple[Generator | RemoteGenerator | None, ...],
    int,
]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How held-out questions are answered.

    Attributes:
      num_samples: samples a question.
      ks: the k of pass@k; pass@1 is greedy whatever is given here.
      temperature, top_p: of the samples.
      max_length: tokens a response may have.
      pass_threshold: reward from which a response is right.
      grader: kind of grader of the problems that name none.
      refine: critique and refine the greedy responses.
      oracle: also refine all that the verifier calls wrong, for comparison.
      max_critique_length: tokens a critique may have.
      texts_per_slot: as for `resumable_results.part_size`.
    """

    num_samples: int
    ks: Sequence[int]
    temperature: float
    top_p: float
    max_length: int
    pass_threshold: float
    grader: str
    refine: bool = False
    oracle: bool = False
    max_critique_length: int = 0
    texts_per_slot: int = 8


def protocol_of(settings: RunSettings, *, refine: bool = False) -> Protocol:
    """Returns how the questions of a run are answered; with `refine`, also critiqued and refined at test time."""
    wanted, method = settings.evaluation, settings.method
    return Protocol(
        num_samples=wanted.num_samples,
        ks=wanted.ks,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        max_length=method.max_length,
        pass_threshold=method.pass_threshold,
        grader=settings.grader,
        refine=refine,
        oracle=wanted.oracle,
        max_critique_length=settings.stages.critique.max_length,
        texts_per_slot=wanted.texts_per_slot,
    )


# --- in memory: what training reports -----------------------------------------------------------------------------


def evaluate(
    policy: Generator,
    problems: Sequence[Problem],
    *,
    protocol: Protocol,
    orchestrator: Orchestrator,
    on_tick: Callable[[Status], None] | None = None,
) -> tuple[dict[str, float], list[list[Rollout]]]:
    """Evaluates weights on problems, as the paper does: greedy for pass@1, sampled for k > 1.

    Args:
      policy: the weights, with the seed and the stream of random keys of evaluations; sampled in both ways.
      problems: what to answer.
      protocol: how they are answered.
      orchestrator: with the grader.
      on_tick: as in `Orchestrator.run`.

    Returns:
      (`pass@k` for each k, `mean@n` (accuracy of the n samples), mean length in tokens and truncated share of the
      greedy responses, and how many responses are `ungraded`, because their grader failed: these count as wrong; the
      rollouts, for each question the greedy one and then its samples)
    """

    p = protocol

    def answers(sampling: Sampling, n: int) -> list[list[Rollout]]:
        generator = dataclasses.replace(policy, sampling=sampling)

        async def answer(q: int, problem: Problem) -> list[Rollout]:
            rows = await respond(generator, problem, question=q, num_responses=n, max_length=p.max_length)
            return await score(rows, problem)

        with running_engines(generator) as engines:
            questions = [answer(q, problem) for q, problem in enumerate(problems)]
            return orchestrator.run(questions, engines=engines, on_tick=on_tick)

    greedy = answers(Sampling(0.0, 1.0), 1)
    sampled = answers(Sampling(p.temperature, p.top_p), p.num_samples) if max(p.ks) > 1 else [[] for _ in problems]
    correct_Q = np.array([sum(reward_of(row) >= p.pass_threshold for row in group) for group in sampled])
    result = {"pass@1": float(np.mean([reward_of(row) >= p.pass_threshold for (row,) in greedy]))}
    result |= {f"pass@{k}": float(estimators.pass_at_k(correct_Q, p.num_samples, k)) for k in p.ks if k > 1}
    if max(p.ks) > 1:
        result[f"mean@{p.num_samples}"] = float(correct_Q.mean() / p.num_samples)
    result["mean_length"] = float(np.mean([len(row.token_ids) for (row,) in greedy]))
    result["truncated"] = float(np.mean([row.truncated for (row,) in greedy]))
    groups = [g + s for g, s in zip(greedy, sampled, strict=True)]
    result["ungraded"] = sum(num_ungraded(group) for group in groups)
    return result, groups


def solved(groups: Sequence[Sequence[Rollout]], pass_threshold: float) -> list[bool | None]:
    """Returns for each question whether one of its rollouts passes; None where only one without a verdict might."""

    def one(group: Sequence[Rollout]) -> bool | None:
        if any(not row.ungraded and reward_of(row) >= pass_threshold for row in group):
            return True
        return None if num_ungraded(group) else False

    return [one(group) for group in groups]


# --- on disk: benchmarks ------------------------------------------------------------------------------------------


def answer_on_disk(
    policy: Generator,
    problems: Sequence[Problem],
    *,
    results: resumable_results.Results,
    protocol: Protocol,
    orchestrator: Orchestrator,
    critic: Generator | RemoteGenerator | None = None,
    on_tick: Callable[[Status], None] | None = None,
) -> None:
    """Answers all questions, each one's texts, rewards and votes on its line of `samples.jsonl`.

    The greedy responses are written first, then the samples; the files of the stages before the last one (`greedy`,
    `oracle`) hold what is known by then. A question's random keys depend on its place among the problems.

    Args:
      policy, problems, orchestrator, on_tick: as for `evaluate`.
      results: the open folder; stages and questions that are there are not done again.
      protocol: how they are answered.
      critic: who criticises; None for the policy itself, greedily.
    """
    p = protocol
    greedy = dataclasses.replace(policy, sampling=Sampling(0.0))
    sampling = dataclasses.replace(policy, sampling=Sampling(p.temperature, p.top_p))
    judge = (critic or greedy) if p.refine else None

    async def first(q: int, problem: Problem, known: dict) -> dict:
        return known | await _greedy_fields(greedy, judge, q, problem, p)

    async def with_oracle(q: int, problem: Problem, known: dict) -> dict:
        return known | await _oracle_fields(greedy, q, problem, known, p)

    async def samples(q: int, problem: Problem, known: dict) -> dict:
        return known | await _sample_fields(sampling, q, problem, known, p)

    stages: list[_Stage] = [("greedy", first, (greedy, judge), 3 if p.refine else 1)]
    if p.refine and p.oracle:
        stages.append(("oracle", with_oracle, (greedy,), 1))
    if max(p.ks) > 1:
        stages.append(("samples", samples, (sampling,), p.num_samples))
    numbered = list(enumerate(problems))
    known: Callable[[int, int], Sequence[dict]]
    known = lambda start, end: [header(q, problem) for q, problem in numbered[start:end]]  # noqa: E731
    for number, (name, solve, generators, texts) in enumerate(stages):
        name = "samples" if number == len(stages) - 1 else name  # noqa: PLW2901
        resumable_results.run_parts(
            results, name, numbered, solve, known=known, generators=generators, texts=texts,
            texts_per_slot=p.texts_per_slot, orchestrator=orchestrator, on_tick=on_tick,
        )  # fmt: skip
        known = lambda start, end, name=name: list(results.lines(name, start, end))  # noqa: E731


def header(q: int, problem: Problem) -> dict:
    """Returns what a line says of its question; `q` is the question's number, which keys its randomness."""
    return {
        "number": q,
        "source": problem.source,
        "id": problem_id(problem),
        "problem": problem.index,
        **({"turns": problem.turns} if problem.turns else {}),
        "question": problem.question,
        "answer": problem.answer,
    }


def num_ungraded(rows: Sequence[Rollout]) -> int:
    """Returns how many scored rows have no verdict."""
    return sum(row.ungraded for row in rows)


def hidden(problem: Problem) -> Problem:
    """Returns a problem without anything that holds its answer: what test-time refinement gets to see."""
    return problem.replace(answer="", solution=None, columns={})


async def _greedy_fields(
    policy: Generator, judge: Generator | RemoteGenerator | None, q: int, problem: Problem, p: Protocol
) -> dict:
    (response,) = await respond(policy, hidden(problem), question=q, num_responses=1, max_length=p.max_length)
    refined, ungraded = {}, 0
    if judge is not None:
        # All of it is written before the grader looks at the gold answer.
        refinement, refined = await refine_alone(policy, judge, response, hidden(problem), p)
        if refinement is not None:
            (refinement,) = await score([refinement], problem)
            refined |= _fields("refinement", refinement)
            ungraded += refinement.ungraded
    (response,) = await score([response], problem)
    if judge is not None:
        refined["refined_reward"] = refined.get("refinement_reward", response.reward)
        refined["refined_ungraded"] = bool(ungraded or response.ungraded)  # what refinement changed is unknown
    return _fields("greedy", response) | refined | {"ungraded": ungraded + response.ungraded}


async def refine_alone(
    policy: Generator, judge: Generator | RemoteGenerator, response: Rollout, problem: Problem, p: Protocol
) -> tuple[Rollout | None, dict]:
    """Returns the refinement of a response that its critic calls wrong, else None; and fields that describe both.

    A verdict that can't be read, or no critique at all, keeps the response.

    Args:
      policy: who answered and refines.
      judge: who criticises.
      response: the response; its reward is not read.
      problem: from `hidden`.
      p: lengths.
    """
    index = response.index.replace(stage=Stage.CRITIQUE)
    critique, cut = await judge.write_critique(
        problem, response, index, see_answer=False, max_length=p.max_critique_length
    )
    verdict = None if critique is None else critique.verdict
    fields = {"critique": critique and critique.whole_text, "verdict": verdict, "critique_prompt_cut": cut}
    if critique is None or verdict is not False:
        return None, fields
    (refinement,), counts = await rollout.refine(policy, [critique], problem, max_length=p.max_length)
    return refinement, fields | {"refine_prompt_cut": bool(counts["refine_prompts_cut"])}


async def _oracle_fields(policy: Generator, q: int, problem: Problem, known: dict, p: Protocol) -> dict:
    """Refines a wrong response, with the same critique, also where the critic did not call it wrong."""
    if known["greedy_reward"] >= p.pass_threshold or known["critique"] is None:
        return {"oracle_reward": known["greedy_reward"]}
    if known["verdict"] is False:
        return {"oracle_reward": known["refined_reward"]}
    response = text_row(known["greedy"], RowIndex(question=q))
    critique = text_row(known["critique"], RowIndex(question=q, stage=Stage.CRITIQUE), parent=response)
    (refinement,), _ = await rollout.refine(policy, [critique], hidden(problem), max_length=p.max_length)
    (refinement,) = await score([refinement], problem)
    return {
        "oracle_refinement": refinement.whole_text,
        "oracle_reward": refinement.reward,
        "ungraded": known["ungraded"] + refinement.ungraded,
    }


async def _sample_fields(policy: Generator, q: int, problem: Problem, known: dict, p: Protocol) -> dict:
    rows = await respond(policy, hidden(problem), question=q, num_responses=p.num_samples, max_length=p.max_length)
    rows = await score(rows, problem)
    kind = problem.grader or p.grader
    return {
        "samples": [row.whole_text for row in rows],
        "rewards": [row.reward for row in rows],
        "extracted": [row.extracted for row in rows],
        "lengths": [len(row.token_ids) for row in rows],
        "truncated": [row.truncated for row in rows],
        "votes": await votes(rows, problem, kind, p.pass_threshold) if kind in VOTING else None,
        "ungraded": known["ungraded"] + num_ungraded(rows),
    }


def _fields(name: str, row: Rollout) -> dict:
    return {
        name: row.whole_text,
        f"{name}_reward": row.reward,
        f"{name}_extracted": row.extracted,
        f"{name}_length": len(row.token_ids),
        f"{name}_truncated": row.truncated,
    }


def text_row(text: str, index: RowIndex, **more) -> Rollout:
    """Returns a rollout of which a file holds only the text, with what its prompt has opened."""
    none = np.zeros(0, np.int32)
    return Rollout(
        index=index,
        author=Author.POLICY,
        weights_step=0,
        prompt_ids=none,
        token_ids=none,
        logp=np.zeros(0, np.float32),
        text=text_lib.clean(text),
        **more,
    )


async def votes(rows: Sequence[Rollout], problem: Problem, kind: str, pass_threshold: float) -> list[int | None]:
    """Returns for each sample which answer it votes for: 0, 1, ... in the order in which they are seen first.

    All right answers equal the gold answer, so they are one. Wrong ones are one where their normal forms are equal and,
    of kind "math", where the grader takes one for the other (of the 32 most frequent, up to 100 characters long). A
    sample without an answer has no vote.

    Args:
      rows: the scored samples of a question.
      problem: what they answer.
      kind: of its grader.
      pass_threshold: reward from which a sample is right.
    """
    right = [reward_of(row) >= pass_threshold for row in rows]
    forms = [None if row.extracted is None else estimators.normal_form(row.extracted, kind) for row in rows]
    wrong = estimators.by_votes([form for form, r in zip(forms, right, strict=True) if form is not None and not r])
    same = {form: form for form in wrong}
    if kind == "math":
        same |= await _equivalent(wrong, rows[0], problem, pass_threshold)
    numbers: dict = {}
    voted = []
    for form, r in zip(forms, right, strict=True):
        key = ("right",) if r else None if form is None else same.get(form)
        voted.append(None if key is None else numbers.setdefault(key, len(numbers)))
    return voted


async def _equivalent(forms: Sequence[str], row: Rollout, problem: Problem, pass_threshold: float) -> dict[str, str]:
    """Returns for each form the first one that the grader takes for it; numbers were compared by value already."""
    forms = [form for form in forms[:_MOST_COMPARED] if len(form) <= _LONGEST_COMPARED]

    def others(j: int) -> list[int]:
        both_numbers = estimators.is_number(forms[j])
        return [i for i in range(j) if not (both_numbers and estimators.is_number(forms[i]))]

    async def equal_to(j: int) -> list[Rollout]:
        asked = [row.replace(text=f"\\boxed{{{forms[i]}}}", opening="") for i in others(j)]
        return await score(asked, problem.replace(answer=forms[j])) if asked else []

    graded = await gather([equal_to(j) for j in range(len(forms))])
    same: dict[str, str] = {}
    for j, rows in enumerate(graded):
        equal = [i for i, one in zip(others(j), rows, strict=True) if reward_of(one) >= pass_threshold]
        same[forms[j]] = same[forms[equal[0]]] if equal else forms[j]
    return same
