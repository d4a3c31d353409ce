"""Rows for others to learn from: responses, critiques of them, refinements after these, each graded, without an update.

A file is some questions that are answered together by an engine that holds nothing else. One that was killed is done
again from the start of the file that it was in: so each text is sampled beside the same others as in a run that was not
killed, and comes out the same to the last bit. Random keys depend on a question's place among all, so texts are the
same, near ties aside, however many a file has and whatever the mesh.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

from cgrpo_jax import rollout
from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.datasets.rollout_questions import Question
from cgrpo_jax.errors import Stopped
from cgrpo_jax.evaluation import benchmark
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference import orchestrator as orchestrator_lib
from cgrpo_jax.inference.critic import Critic, critique_once, critiques_of
from cgrpo_jax.inference.generators import Generator, Refiner, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator, Status, gather
from cgrpo_jax.records import Problem, Rollout, Stage
from cgrpo_jax.rewards.thinking import after_thinking
from cgrpo_jax.runs.rollout_writer import RolloutWriter
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import files, processes

STREAM = benchmark.STREAM + 2  # of random keys, which training, evaluation and diagnosis don't draw from
UTILITY = "utility"  # among the rewards of a refinement: its name, which is no kind of grader


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is written about each question; symbols in brackets as in RCO (arXiv 2506.22157).

    Attributes:
      num_responses: to a question that has none yet.
      which: of its responses, a name of `rollout.REFINED`: those that are critiqued and refined.
      num_critiques: [N] of such a response; 0: those that are there.
      num_refinements: [M] after a critique; 0: none.
      utility: who says what a refinement is worth, the `verifier` or the `judge`.
      max_length: tokens a response or refinement may have.
      pass_threshold: reward from which a row is right.
      grader: kind of grader of the problems that name none.
      rewards: kinds of the other rewards of a row.
    """

    num_responses: int
    which: str
    num_critiques: int
    num_refinements: int
    utility: str
    max_length: int
    pass_threshold: float
    grader: str
    rewards: tuple[str, ...] = ()


def protocol_of(settings: RunSettings) -> Protocol:
    """Returns what a run's configuration says is written about each question."""
    wanted, method = settings.collection, settings.method
    return Protocol(
        num_responses=wanted.num_responses,
        which=wanted.which,
        num_critiques=wanted.num_critiques,
        num_refinements=wanted.num_refinements,
        utility=wanted.utility,
        max_length=method.max_length,
        pass_threshold=method.pass_threshold,
        grader=settings.grader,
        rewards=method.rewards,
    )


# --- one question -------------------------------------------------------------------------------------------------


async def collect(
    policy: Generator,
    critic: Critic,
    asked: Question,
    *,
    number: int,
    protocol: Protocol,
    encode: Callable[[str], list[int]],
    refiner: Generator | Refiner | None = None,
) -> list[rollouts.Row]:
    """Returns the rows of a question: its responses, their critiques, the refinements after these.

    Each critique is as its author writes it first, right or wrong, and is followed by refinements whatever its verdict:
    what they achieve is what it is worth. A response without a verdict has neither.

    Args:
      policy: who responds.
      critic: who criticises.
      asked: the question, with the responses and critiques that are taken as they are.
      number: of the question; it enters the random keys.
      protocol: what is written.
      encode: text to token ids, for critiques that no model writes.
      refiner: who refines; by default the policy.
    """
    p, problem = protocol, asked.problem
    responses = await _responses(policy, asked, number, p)
    chosen = rollout.to_refine(responses, refine_max_pass=1.0, pass_threshold=p.pass_threshold, which=p.which)
    there = [one.replace(index=one.index.replace(question=number)) for one in asked.critiques]

    async def refine(critique: Rollout) -> list[Rollout]:
        if not p.num_refinements or critique.ungraded:
            return []
        rows, _ = await rollout.refine(
            refiner or policy,
            [critique],
            problem,
            max_length=p.max_length,
            refinements_per_critique=p.num_refinements,
            shows=critic.shows,
        )
        rows = await rollout.also_reward(rows, problem, p.rewards)
        rows = await rollout.score(rows, problem)
        assert critique.parent is not None, "a critique is of a response"
        return await _with_utility(rows, critique.parent, problem, p)

    async def follow(row: Rollout, c: int) -> tuple[Rollout, list[Rollout]]:
        critique = await critique_once(critic, row, problem, number=c, num_critiques=p.num_critiques, encode=encode)
        return critique, await refine(critique)

    if p.num_critiques:
        followed = await gather([follow(row, c) for row in chosen for c in range(p.num_critiques)])
    else:
        taken = critiques_of(chosen, there)
        followed = list(zip(taken, await gather([refine(one) for one in taken]), strict=True))
    critiques = [critique for critique, _ in followed] if critic.kind != "none" or not p.num_critiques else []
    refinements = [row for _, rows in followed for row in rows]
    by = problem.grader or p.grader
    texts = [*responses, *rollout.in_order(critiques), *rollout.in_order(refinements)]
    return [rollouts.Row(one, problem, grader="" if one.stage == Stage.CRITIQUE else by) for one in texts]


async def _responses(policy: Generator, asked: Question, number: int, p: Protocol) -> list[Rollout]:
    """Returns scored responses: those that are there, graded again where another grader, or none, gave a verdict."""
    problem = asked.problem
    if not asked.responses:
        written = await rollout.respond(
            policy, problem, question=number, num_responses=p.num_responses, max_length=p.max_length
        )
        written = await rollout.also_reward(written, problem, p.rewards)
        return await rollout.score(written, problem)
    by = problem.grader or p.grader
    rows = [row.rollout.replace(index=row.rollout.index.replace(question=number)) for row in asked.responses]
    graded = [row.grader == by and not row.rollout.ungraded for row in asked.responses]
    again = [row for row, is_graded in zip(rows, graded, strict=True) if not is_graded]
    if again:
        again = await rollout.also_reward([row.replace(rewards=()) for row in again], problem, p.rewards)
        again = await rollout.score(again, problem)
    found = {row.index: row for row in again}
    return [found.get(row.index, row) for row in rows]


