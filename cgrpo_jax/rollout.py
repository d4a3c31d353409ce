"""The stages of Critique-GRPO before the update: respond, score, critique, refine, select, re-anchor, advantage.

Steps 1 to 6 of the algorithm, from problems to train rows; `solve` takes one question through the first three. What
waits for a model or a grader is a coroutine, which an `Orchestrator` runs for many questions at once. Step 2 is in
`inference.critic`.
"""

import collections
import dataclasses
import functools
import random
from collections.abc import Awaitable, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import objective
from cgrpo_jax.critiques.texts import mentions_critique
from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.critic import CountedRows, Critic, critique, critiques_of, said_of
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import gather
from cgrpo_jax.models.hf.thinking_tags import without_thought
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.rewards.grader import Grade

Counts = collections.Counter
# What grades: `(responses, problem, thinking_opened) -> grades`, to be awaited; see `orchestrator.grade`.
Grading = Callable[[list[str], Problem, list[bool]], Awaitable[list[Grade]]]


# --- one question, steps 1 to 3 -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """What is done with each question of an iteration, steps 1 to 6; the paper's symbols in brackets.

    Attributes:
      num_responses: responses to a question [n].
      max_length: tokens that a response, or a refinement, may have.
      pass_threshold: reward from which a row is right.
      reward_source: what rewards a row, the `verifier` or the verdict of its `critic`.
      critique_when: whether only responses that are refined are critiqued (`refining`), or all.
      num_critiques: of each response.
      refine: who refines failed responses, the `policy`; `solution` inserts the data set's own, `none` plain GRPO.
      refine_max_pass: share of a question's responses that may pass where it is refined.
      refinements_per_critique: of each critique.
      drop_mentions: leave out refinements that mention the critique, before selection.
      num_kept: refinements that enter the group [k].
      scale_by_std: divide advantages by the standard deviation of their group.
    """

    num_responses: int
    max_length: int
    pass_threshold: float = 1.0
    reward_source: str = "verifier"
    critique_when: str = "refining"
    num_critiques: int = 1
    refine: str = "policy"
    refine_max_pass: float = 0.0
    refinements_per_critique: int = 1
    drop_mentions: bool = False
    num_kept: int = 1
    scale_by_std: bool = False

    @property
    def max_rows(self) -> int:
        """Rows that a group may have."""
        return self.num_responses + self.num_kept


@dataclasses.dataclass(frozen=True)
class Solved:
    """What steps 1 to 3 have made of a question: its responses, the refinements, counts, and all critiques of both."""

    responses: list[Rollout]
    refinements: list[Rollout]
    counts: Counts
    critiques: list[Rollout]


async def solve(
    policy: Generator, critic: Critic, problem: Problem, *, question: int, method: Method, tokenizer: Tokenizer
) -> Solved:
    """Takes one question through steps 1 to 3.

    Args:
      policy: who responds and refines [pi_old].
      critic: who critiques.
      problem: the question.
      question: its number in the iteration.
      method: what is done with it.
      tokenizer: of texts that no model wrote.
    """
    counts: Counts = collections.Counter()
    shown = critic.kind != "none"
    written: list[Rollout] = []  # all critiques
    by_verdict = functools.partial(score_by_verdict, problem=problem, num_critiques=method.num_critiques)

    async def ask_critic(rows: Sequence[Rollout]) -> CountedRows:
        found, new = await critique(critic, rows, problem, encode=tokenizer.encode, num_critiques=method.num_critiques)
        written.extend(found if shown else ())
        return found, new

    async def score_refined(rows: list[Rollout]) -> CountedRows:
        if method.reward_source == "verifier":
            return await score(rows, problem), collections.Counter()
        verdicts, judged = await ask_critic(rows)
        return await by_verdict(rows, verdicts), judged

    # 1. Respond.
    responses = await respond(
        policy, problem, question=question, num_responses=method.num_responses, max_length=method.max_length
    )
    if method.reward_source == "verifier":
        responses = await score(responses, problem)

    # 2. Critique, of all responses.
    critiques = None
    if method.critique_when == "all":
        critiques, new = await ask_critic(responses)
        counts += new
        if method.reward_source == "critic":  # the verdict is the reward
            responses = await by_verdict(responses, critiques)

    failed = to_refine(responses, refine_max_pass=method.refine_max_pass, pass_threshold=method.pass_threshold)
    if method.refine == "none" or not failed:
        return Solved(responses, [], counts, in_order(written))
    if method.refine == "solution":
        inserted = insert_solution(failed, problem, encode=tokenizer.encode_turn, end_of_turn=tokenizer.end_of_turn_id)
        refinements, judged = await score_refined(inserted)
        return Solved(responses, refinements, counts + judged, in_order(written))

    async def refine_one(row: Rollout) -> CountedRows:
        if critiques is None:
            critiqued, new = await ask_critic([row])  # 2. Critique, of those that are refined.
        else:
            critiqued, new = critiques_of([row], critiques), collections.Counter()
        refinements, more = await refine(  # 3. Refine.
            policy,
            critiqued,
            problem,
            max_length=method.max_length,
            refinements_per_critique=method.refinements_per_critique,
            show_critique=shown,
        )
        refinements, judged = await score_refined(refinements)
        return refinements, new + more + judged

    refined = await gather([refine_one(row) for row in failed])
    refinements = [row for rows, _ in refined for row in rows]
    return Solved(responses, refinements, sum((new for _, new in refined), counts), in_order(written))


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


def to_refine(responses: Sequence[Rollout], *, refine_max_pass: float, pass_threshold: float) -> list[Rollout]:
    """Returns the failed responses to a question if at most `refine_max_pass` of its responses pass, else none.

    Responses without a verdict count as neither.
    """
    graded = [row for row in responses if not row.ungraded]
    passed = [reward_of(row) >= pass_threshold for row in graded]
    if not graded or np.mean(passed) > refine_max_pass:
        return []
    return [row for row, p in zip(graded, passed, strict=True) if not p]


async def refine(
    policy: Generator,
    critiqued: Sequence[Rollout],
    problem: Problem,
    *,
    max_length: int,
    refinements_per_critique: int = 1,
    show_critique: bool = True,
) -> tuple[list[Rollout], Counts]:
    """Samples refinements, each from its question, failed response and critique.

    Args:
      policy: who refines.
      critiqued: critiques; their parents are the failed responses.
      problem: what they answer.
      max_length: tokens that a refinement may have.
      refinements_per_critique: how many each.
      show_critique: False leaves the critique out of the prompt (an ablation).

    Returns:
      (refinements, their critiques as parents; counts for the metrics)
    """

    def prompt_of(row: Rollout) -> tuple[np.ndarray, bool]:
        assert row.parent is not None, "a critique is of a response"
        shown = said_of(row) if show_critique else None
        return policy.prompts.for_refinement(problem.question, row.parent.whole_text, shown, problem.turns)

    prompts = [prompt_of(row) for row in critiqued]  # all, before the first is asked for: one may raise
    writing = []
    for row, (prompt, _) in zip(critiqued, prompts, strict=True):
        at = row.index.replace(stage=Stage.REFINEMENT, attempt=0)
        indices = [at.replace(refinement=r) for r in range(refinements_per_critique)]
        writing.append(policy.write(prompt, indices, max_length=max_length, parent=row))
    counts = collections.Counter(refine_prompts_cut=sum(cut for _, cut in prompts))
    written = zip(await gather(writing), prompts, strict=True)
    return [row.replace(prompt_cut=cut) for rows, (_, cut) in written for row in rows], counts


def insert_solution(
    failed: Sequence[Rollout], problem: Problem, *, encode: Callable[[str], list[int]], end_of_turn: int
) -> list[Rollout]:
    """Returns the data set's own solution of a problem in the place of refinements, if any response is to be refined.

    An ablation: is the gain of refinements only that one correct sample was added?
    """
    if not failed:
        return []
    assert problem.solution is not None  # checked when the data was loaded
    first = failed[0]
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


# --- 4. select ----------------------------------------------------------------------------------------------------


def without_mentions(refinements: Sequence[Rollout]) -> list[Rollout]:
    """Returns the refinements that do not mention the critique or the earlier attempt."""
    return [row for row in refinements if not mentions_critique(row.text)]


def select(refinements: Sequence[Rollout], *, num_kept: int, seed: int, iteration: int) -> list[Rollout]:
    """Keeps `num_kept` refinements a question, highest reward first, ties at random; none without a verdict.

    The draw depends on (seed, iteration, question) only.
    """
    by_question = collections.defaultdict(list)
    for row in refinements:
        if not row.ungraded:
            by_question[row.index.question].append(row)
    kept = []
    for q, rows in sorted(by_question.items()):
        rng = random.Random(f"select {seed} {iteration} {q}")
        rng.shuffle(rows)
        kept += sorted(rows, key=lambda row: -reward_of(row))[:num_kept]
    return kept


# --- 5. re-anchor -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of a question that train, all as answers to its prompt, whatever they were sampled from."""

    prompt_ids: np.ndarray
    rows: list[Rollout]


