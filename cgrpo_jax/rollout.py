"""The stages of Critique-GRPO before the update: respond, score, critique, refine, select, re-anchor.

Each stage takes rollouts and returns rollouts (DESIGN: steps 1 to 6 of the algorithm); none knows of the others.
"""

import collections
import dataclasses
import random
from collections.abc import Callable, Sequence

import jax
import numpy as np

from cgrpo_jax import critiques, objective, runtime
from cgrpo_jax.equations import StepError
from cgrpo_jax.generate import Generator
from cgrpo_jax.prompts import Prompts
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.rewards import Grade, Grader

Counts = collections.Counter


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model that writes text: the policy, or a frozen critic.

    Attributes:
      generator, params: what samples, and its weights.
      prompts: the model's own prompts (its tokenizer and chat template).
      author, weights_step: who signs the rollouts, and how many updates the weights have seen.
      seed, iteration: enter every random key.
      temperature, top_p, top_k: as in `sampling.sample`.
    """

    generator: Generator
    params: dict
    prompts: Prompts
    author: Author
    weights_step: int
    seed: int
    iteration: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def write(
        self,
        prompt_ids: Sequence[np.ndarray],
        indices: Sequence[Sequence[RowIndex]],
        *,
        max_length: int,
        parents: Sequence[Rollout | None] | None = None,
    ) -> list[list[Rollout]]:
        """Samples the rows that `indices` name, `indices[q]` after prompt q, as rollouts."""
        sampled = self.generator(
            self.params,
            prompt_ids,
            indices,
            seed=self.seed,
            iteration=self.iteration,
            max_length=max_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )
        tokenizer = self.prompts.tokenizer
        return [
            [
                Rollout(
                    index=index,
                    author=self.author,
                    weights_step=self.weights_step,
                    prompt_ids=prompt,
                    token_ids=row.token_ids,
                    logp=row.logp,
                    text=tokenizer.decode(row.token_ids),
                    truncated=row.truncated,
                    parent=parents[q] if parents else None,
                )
                for index, row in zip(indices[q], rows, strict=True)
            ]
            for q, (prompt, rows) in enumerate(zip(prompt_ids, sampled, strict=True))
        ]


# --- 1. respond ---------------------------------------------------------------------------------------------------


def respond(policy: Writer, problems: Sequence[Problem], *, num_responses: int, max_length: int) -> list[list[Rollout]]:
    """Samples n responses to each of Q questions; returns Q lists of n."""
    prompts = [policy.prompts.for_question(problem.question) for problem in problems]
    indices = [[RowIndex(question=q, response=i) for i in range(num_responses)] for q in range(len(problems))]
    return policy.write(prompts, indices, max_length=max_length)


def score(
    rollouts: Sequence[Rollout], problems: Sequence[Problem], grade: Callable[[list[str], list[str]], list[Grade]]
) -> list[Rollout]:
    """Returns the rollouts with the verifier's reward."""
    answers = [problems[row.index.question].answer for row in rollouts]
    grades = grade([row.text for row in rollouts], answers)
    return [row.replace(reward=float(g.score)) for row, g in zip(rollouts, grades, strict=True)]