# --- what a refinement is worth -----------------------------------------------------------------------------------


def verifier_utility(before: bool, after: bool) -> float:
    """Returns what a refinement is worth where a verifier knows both: 1 better, 0.5 alike, 0 worse.

        PS = (1 + after - before) / 2

    The preference score of RCO (arXiv 2506.22157, section 3) with a verifier in the place of its judge. A critique's
    utility is the mean over the refinements after it.

    Example:
      >>> verifier_utility(False, True), verifier_utility(True, True), verifier_utility(True, False)
      (1.0, 0.5, 0.0)
    """
    return (1 + after - before) / 2


async def _with_utility(rows: list[Rollout], response: Rollout, problem: Problem, p: Protocol) -> list[Rollout]:
    """Returns refinements of a response with their utility as a further reward; null where it is not known."""
    if p.utility == "judge":
        values = await _judged(rows, response, problem)
    else:
        before = rollout.reward_of(response) >= p.pass_threshold
        values = [
            None if row.ungraded else verifier_utility(before, rollout.reward_of(row) >= p.pass_threshold)
            for row in rows
        ]
    return [row.replace(rewards=(*row.rewards, (UTILITY, value))) for row, value in zip(rows, values, strict=True)]


async def _judged(rows: Sequence[Rollout], response: Rollout, problem: Problem) -> list[float | None]:
    """Returns how much better than a response a judge finds refinements, asked in both orders: the mean of the two.

    What stands in a thinking part is no answer; beside a response that says nothing else, any answer is better.
    """
    before, *said = [after_thinking(row.text, opened=bool(row.opening)).strip() for row in [response, *rows]]
    if not before:
        return [verifier_utility(False, bool(one)) for one in said]
    return await orchestrator_lib.prefer(said, problem, before)


# --- all questions, file by file ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """The questions of a file: the number of the first, how many, and what reads them."""

    first: int
    size: int
    read: Callable[[], Sequence[Question]]


def parts_of(problems: Sequence[Problem], *, size: int) -> list[Part]:
    """Returns the parts of questions that have not been asked yet, of at most `size` each."""

    def read(first: int) -> list[Question]:
        return [Question(one) for one in problems[first : first + size]]

    number = len(problems)
    return [Part(first, min(size, number - first), functools.partial(read, first)) for first in range(0, number, size)]


def parts_of_files(paths: Sequence[pathlib.Path], *, limit: int = 0) -> list[Part]:
    """Returns the parts of rows that were collected before, a file each; of `limit` questions where it is not 0.

    Raises:
      UserError: as `rollout_questions.problems`.
    """
    parts, first = [], 0
    for path in paths:
        size = len(rollout_questions.problems(path))
        size = min(size, limit - first) if limit else size
        if size:
            parts.append(Part(first, size, functools.partial(_first, path, size)))
        first += size
    return parts


def _first(path: pathlib.Path, size: int) -> list[Question]:
    return rollout_questions.questions(path)[:size]


def collect_on_disk(
    policy: Generator,
    critic: Critic,
    parts: Sequence[Part],
    *,
    results: Results,
    writer: RolloutWriter,
    protocol: Protocol,
    encode: Callable[[str], list[int]],
    orchestrator: Orchestrator,
    refiner: Generator | Refiner | None = None,
    on_tick: Callable[[Status], None] | None = None,
) -> None:
    """Writes the rows of each part to a file of its number, but those that are there, while the next is computed.

    Args:
      policy, critic, protocol, encode, refiner: as for `collect`.
      parts: from `parts_of` or `parts_of_files`.
      results: the open folder.
      writer: writes files into it.
      orchestrator: with the grader.
      on_tick: as in `Orchestrator.run`, with the progress of all parts.

    Raises:
      UserError: a file can't be written or read.
    """
    total = sum(part.size for part in parts)
    there = processes.decide(
        lambda: [(results.path / rollouts.file_name(n)).exists() for n in range(len(parts))], f"reading {results.path}"
    )
    done = sum(part.size for part, is_there in zip(parts, there, strict=True) if is_there)
    results.whole[rollouts.NAMES] = done, total

    def tick(at: Status) -> None:
        if on_tick:
            on_tick(dataclasses.replace(at, done=done + at.done, total=total))

    try:
        for number, part in enumerate(parts):
            if there[number]:
                continue
            with processes.agree("reading the rows"):
                asked = part.read()
            coroutines = [
                collect(policy, critic, one, number=q, protocol=protocol, encode=encode, refiner=refiner)
                for q, one in enumerate(asked, start=part.first)
            ]
            with running_engines(policy, critic.generator, refiner) as engines:
                rows = orchestrator.run(coroutines, engines=engines, on_tick=tick)
            _write(
                results, lambda number=number, rows=rows: writer.put_rows(number, [row for one in rows for row in one])
            )
            done += part.size
            results.whole[rollouts.NAMES] = done, total
    except Stopped:
        _write(results, writer.wait)
        raise
    _write(results, writer.wait)


def _write(results: Results, function: Callable[[], None]) -> None:
    """Calls what writes: on process 0 alone, and all fail where it does."""
    with files.by_one(results.path) as writes:
        if writes:
            results.check_owned()
            function()