def reanchor(responses: Sequence[Sequence[Rollout]], kept: Sequence[Rollout]) -> list[Group]:
    """Returns each question's group: its responses, then its kept refinements.

    A refinement's context is the prompt of the question, not the one it was sampled from: every log-probability of it
    is `pi(y' | q)`, as if no critique had been seen. A response without a verdict is left out: it has no part in the
    others' baseline either.

    Args:
      responses: Q groups.
      kept: the refinements that were selected.
    """
    groups = [list(group) for group in responses]
    for row in kept:
        groups[row.index.question].append(row)
    return [Group(group[0].prompt_ids, [row for row in group if not row.ungraded]) for group in groups]


# --- 6. advantage -------------------------------------------------------------------------------------------------


def train_rows(groups: Sequence[Group], *, scale_by_std: bool, max_rows_per_group: int) -> list[list[TrainRow]]:
    """Returns each group as train rows, with their advantages over it. The tokens are the sampled ones.

    Args:
      groups: Q groups.
      scale_by_std: divide advantages by the standard deviation of their group.
      max_rows_per_group: rows that a group may have; fixes the shapes of what is computed.
    """
    rewards = [reward_of(row) for group in groups for row in group.rows]
    # The number of kept refinements changes with every iteration. Padded to what it may be at most, the shape does not,
    # and nothing is compiled again; the power of two, lest another number of questions is.
    size = 1 << (len(groups) * max_rows_per_group - 1).bit_length()
    reward_B = np.zeros(size, np.float32)
    group_B = np.full(size, -1)
    reward_B[: len(rewards)] = rewards
    group_B[: len(rewards)] = [q for q, group in enumerate(groups) for _ in group.rows]
    found_B = objective.group_advantages(
        jnp.asarray(reward_B), jnp.asarray(group_B), num_groups=len(groups), scale_by_std=scale_by_std
    )
    advantage_B = iter(np.asarray(jax.device_get(found_B)))
    return [
        [
            TrainRow(
                context_ids=group.prompt_ids,
                target_ids=row.token_ids,
                old_logp=row.logp,
                advantage=float(next(advantage_B)),
                refined=row.stage == Stage.REFINEMENT,
            )
            for row in group.rows
        ]
        for group in groups
    ]
