"""The stages of Critique-GRPO that write: respond, score, critique, refine.

Steps 1 to 3 of the algorithm, from problems to refinements; `solve` takes one question through them. What waits for a
model or a grader is a coroutine, which an `Orchestrator` runs for many questions at once. Step 2 is in
`inference.critic`, steps 4 to 6 are in `groups`.
"""

import collections
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.critic import CountedRows, Critic, critique, critiques_of, said_of, with_feedback
from cgrpo_jax.inference.generators import Generator, Refiner
from cgrpo_jax.inference.orchestrator import gather
from cgrpo_jax.models.hf.thinking_tags import without_thought
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage
from cgrpo_jax.rewards.grader import Grade

Counts = collections.Counter
# What grades: `(responses, problem, thinking_opened) -> grades`, to be awaited; see `orchestrator.grade`.
Grading = Callable[[list[str], Problem, list[bool]], Awaitable[list[Grade]]]


# --- one question, steps 1 to 3 -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """What is done with each question of an iteration, steps 1 to 3; the paper's symbols in brackets.

    Attributes:
      num_responses: responses to a question [n].
      max_length: tokens that a response, or a refinement, may have.
      pass_threshold: reward from which a row is right.
      reward_source: what rewards a row, the `verifier` or the verdict of its `critic`.
      rewards: kinds of the other rewards of a row, which add to its advantage alone.
      critique_when: whether only responses that are refined are critiqued (`refining`), or all.
      num_critiques: of each response.
      refine: who refines responses, the `policy`; `solution` inserts the data set's own, `none` plain GRPO.
      refine_which: of a question's responses, a name of `REFINED`: those that `failed`, or `all`.
      refine_max_pass: share of a question's responses that may pass where it is refined.
      refinements_per_critique: of each critique.
      taught: of the responses that have a critique, a name of `critic.TAUGHT`: which a teacher scores that has seen it.
    """

    num_responses: int
    max_length: int
    pass_threshold: float = 1.0
    reward_source: str = "verifier"
    rewards: tuple[str, ...] = ()
    critique_when: str = "refining"
    num_critiques: int = 1
    refine: str = "policy"
    refine_which: str = "failed"
    refine_max_pass: float = 0.0
    refinements_per_critique: int = 1
    taught: str = "none"


@dataclasses.dataclass(frozen=True)
class Solved:
    """What steps 1 to 3 have made of a question: its responses, the refinements, counts, and all critiques of both."""

    responses: list[Rollout]
    refinements: list[Rollout]
    counts: Counts
    critiques: list[Rollout]
    problem: Problem

    @property
    def question(self) -> int:
        """Its number in the iteration."""
        return self.responses[0].index.question


async def solve(
    policy: Generator, critic: Critic, problem: Problem, *, question: int, method: Method, tokenizer: Tokenizer,
    refiner: Generator | Refiner | None = None,
) -> Solved:  # fmt: skip
    """Takes one question through steps 1 to 3.

    Args:
      policy: who responds [pi_old].
      critic: who critiques.
      problem: the question.
      question: its number in the iteration.
      method: what is done with it.
      tokenizer: of texts that no model wrote.
      refiner: who refines; by default the policy.
    """
    solved = await _solve(
        policy, critic, problem, question=question, method=method, tokenizer=tokenizer, refiner=refiner or policy
    )
    # What a teacher of a response is shown, where responses are distilled.
    responses, new = with_feedback(
        solved.responses,
        solved.critiques,
        problem,
        policy.prompts,
        taught=method.taught,
        pass_threshold=method.pass_threshold,
    )
    return dataclasses.replace(solved, responses=responses, counts=solved.counts + new)


async def _solve(
    policy: Generator, critic: Critic, problem: Problem, *, question: int, method: Method, tokenizer: Tokenizer,
    refiner: Generator | Refiner,
) -> Solved:  # fmt: skip
    counts: Counts = collections.Counter()
    shown = critic.kind != "none"
    written: list[Rollout] = []  # all critiques
    by_verdict = functools.partial(score_by_verdict, problem=problem, num_critiques=method.num_critiques)

    async def ask_critic(rows: Sequence[Rollout]) -> CountedRows:
        found, new = await critique(critic, rows, problem, encode=tokenizer.encode, num_critiques=method.num_critiques)
        written.extend(found if shown else ())
        return found, new

    async def score_refined(rows: list[Rollout]) -> CountedRows:
        rows = await also_reward(rows, problem, method.rewards)
        if method.reward_source == "verifier":
            return await score(rows, problem), collections.Counter()
        verdicts, judged = await ask_critic(rows)
        return await by_verdict(rows, verdicts), judged

    # 1. Respond.
    responses = await respond(
        policy, problem, question=question, num_responses=method.num_responses, max_length=method.max_length
    )
    responses = await also_reward(responses, problem, method.rewards)
    if method.reward_source == "verifier":
        responses = await score(responses, problem)

    # 2. Critique, of all responses.
    critiques = None
    if method.critique_when == "all":
        critiques, new = await ask_critic(responses)
        counts += new
        if method.reward_source == "critic":  # the verdict is the reward
            responses = await by_verdict(responses, critiques)

    chosen = to_refine(
        responses,
        refine_max_pass=method.refine_max_pass,
        pass_threshold=method.pass_threshold,
        which=method.refine_which,
    )
    if method.refine == "none" or not chosen:
        return Solved(responses, [], counts, in_order(written), problem)
    if method.refine == "solution":
        inserted = insert_solution(chosen, problem, encode=tokenizer.encode_turn, end_of_turn=tokenizer.end_of_turn_id)
        refinements, judged = await score_refined(inserted)
        return Solved(responses, refinements, counts + judged, in_order(written), problem)

    async def refine_one(row: Rollout) -> CountedRows:
        if critiques is None:
            critiqued, new = await ask_critic([row])  # 2. Critique, of those that are refined.
        else:
            critiqued, new = critiques_of([row], critiques), collections.Counter()
        refinements, more = await refine(  # 3. Refine.
            refiner,
            critiqued,
            problem,
            max_length=method.max_length,
            refinements_per_critique=method.refinements_per_critique,
            shows=critic.shows,
        )
        refinements, judged = await score_refined(refinements)
        return refinements, new + more + judged

    refined = await gather([refine_one(row) for row in chosen])
    refinements = [row for rows, _ in refined for row in rows]
    return Solved(responses, refinements, sum((new for _, new in refined), counts), in_order(written), problem)


def in_order(rows: Sequence[Rollout]) -> list[Rollout]:
    """Returns rows in the order of their indices: the one in which they came depends on what they waited for."""
    return sorted(rows, key=lambda row: dataclasses.astuple(row.index))


# --- 1. respond ---------------------------------------------------------------------------------------------------


async def respond(
    policy: Generator, problem: Problem, *, question: int, num_responses: int, max_length: int
) -> list[Rollout]:
    """Samples n responses to the problem that is question number `question` of its iteration."""
    indices = [RowIndex(question=question, response=i) for i in range(num_responses)]
    prompt = policy.prompts.for_question(problem.question, problem.turns)
    return await policy.write(prompt, indices, max_length=max_length)


async def score(rollouts: Sequence[Rollout], problem: Problem, grade: Grading = orchestrator.grade) -> list[Rollout]:
    """Returns the rollouts, all of one problem, with the verifier's reward, and with what it read and found."""
    grades = await grade([row.text for row in rollouts], problem, [bool(row.opening) for row in rollouts])
    return [
        row.replace(reward=float(g.score), extracted=g.extracted, feedback=g.reason, ungraded=g.failed)
        for row, g in zip(rollouts, grades, strict=True)
    ]


