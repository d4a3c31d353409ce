"""The stages of Critique-GRPO before the update: respond, score, critique, refine, select, re-anchor.

Each stage takes rollouts and returns rollouts (DESIGN: steps 1 to 6 of the algorithm); none knows of the others. Those
that wait for a model or a grader are coroutines, which a `orchestrator.Pipeline` runs for many questions at once.
"""

import collections
import dataclasses
import random
from collections.abc import Awaitable, Callable, Sequence

import jax
import numpy as np

from cgrpo_jax import objective
from cgrpo_jax.critiques import texts as texts_lib
from cgrpo_jax.critiques.step_check.equations import StepError
from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.generators import HttpWriter, Writer
from cgrpo_jax.inference.orchestrator import together
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.rewards.grader import Grade

Counts = collections.Counter
# What grades: `(responses, problem) -> grades`, to be awaited.
Grading = Callable[[list[str], Problem], Awaitable[list[Grade]]]


# --- 1. respond ---------------------------------------------------------------------------------------------------


async def respond(
    policy: Writer, problem: Problem, *, question: int, num_responses: int, max_length: int
) -> list[Rollout]:
    """Samples n responses to the problem that is question number `question` of its iteration."""
    indices = [RowIndex(question=question, response=i) for i in range(num_responses)]
    return await policy.write(policy.prompts.for_question(problem.question), indices, max_length=max_length)


async def score(rollouts: Sequence[Rollout], problem: Problem, grade: Grading = orchestrator.grade) -> list[Rollout]:
    """Returns the rollouts, all of one problem, with the verifier's reward, and with what it read and found."""
    grades = await grade([row.text for row in rollouts], problem)
    return [
        row.replace(reward=float(g.score), extracted=g.extracted, feedback=g.reason, ungraded=g.failed)
        for row, g in zip(rollouts, grades, strict=True)
    ]


async def score_by_verdict(
    rollouts: Sequence[Rollout], verdicts: Sequence[Rollout], problem: Problem, *, num_critiques: int
) -> list[Rollout]:
    """Returns the rollouts, all of one problem, with their critics' verdicts as rewards (the unsupervised variant).

    The reward is 1 if more than half of a row's critiques call it right; a verdict that can't be read calls it wrong.
    Where those that nobody has written might change that, the row has no verdict.

    Args:
      rollouts: B rows.
      verdicts: their critiques, B * num_critiques.
      problem: what the rows answer.
      num_critiques: of each row.
    """
    grades = [_by_majority(verdicts[i * num_critiques :][:num_critiques]) for i in range(len(rollouts))]

    def grade(texts: list[str], problem: Problem) -> Awaitable[list[Grade]]:
        return orchestrator.note(grades, texts, problem, by="critic")

    return await score(rollouts, problem, grade)


def _by_majority(verdicts: Sequence[Rollout]) -> Grade:
    right, half = sum(row.verdict is True for row in verdicts), len(verdicts) / 2
    missing = sum(row.ungraded for row in verdicts)
    said = f"{right} of {len(verdicts)} critiques call it right"
    if right <= half < right + missing:
        return Grade(0.0, None, f"{said}, and {missing} did not come", failed=True)
    return Grade(float(right > half), None, said)


# --- 2. critique --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Critic:
    """How a response is critiqued.

    Attributes:
      kind: `indicative`, `indicative_gt`, `execution`, `cot`, or `none` (refine without a critique).
      writer: the model that writes `cot` critiques, the policy itself or a frozen critic; else None.
      see_answer: put the reference answer into the `cot` critic's prompt.
      grader: kind of the run's grader. `execution` of a program is what its grader found: the test that fails.
      check_steps: `(question, response) -> StepError | None`, what `execution` of any other response runs.
      reveal_value: `execution` names the right value of the wrong step or test, not only the step or test.
      max_retries: further attempts at a `cot` critique whose verdict can't be used.
      max_length: tokens that a `cot` critique may have.
      pass_threshold: reward from which a response is right.
    """

    kind: str
    writer: Writer | HttpWriter | None = None
    see_answer: bool = False
    grader: str = ""
    check_steps: Callable[[str, str], StepError | None] | None = None
    reveal_value: bool = True
    max_retries: int = 2
    max_length: int = 512
    pass_threshold: float = 1.0