def grade_together(grader: Grader, responses: Sequence[str], answers: Sequence[str]) -> list[Grade]:
    """Grades as `grader.grade` does; of several processes, each grades its share, and all get all the grades."""
    first, step = jax.process_index(), jax.process_count()
    own = grader.grade(responses[first::step], answers[first::step])
    shares = runtime.share([dataclasses.astuple(grade) for grade in own])
    return [Grade(*shares[i % step][i // step]) for i in range(len(responses))]


def score_by_verdict(rollouts: Sequence[Rollout], verdicts: Sequence[Rollout], *, num_critiques: int) -> list[Rollout]:
    """Returns the rollouts with their critics' verdicts as rewards (the paper's unsupervised variant).

    The reward is 1 if more than half of a row's critiques call it right; a verdict that can't be read calls it wrong.
    """
    says_right = np.array([row.verdict is True for row in verdicts]).reshape(len(rollouts), num_critiques)
    return [row.replace(reward=float(share > 0.5)) for row, share in zip(rollouts, says_right.mean(1), strict=True)]


# --- 2. critique --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Critic:
    """How a response is critiqued.

    Attributes:
      kind: `indicative`, `indicative_gt`, `execution`, `cot`, or `none` (refine without a critique).
      writer: the model that writes `cot` critiques, the policy itself or a frozen critic; else None.
      see_answer: put the reference answer into the `cot` critic's prompt.
      check_steps: `(question, response) -> StepError | None`, what `execution` runs.
      reveal_value: `execution` names the right value of the wrong step, not only the step.
      max_retries: further attempts at a `cot` critique whose verdict can't be used.
      max_length: tokens that a `cot` critique may have.
      pass_threshold: reward from which a response is right.
    """

    kind: str
    writer: Writer | None = None
    see_answer: bool = False
    check_steps: Callable[[str, str], StepError | None] | None = None
    reveal_value: bool = True
    max_retries: int = 2
    max_length: int = 512
    pass_threshold: float = 1.0


def critique(
    critic: Critic,
    rollouts: Sequence[Rollout],
    problems: Sequence[Problem],
    *,
    encode: Callable[[str], list[int]],
    num_critiques: int = 1,
) -> tuple[list[Rollout], Counts]:
    """Critiques responses (or refinements) that have been scored.

    A `cot` critique whose verdict is malformed, or disagrees with the reward, is written again with another random
    key, and after `max_retries` replaced by the indicative one. A row without a reward (unsupervised variant) accepts
    any verdict that can be read.

    Args:
      critic: how.
      rollouts: what to critique; becomes each critique's `parent`.
      problems: the iteration's problems.
      encode: text to token ids, for critiques that no model wrote.
      num_critiques: critiques for each row.

    Returns:
      (critiques in the order of `rollouts`, `num_critiques` each; counts for the metrics)
    """
    targets = [row for row in rollouts for _ in range(num_critiques)]
    indices = [_critique_index(row, c, num_critiques) for row in rollouts for c in range(num_critiques)]
    counts: Counts = collections.Counter(critiqued=len(targets))
    done: list[Rollout | None] = [None] * len(targets)
    if critic.kind == "cot":
        pending = list(range(len(targets)))
        for attempt in range(critic.max_retries + 1):
            if not pending:
                break
            written, cut = _write_critiques(critic, targets, indices, pending, problems, attempt)
            counts["prompts_cut"] += cut
            counts["attempts"] += len(written)
            counts["tokens"] += sum(len(row.token_ids) for row in written)
            for i, row in zip(pending, written, strict=True):
                if attempt == 0:
                    counts.update(_verdict_counts(row, critic.pass_threshold))
                if _usable(row, critic.pass_threshold):
                    done[i] = row
            pending = [i for i in pending if done[i] is None]
        counts["fallbacks"] = len(pending)
    for i, row in enumerate(targets):
        if done[i] is None:
            text = _rule_text(critic, row, problems[row.index.question])
            done[i] = _by_rule(text, row, indices[i], encode)
    return done, counts


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


def _write_critiques(critic: Critic, targets, indices, pending, problems, attempt) -> tuple[list[Rollout], int]:
    prompts, cut = [], 0
    for i in pending:
        problem = problems[targets[i].index.question]
        answer = problem.answer if critic.see_answer else None
        ids, was_cut = critic.writer.prompts.for_critique(problem.question, targets[i].text, answer)
        prompts.append(ids)
        cut += was_cut
    rows = critic.writer.write(
        prompts,
        [[indices[i].replace(attempt=attempt)] for i in pending],
        max_length=critic.max_length,
        parents=[targets[i] for i in pending],
    )
    return [row.replace(verdict=critiques.parse_verdict(row.text)) for (row,) in rows], cut


def _usable(row: Rollout, pass_threshold: float) -> bool:
    reward = row.parent.reward
    return row.verdict is not None and (reward is None or row.verdict == (reward >= pass_threshold))


def _verdict_counts(row: Rollout, pass_threshold: float) -> Counts:
    """Counts a first attempt's verdict against the verifier's."""
    if row.verdict is None:
        return collections.Counter(malformed=1)
    if row.parent.reward is None:
        return collections.Counter(valid=1)
    passed = row.parent.reward >= pass_threshold
    return collections.Counter(
        valid=int(row.verdict == passed),
        false_right=int(row.verdict and not passed),
        false_wrong=int(passed and not row.verdict),
        judged_failed=int(not passed),
        judged_passed=int(passed),
    )


def _rule_text(critic: Critic, row: Rollout, problem: Problem) -> str:
    passed = row.reward is not None and row.reward >= critic.pass_threshold
    if critic.kind == "execution":
        error = None if passed else critic.check_steps(problem.question, row.text)
        return critiques.execution(passed, error, reveal_value=critic.reveal_value)
    return critiques.indicative(passed, answer=problem.answer if critic.kind == "indicative_gt" else None)


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
        verdict=critiques.parse_verdict(text) if row.reward is not None else None,
    )


# --- 3. refine ----------------------------------------------------------------------------------------------------


def to_refine(
    responses: Sequence[Sequence[Rollout]], *, refine_max_pass: float, pass_threshold: float
) -> list[Rollout]:
    """Returns the failed responses of the questions of which at most `refine_max_pass` of the responses pass."""
    failed = []
    for group in responses:
        passed = [row.reward >= pass_threshold for row in group]
        if np.mean(passed) <= refine_max_pass:
            failed += [row for row, p in zip(group, passed, strict=True) if not p]
    return failed


def refine(
    policy: Writer,
    critiqued: Sequence[Rollout],
    problems: Sequence[Problem],
    *,
    max_length: int,
    refinements_per_critique: int = 1,
    show_critique: bool = True,
) -> tuple[list[Rollout], Counts]:
    """Samples refinements, each from its question, failed response and critique.

    Args:
      policy: who refines.
      critiqued: critiques; their parents are the failed responses.
      problems: the iteration's problems.
      max_length: tokens that a refinement may have.
      refinements_per_critique: how many each.
      show_critique: False leaves the critique out of the prompt (an ablation).

    Returns:
      (refinements, their critiques as parents; counts for the metrics)
    """
    prompts, indices, counts = [], [], collections.Counter()
    for row in critiqued:
        question = problems[row.index.question].question
        ids, cut = policy.prompts.for_refinement(question, row.parent.text, row.text if show_critique else None)
        prompts.append(ids)
        counts["prompts_cut"] += cut
        at = row.index.replace(stage=Stage.REFINEMENT, attempt=0)
        indices.append([at.replace(refinement=r) for r in range(refinements_per_critique)])
    written = policy.write(prompts, indices, max_length=max_length, parents=critiqued)
    return [row for rows in written for row in rows], counts


def insert_solutions(
    failed: Sequence[Rollout], problems: Sequence[Problem], *, encode: Callable[[str], list[int]], end_of_turn: int
) -> list[Rollout]:
    """Returns, for each question among `failed`, the data set's own solution in the place of a refinement.

    An ablation: is the gain of refinements only that one correct sample was added?
    """
    first = {row.index.question: row for row in reversed(failed)}
    out = []
    for q, row in sorted(first.items()):
        ids = np.asarray([*encode(problems[q].solution), end_of_turn], np.int32)
        out.append(
            Rollout(
                index=row.index.replace(stage=Stage.REFINEMENT),
                author=Author.SOLUTION,
                weights_step=row.weights_step,
                prompt_ids=row.prompt_ids,
                token_ids=ids,
                logp=np.zeros(len(ids), np.float32),
                text=problems[q].solution,
                parent=row,
            )
        )
    return out


# --- 4. select ----------------------------------------------------------------------------------------------------


def select(refinements: Sequence[Rollout], *, num_kept: int, seed: int, iteration: int) -> list[Rollout]:
    """Keeps `num_kept` refinements a question, highest reward first, ties at random.

    The draw depends on (seed, iteration, question) only.
    """
    by_question = collections.defaultdict(list)
    for row in refinements:
        by_question[row.index.question].append(row)
    kept = []
    for q, rows in sorted(by_question.items()):
        rng = random.Random(f"select {seed} {iteration} {q}")
        rng.shuffle(rows)
        kept += sorted(rows, key=lambda row: -row.reward)[:num_kept]
    return kept


# --- 5. re-anchor, 6. advantage -----------------------------------------------------------------------------------


def train_rows(
    responses: Sequence[Sequence[Rollout]], kept: Sequence[Rollout], *, scale_by_std: bool
) -> list[list[TrainRow]]:
    """Returns each question's group as train rows: its responses, then its kept refinements.

    A refinement's context is the prompt of the question, not the one it was sampled from: every log-probability of it
    is `pi(y' | q)`, as if no critique had been seen. The tokens are the sampled ones.
    """
    groups = [list(group) for group in responses]
    for row in kept:
        groups[row.index.question].append(row)
    rewards = [row.reward for group in groups for row in group]
    # The number of kept refinements changes with every iteration. Padded to a power of two, the shape does not, and
    # nothing is compiled anew.
    size = 1 << (len(rewards) - 1).bit_length()
    reward_B = np.zeros(size, np.float32)
    group_B = np.full(size, -1)
    reward_B[: len(rewards)] = rewards
    group_B[: len(rewards)] = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
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
            for row in group
        ]
        for group in groups
    ]