async def also_reward(rollouts: list[Rollout], problem: Problem, kinds: Sequence[str]) -> list[Rollout]:
    """Returns the rollouts, all of one problem, with their rewards of further kinds; null where a grader gives none."""

    async def of_kind(kind: str) -> list[float | None]:
        texts, opened = [row.text for row in rollouts], [bool(row.opening) for row in rollouts]
        grades = await orchestrator.grade(texts, problem.replace(grader=kind), opened)
        return [None if one.failed else float(one.score) for one in grades]

    if not kinds:
        return rollouts
    columns = zip(*await gather([of_kind(kind) for kind in kinds]), strict=True)
    return [
        row.replace(rewards=tuple(zip(kinds, values, strict=True)))
        for row, values in zip(rollouts, columns, strict=True)
    ]


async def score_by_verdict(
    rollouts: Sequence[Rollout], verdicts: Sequence[Rollout], problem: Problem, *, num_critiques: int
) -> list[Rollout]:
    """Returns the rollouts, all of one problem, with their critics' verdicts as rewards (the unsupervised variant).

    The reward is 1 if more than half of a row's critiques call it right; a verdict that can't be read calls it wrong.
    Where critiques that are missing might change that, the row has no verdict.

    Args:
      rollouts: B rows.
      verdicts: their critiques, B * num_critiques.
      problem: what the rows answer.
      num_critiques: of each row.
    """
    grades = [_by_majority(verdicts[i * num_critiques :][:num_critiques]) for i in range(len(rollouts))]

    def grade(texts: list[str], problem: Problem, thinking_opened: list[bool]) -> Awaitable[list[Grade]]:
        return orchestrator.record_grades(grades, texts, problem, by="critic")

    return await score(rollouts, problem, grade)


def reward_of(row: Rollout) -> float:
    """Returns the reward of a row that has been scored."""
    assert row.reward is not None, "the row has not been scored"
    return row.reward