async def critique(
    critic: Critic,
    rollouts: Sequence[Rollout],
    problem: Problem,
    *,
    encode: Callable[[str], list[int]],
    num_critiques: int = 1,
) -> tuple[list[Rollout], Counts]:
    """Critiques responses (or refinements) to a problem that have been scored.

    A `cot` critique whose verdict is malformed, or disagrees with the reward, is written again with another random
    key, and after `max_retries` replaced by the indicative one. A row without a reward (unsupervised variant), or whose
    grader failed, accepts any verdict that can be read.

    Args:
      critic: how.
      rollouts: what to critique; becomes each critique's `parent`.
      problem: what they answer.
      encode: text to token ids, for critiques that no model wrote.
      num_critiques: critiques for each row.

    Returns:
      (critiques in the order of `rollouts`, `num_critiques` each; counts for the metrics)
    """
    done = await together(
        [
            _critique_one(critic, row, _critique_index(row, c, num_critiques), problem, encode)
            for row in rollouts
            for c in range(num_critiques)
        ]
    )
    return [row for row, _ in done], sum((counts for _, counts in done), collections.Counter())


async def _critique_one(
    critic: Critic, row: Rollout, index: RowIndex, problem: Problem, encode: Callable[[str], list[int]]
) -> tuple[Rollout, Counts]:
    counts: Counts = collections.Counter(critiqued=1)
    unanswered = False
    if critic.kind == "cot":
        for attempt in range(critic.max_retries + 1):
            written, cut = await critic.writer.write_critique(
                problem,
                row,
                index.replace(attempt=attempt),
                see_answer=critic.see_answer,
                max_length=critic.max_length,
            )
            counts["prompts_cut"] += cut
            counts["attempts"] += 1
            if written is None:  # an endpoint that has given no answer has had its retries
                counts["unanswered"] += 1
                unanswered = True
                break
            written = written.replace(verdict=texts_lib.parse_verdict(written.text))
            counts["tokens"] += len(written.token_ids)
            if attempt == 0:
                counts.update(_verdict_counts(written, critic.pass_threshold))
            if _usable(written, critic.pass_threshold):
                return written, counts
        counts["fallbacks"] += 1
    return _by_rule(_rule_text(critic, row, problem), row, index, encode).replace(ungraded=unanswered), counts


def critiques_of(rows: Sequence[Rollout], critiques: Sequence[Rollout]) -> list[Rollout]:
    """Returns those critiques that are of the given responses, with these (scored since) as their parents."""
    wanted = {(row.index.question, row.index.response): row for row in rows}
    at = [(critique.index.question, critique.index.response) for critique in critiques]
    return [one.replace(parent=wanted[key]) for one, key in zip(critiques, at, strict=True) if key in wanted]


def _critique_index(row: Rollout, c: int, num_critiques: int) -> RowIndex:
    # A refinement's critique counts its refinement from 1, so that its key is not that of its response's critique, and
    # keeps apart refinements that followed different critiques of one response.
    refinement = row.index.refinement + 1 if row.stage == Stage.REFINEMENT else 0
    critique = row.index.critique * num_critiques + c
    return row.index.replace(critique=critique, refinement=refinement, stage=Stage.CRITIQUE, attempt=0)


def _passed(row: Rollout, pass_threshold: float) -> bool | None:
    """Is a row right? None where nobody knows."""
    return None if row.reward is None or row.ungraded else row.reward >= pass_threshold


def _usable(row: Rollout, pass_threshold: float) -> bool:
    return row.verdict is not None and _passed(row.parent, pass_threshold) in (None, row.verdict)


def _verdict_counts(row: Rollout, pass_threshold: float) -> Counts:
    """Counts a first attempt's verdict against the verifier's."""
    comparable = int(not row.parent.ungraded)
    if row.verdict is None:
        return collections.Counter(malformed=1, comparable=comparable)
    passed = _passed(row.parent, pass_threshold)
    if passed is None:
        return collections.Counter(valid=comparable, comparable=comparable)
    return collections.Counter(
        comparable=1,
        valid=int(row.verdict == passed),
        false_right=int(row.verdict and not passed),
        false_wrong=int(passed and not row.verdict),
        judged_failed=int(not passed),
        judged_passed=int(passed),
    )


def _rule_text(critic: Critic, row: Rollout, problem: Problem) -> str:
    passed = row.reward is not None and row.reward >= critic.pass_threshold
    if critic.kind == "execution" and (problem.grader or critic.grader) == "code":
        return texts_lib.of_tests(passed, row.feedback, reveal_value=critic.reveal_value)
    if critic.kind == "execution":
        error = None if passed else critic.check_steps(problem.question, row.text)
        return texts_lib.execution(passed, error, reveal_value=critic.reveal_value)
    return texts_lib.indicative(passed, answer=problem.answer if critic.kind == "indicative_gt" else None)


