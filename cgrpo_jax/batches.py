"""What an iteration's batch is made of: questions, others in the place of those that teach nothing, verdict problems.

solving = solve_all(problems, Batch(num_groups=4, max_extra=2), solve=..., judge=..., teaches=...)
solved = in_batch(in_order(what these coroutines return), 4, teaches=...)      # 4 of 4 to 6

A verdict problem asks the policy whether a response to another question of the iteration is right (Critique-Coder).
"""

import collections
import dataclasses
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

from cgrpo_jax.critiques.texts import parse_verdict
from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import gather
from cgrpo_jax.records import VERDICT, Problem, Rollout, RowIndex, transcript
from cgrpo_jax.rewards.grader import Grade
from cgrpo_jax.rewards.thinking import after_thinking
from cgrpo_jax.rollout import Method, Solved, reward_of, score


@dataclasses.dataclass(frozen=True)
class Batch:
    """The groups that an iteration trains on.

    Attributes:
      num_groups: how many.
      num_verdicts: of these, how many are of verdict problems.
      max_extra: further questions that may be drawn, each in the place of one whose group has no gradient.
    """

    num_groups: int
    num_verdicts: int = 0
    max_extra: int = 0

    @property
    def num_questions(self) -> int:
        """Groups that are of questions of the data."""
        return self.num_groups - self.num_verdicts

    @property
    def judged(self) -> frozenset[int]:
        """Which of its first questions a verdict problem is about: evenly spread, for batches are cut into updates."""
        return frozenset(i * self.num_questions // self.num_verdicts for i in range(self.num_verdicts))


def is_verdict(solved: Solved) -> bool:
    """Whether it is of a verdict problem."""
    return solved.problem.grader == VERDICT


# --- which questions are solved, and which of them train ----------------------------------------------------------


def solve_all(
    problems: Sequence[Problem],
    batch: Batch,
    *,
    solve: Callable[..., Coroutine],
    judge: Callable[..., Coroutine],
    teaches: Callable[[Solved], bool],
) -> Iterator[Coroutine]:
    """Yields what solves an iteration's questions, a coroutine for each of the batch's; none waits for another.

    A coroutine draws on while what it has solved teaches nothing and a problem is left. Which problems are drawn does
    not depend on which question ends first: they are the first so many of which `num_questions` teach, or all. Numbers
    are in the order of the problems, a verdict problem's after that of its question; the further ones come last.

    Args:
      problems: those of the batch, then those that may be drawn, in order.
      batch: how many of which.
      solve: `(problem, *, question) -> Solved`, to be awaited.
      judge: `(solved, *, question) -> Solved` of a verdict problem, to be awaited.
      teaches: whether a question's group has a gradient.

    Returns:
      coroutines, each of a list of `Solved`
    """
    extra = collections.deque(enumerate(problems[batch.num_questions :], batch.num_groups))

    async def draw_on(solved: Solved) -> list[Solved]:
        found = []
        while extra and not teaches(solved):
            question, problem = extra.popleft()
            solved = await solve(problem, question=question)
            found.append(solved)
        return found

    async def solve_first(problem: Problem, question: int, verdicts: range) -> list[Solved]:
        first = await solve(problem, question=question)
        drawn, *judged = await gather([draw_on(first), *(judge(first, question=number) for number in verdicts)])
        return [first, *judged, *drawn]

    question = 0
    for place, problem in enumerate(problems[: batch.num_questions]):
        after = question + 1 + (place in batch.judged)
        yield solve_first(problem, question, range(question + 1, after))
        question = after


def in_batch(solved: Sequence[Solved], num_groups: int, *, teaches: Callable[[Solved], bool]) -> list[Solved]:
    """Returns those that train, as many as the batch has groups: where more were drawn, first those that teach.

    Args:
      solved: all that were solved, by their numbers.
      num_groups: how many train.
      teaches: whether a question's group has a gradient. A verdict problem trains in any case.
    """
    if len(solved) == num_groups:
        return list(solved)
    first = sorted(solved, key=lambda one: not (is_verdict(one) or teaches(one)))[:num_groups]
    return in_order([first])


def in_order(found: Iterable[Iterable[Solved]]) -> list[Solved]:
    """Returns what the coroutines of `solve_all` have returned, by its numbers."""
    return sorted((one for some in found for one in some), key=lambda one: one.question)


# --- verdict problems ---------------------------------------------------------------------------------------------


async def judge(policy: Generator, solved: Solved, *, question: int, method: Method) -> Solved:
    """Asks the policy n times whether a response to a question is right: a problem whose answer is known.

        R(c) = 1 if verdict(c) = [R(y) >= pass_threshold], else 0       (Critique-Coder, arXiv 2509.22824, section 2)

    Of a question with right and wrong responses either kind is as likely, so that always to say "wrong" does not pay.
    Where no response has a verdict of its own, the answers to the problem have none either.

    Args:
      policy: who is asked.
      solved: the question, with its responses scored.
      question: the problem's number in the iteration.
      method: how many answers, how long they may be, and what is right.
    """
    right_from, rng = method.pass_threshold, random.Random(f"judge {policy.seed} {policy.iteration} {question}")
    row = _drawn(solved.responses, rng, right_from)
    said = after_thinking(row.text, opened=bool(row.opening)).strip() or row.whole_text
    prompt, message, cut = policy.prompts.for_verdict(transcript(solved.problem), said)
    right = reward_of(row) >= right_from
    problem = Problem(
        index=solved.problem.index,
        question=message,
        answer=_WORDS[right],
        source=solved.problem.source,
        grader=VERDICT,
        columns={"judged_question": solved.question, "judged_response": row.index.response},
    )
    indices = [RowIndex(question=question, response=i) for i in range(method.num_responses)]
    rows = await policy.write(prompt, indices, max_length=method.max_length)
    grades = [_grade(one, right, known=not row.ungraded) for one in rows]

    async def grade(texts: list[str], problem: Problem, thinking_opened: list[bool]) -> list[Grade]:
        if row.ungraded:  # what failed is the grader of the response, and that is counted
            return grades
        return await orchestrator.record_grades(grades, texts, problem, by=VERDICT)

    scored = await score(rows, problem, grade)
    counts = collections.Counter(verdict_prompts_cut=int(cut))
    return Solved([one.replace(prompt_cut=cut) for one in scored], [], counts, [], problem)


_WORDS = {True: "right", False: "wrong", None: None}


def _drawn(responses: Sequence[Rollout], rng: random.Random, right_from: float) -> Rollout:
    """Returns the response that is judged: a right or a wrong one, as likely, of those that have a verdict."""
    graded = [row for row in responses if not row.ungraded]
    kinds = [[row for row in graded if (reward_of(row) >= right_from) == right] for right in (True, False)]
    return rng.choice(rng.choice([rows for rows in kinds if rows] or [responses]))


def _grade(row: Rollout, right: bool, *, known: bool) -> Grade:
    verdict = parse_verdict(row.text, thinking_opened=bool(row.opening))
    said = f"the response is {_WORDS[right]}" if known else "the response has no verdict"
    return Grade(float(verdict == right), _WORDS[verdict], said, failed=not known)