def _by_majority(verdicts: Sequence[Rollout]) -> Grade:
    right, half = sum(row.verdict is True for row in verdicts), len(verdicts) / 2
    missing = sum(row.ungraded for row in verdicts)
    said = f"{right} of {len(verdicts)} critiques call it right"
    if right <= half < right + missing:
        return Grade(0.0, None, f"{said}, and {missing} did not come", failed=True)
    return Grade(float(right > half), None, said)


# --- 3. refine ----------------------------------------------------------------------------------------------------

# Which responses to a question are refined, by whether they pass.
REFINED: dict[str, Callable[[bool], bool]] = {"failed": lambda passed: not passed, "all": lambda passed: True}


def to_refine(
    responses: Sequence[Rollout], *, refine_max_pass: float, pass_threshold: float, which: str = "failed"
) -> list[Rollout]:
    """Returns the failed responses to a question if at most `refine_max_pass` of its responses pass, else none.

    Responses without a verdict count as neither. `which="all"` returns those that pass too (a name of `REFINED`).
    """
    graded = [row for row in responses if not row.ungraded]
    passed = [reward_of(row) >= pass_threshold for row in graded]
    if not graded or np.mean(passed) > refine_max_pass:
        return []
    return [row for row, p in zip(graded, passed, strict=True) if REFINED[which](p)]


def _with_critique(prompts: Prompts, problem: Problem, critique: Rollout) -> tuple[np.ndarray, bool]:
    return prompts.for_refinement(problem.question, _response_of(critique), said_of(critique), problem.turns)


def _without_critique(prompts: Prompts, problem: Problem, critique: Rollout) -> tuple[np.ndarray, bool]:
    return prompts.for_refinement(problem.question, _response_of(critique), None, problem.turns)


def _with_hint(prompts: Prompts, problem: Problem, hint: Rollout) -> tuple[np.ndarray, bool]:
    return prompts.for_hinted(problem.question, said_of(hint), problem.turns)


# What a refinement sees besides the question: its prompt, and whether that was cut.
SHOWN = {"critique": _with_critique, "nothing": _without_critique, "hint": _with_hint}


def _response_of(critique: Rollout) -> str:
    assert critique.parent is not None, "a critique is of a response"
    return critique.parent.whole_text


async def refine(
    refiner: Generator | Refiner,
    critiqued: Sequence[Rollout],
    problem: Problem,
    *,
    max_length: int,
    refinements_per_critique: int = 1,
    shows: str = "critique",
) -> tuple[list[Rollout], Counts]:
    """Samples refinements, each from its question, failed response and critique.

    Args:
      refiner: who refines: the policy, or a frozen model.
      critiqued: critiques; their parents are the failed responses.
      problem: what they answer.
      max_length: tokens that a refinement may have.
      refinements_per_critique: how many each.
      shows: what is in the prompt, a name of `SHOWN`: the response with its `critique`, the response and `nothing` else
        (an ablation), or a `hint` alone.

    Returns:
      (refinements, their critiques as parents; counts for the metrics)
    """

    def prompt_of(row: Rollout) -> tuple[np.ndarray, bool]:
        return SHOWN[shows](refiner.prompts, problem, row)

    prompts = [prompt_of(row) for row in critiqued]  # all, before the first is asked for: one may raise
    writing = []
    for row, (prompt, _) in zip(critiqued, prompts, strict=True):
        at = row.index.replace(stage=Stage.REFINEMENT, attempt=0)
        indices = [at.replace(refinement=r) for r in range(refinements_per_critique)]
        writing.append(refiner.write(prompt, indices, max_length=max_length, parent=row))
    counts = collections.Counter(refine_prompts_cut=sum(cut for _, cut in prompts))
    written = zip(await gather(writing), prompts, strict=True)
    return [row.replace(prompt_cut=cut) for rows, (_, cut) in written for row in rows], counts


def insert_solution(
    chosen: Sequence[Rollout], problem: Problem, *, encode: Callable[[str], list[int]], end_of_turn: int
) -> list[Rollout]:
    """Returns the data set's own solution of a problem in the place of refinements, if any response is to be refined.

    An ablation: is the gain of refinements only that one correct sample was added?
    """
    if not chosen:
        return []
    assert problem.solution is not None  # checked when the data was loaded
    first = chosen[0]
    text = without_thought(problem.solution, first.opening)
    ids = np.asarray([*encode(text), end_of_turn], np.int32)
    return [
        Rollout(
            index=first.index.replace(stage=Stage.REFINEMENT),
            author=Author.SOLUTION,
            weights_step=first.weights_step,
            prompt_ids=first.prompt_ids,
            token_ids=ids,
            logp=np.zeros(len(ids), np.float32),
            text=text,
            opening=first.opening,
            parent=first,
        )
    ]