def _by_rule(text: str, row: Rollout, index: RowIndex, encode) -> Rollout:
    ids = np.asarray(encode(text), np.int32)
    return Rollout(
        index=index,
        author=Author.RULE,
        weights_step=row.weights_step,
        prompt_ids=np.zeros(0, np.int32),
        token_ids=ids,
        logp=np.zeros(len(ids), np.float32),
        text=text,
        parent=row,
        # Where nothing is known of the reward, a critic that can't be read has said nothing.
        verdict=texts_lib.parse_verdict(text) if row.reward is not None else None,
    )


# --- 3. refine ----------------------------------------------------------------------------------------------------


def to_refine(responses: Sequence[Rollout], *, refine_max_pass: float, pass_threshold: float) -> list[Rollout]:
    """Returns the failed responses to a question if at most `refine_max_pass` of its responses pass, else none.

    Responses without a verdict count as neither.
    """
    graded = [row for row in responses if not row.ungraded]
    passed = [row.reward >= pass_threshold for row in graded]
    if not graded or np.mean(passed) > refine_max_pass:
        return []
    return [row for row, p in zip(graded, passed, strict=True) if not p]


async def refine(
    policy: Writer,
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
    prompts = [
        policy.prompts.for_refinement(problem.question, row.parent.text, row.text if show_critique else None)
        for row in critiqued
    ]
    writing = []
    for row, (prompt, _) in zip(critiqued, prompts, strict=True):
        at = row.index.replace(stage=Stage.REFINEMENT, attempt=0)
        indices = [at.replace(refinement=r) for r in range(refinements_per_critique)]
        writing.append(policy.write(prompt, indices, max_length=max_length, parent=row))
    counts = collections.Counter(refine_prompts_cut=sum(cut for _, cut in prompts))
    return [row for rows in await together(writing) for row in rows], counts


def insert_solution(
    failed: Sequence[Rollout], problem: Problem, *, encode: Callable[[str], list[int]], end_of_turn: int
) -> list[Rollout]:
    """Returns the data set's own solution of a problem in the place of refinements, if any response is to be refined.

    An ablation: is the gain of refinements only that one correct sample was added?
    """
    if not failed:
        return []
    first, ids = failed[0], np.asarray([*encode(problem.solution), end_of_turn], np.int32)
    return [
        Rollout(
            index=first.index.replace(stage=Stage.REFINEMENT),
            author=Author.SOLUTION,
            weights_step=first.weights_step,
            prompt_ids=first.prompt_ids,
            token_ids=ids,
            logp=np.zeros(len(ids), np.float32),
            text=problem.solution,
            parent=first,
        )
    ]


# --- 4. select ----------------------------------------------------------------------------------------------------


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
        kept += sorted(rows, key=lambda row: -row.reward)[:num_kept]
    return kept


# --- 5. re-anchor, 6. advantage -----------------------------------------------------------------------------------


def train_rows(
    responses: Sequence[Sequence[Rollout]], kept: Sequence[Rollout], *, scale_by_std: bool, num_kept: int = 1
) -> list[list[TrainRow]]:
    """Returns each question's group as train rows: its responses, then its kept refinements.

    A refinement's context is the prompt of the question, not the one it was sampled from: every log-probability of it
    is `pi(y' | q)`, as if no critique had been seen. The tokens are the sampled ones. A response without a verdict is
    left out: it has no part in the others' baseline either.

    Args:
      responses: Q groups.
      kept: of the refinements, at most `num_kept` a question.
      scale_by_std: divide advantages by the standard deviation of their group.
      num_kept: fixes the shapes of what is computed.
    """
    groups = [list(group) for group in responses]
    for row in kept:
        groups[row.index.question].append(row)
    graded = [[row for row in group if not row.ungraded] for group in groups]
    rewards = [row.reward for group in graded for row in group]
    # The number of kept refinements changes with every iteration. Padded to what it may be at most, the shape does not,
    # and nothing is compiled anew; the power of two, lest another number of questions is.
    size = 1 << (sum(map(len, responses)) + num_kept * len(responses) - 1).bit_length()
    reward_B = np.zeros(size, np.float32)
    group_B = np.full(size, -1)
    reward_B[: len(rewards)] = rewards
    group_B[: len(rewards)] = [q for q, group in enumerate(graded) for _ in group]
    advantage_B = iter(
        np.asarray(
            jax.device_get(
                objective.group_advantages(reward_B, group_B, num_groups=len(groups), scale_by_std=scale_by_std)
            )
        )
    )
    return [
        [
            TrainRow(
                context_ids=group[0].prompt_ids,
                target_ids=row.token_ids,
                old_logp=row.logp,
                advantage=float(next(advantage_B)),
                refined=row.stage == Stage.REFINEMENT,
            )
            for row in rows
        ]
        for group, rows in zip(groups, graded, strict=True)
    ]
