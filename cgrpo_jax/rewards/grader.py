"""Rewards: each kind of grader reads a final answer out of a response and compares it with the gold answer.

  - `math`: LaTeX or plain mathematics, by math-verify, in worker processes with a hard time limit.
  - `numeric`, `choice`, `exact`, `trace`: without a parser, see `comparisons`.
  - `code`: unit tests, run in a sandbox, in worker processes.
  - `judge`: a rubric by which a model behind an HTTP endpoint judges, see `judge`.
  - "FILE.py:name" or "package.module:name": a user's own function, in worker processes, see `user_functions`.

Whatever a model writes, grading a row gives a `Grade`. It is a zero, and `timed_out`, where reading a response, or
running its program, takes longer than the time limit: that is the response's own doing. It is a zero, and `failed`,
where there is no verdict: the grader raised, its worker died and died again at this response alone, a judge gave no
answer that can be read, or a user's function gave None or ran out of time. What a user's function raises is raised.
"""

import dataclasses
import functools
import importlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.rewards import comparisons, mathematics, user_functions
from cgrpo_jax.rewards.answers import Grade
from cgrpo_jax.rewards.judge import Judge
from cgrpo_jax.rewards.known_grades import KnownGrades
from cgrpo_jax.rewards.rubrics import rubric
from cgrpo_jax.rewards.sandbox import sandbox
from cgrpo_jax.rewards.sandbox.modules import NONE, Modules
from cgrpo_jax.rewards.thinking import after_thinking
from cgrpo_jax.rewards.worker_pool import MEMORY_LIMIT, Outcome, Task, Workers, each

__all__ = ["KINDS", "Grade", "Grader", "Pending", "check_gold", "check_kind", "grade"]

KINDS = ("math", *comparisons.COMPARE, "code", "judge")
_BATCH = 8  # responses to one question that a worker takes at once
_GOLD_BATCH = 32  # gold answers likewise
_NO_COLUMNS: Mapping[str, Any] = {}


def check_kind(kind: str) -> None:
    """Checks that there may be such a kind.

    Raises:
      UserError: it is none of KINDS and no function's name.
    """
    if kind not in KINDS and not user_functions.is_name(kind):
        raise UserError(
            f"grader {kind!r} is unknown; use one of {', '.join(KINDS)}, or your own function as FILE.py:name or "
            "package.module:name."
        )


def grade(
    kind: str,
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    thinking_opened: bool = False,
    timeout: float = 5.0,
    **options,
) -> list[Grade]:
    """Grades responses once; a loop should keep a `Grader`, whose worker processes live on.

    Example:
      >>> grade("numeric", ["so she has $1,200.00 left.", "I don't know"], ["1200", "7"])[0].score
      1.0

    Args:
      kind: one of KINDS, or the name of a function.
      responses: what the model wrote.
      answers: one gold answer a response.
      thinking_opened: the prompts end in a thinking part, which the responses go on with.
      timeout: seconds for one response.
      **options: of `Grader`.

    Raises:
      UserError: unknown kind.
    """
    with Grader(kind, timeout=timeout, **options) as grader:
        return grader.grade(responses, answers, thinking_opened=thinking_opened)


def check_gold(kind: str, answers: Sequence[str], **options) -> None:
    """Checks that every gold answer can be read, so that no row is rewarded or failed for the parser's sake.

    Args:
      kind: of grader.
      answers: the gold answers.
      **options: of `Grader`.

    Raises:
      UserError: unknown kind, a function that can't be loaded, or answers that can't be read: the first five rows and
        how many there are.
    """
    with Grader(kind, **options) as grader:
        bad = [row for row, ok in enumerate(grader.readable(answers)) if not ok]
        named = [f"row {row + 1}: {said_of_unreadable(grader, answers[row], kind)}" for row in bad[:5]]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(answers)} gold answers can't be read by grader '{kind}' ({'; '.join(named)}"
            f"{'; ...' if len(bad) > 5 else ''}); fix or drop these rows, or choose another grader."
        )


def said_of_unreadable(grader: "Grader", answer: str, kind: str) -> str:
    """Returns the beginning of a gold answer that `grader` can't read, and why, of kinds that say so."""
    why = rubric.fault(answer) or "tests of a program in it can't be read" if kind == "judge" else None
    if kind == "code":
        why = grader._pool(kind).call(_module(kind).unclear_names, answer, grader._numpy).outcome().value
    return f"{answer[:80]!r}" + (f", {why}" if why else "")


class Grader:
    """Grades responses; it owns the worker processes, started at the first response that needs them.

    Example:
      with Grader("math", num_workers=2, timeout=5.0) as grader:
        grader.grade([r"thus \\boxed{1/2}"], ["0.5"])    # [Grade(score=1.0, extracted="1/2", ...)]

    Args:
      kind: one of KINDS, or the name of a function; of problems that name no other.
      num_workers: worker processes of each kind that needs them.
      timeout: seconds for one response; at the limit its worker is killed and replaced. A user's function, which gets
        several at once, has as much for each.
      tolerance: of `numeric`, relative.
      numpy: programs and their tests may import NumPy.
      modules: of the user's own, which programs may import.
      messages: a user's function gets lists of messages, see `user_functions.score`.
      judge: who grades kind `judge`.
      thinking: where answers count: `after` the thinking, or `anywhere`. A judge reads what comes after it in either
        case, a user's function the whole response.

    Raises:
      UserError: unknown kind.
    """

    def __init__(
        self,
        kind: str,
        *,
        num_workers: int = 2,
        timeout: float = 5.0,
        tolerance: float = 1e-6,
        numpy: bool = False,
        modules: Modules = NONE,
        messages: bool = False,
        judge: Judge | None = None,
        thinking: str = "after",
    ):
        check_kind(kind)
        self.kind, self._num_workers, self._timeout, self._numpy = kind, num_workers, timeout, numpy
        self.modules, self._messages, self.judge, self._thinking = modules, messages, judge, thinking
        self._compare = dict(comparisons.COMPARE)
        self._compare["numeric"] = functools.partial(comparisons.numeric, tolerance=tolerance)
        self._workers: dict[str, Workers] = {}
        self._held: _Batch | None = None
        self._known = KnownGrades()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Ends the worker processes; responses still being graded are dropped."""
        for workers in self._workers.values():
            workers.close()
        self._workers, self._held = {}, None

    def is_remote(self, kind: str = "") -> bool:
        """Do grades of this kind, the Grader's own by default, come over the network, whenever they come?"""
        return (kind or self.kind) == "judge"

    def takes_groups(self, kind: str = "") -> bool:
        """May a grade of this kind depend on the other responses that are graded with it, as a user's function's?"""
        return user_functions.is_name(kind or self.kind)

    def submit(
        self,
        response: str,
        answer: str,
        *,
        kind: str = "",
        prompt: str | tuple[user_functions.Turn, ...] = "",
        columns: Mapping[str, Any] | None = None,
        thinking_opened: bool = False,
    ) -> "Pending":
        """Starts to grade one response; `.result()` waits for its `Grade`.

        Responses to one question that follow each other go to a worker in one batch, which reads the gold answer once.
        Those held back for this are sent by the next other one, by `send` or by `.result()`.

        Args:
          response: what the model wrote.
          answer: the gold answer.
          kind: "" for the Grader's own.
          prompt: the question, for a judge or a function; for the latter also a chat's turns, of which it is the last.
          columns: other columns of its row, for a function.
          thinking_opened: its prompt ends in a thinking part: it has no answer where that never ends.

        Raises:
          UserError: unknown kind, or there is no judge.
          GradingError: from `.result()`, a user's function raised.
        """
        kind = kind or self.kind
        check_kind(kind)
        if (self._thinking == "after" or kind == "judge") and not user_functions.is_name(kind):
            response = after_thinking(response, opened=thinking_opened)
        if kind in self._compare:
            done = Grade(*self._compare[kind](response, answer))
            return Pending(lambda: done)
        if kind == "judge":
            if self.judge is None:
                raise UserError(
                    "grader 'judge' has no endpoint to ask; set judge.endpoint.url and judge.endpoint.model."
                )
            future = self.judge.submit(str(prompt), response, answer)
            return Pending(future.result, future)
        if (known := self._known.recall(kind, response, answer)) is not None:
            return Pending(lambda: known)
        one = _Batch(kind, answer, prompt, _NO_COLUMNS if columns is None else columns)
        if self._held is None or not self._held.takes(one):
            self.send()
            self._held = one
        batch = self._held
        batch.responses.append(response)
        return Pending(functools.partial(self._read, batch, len(batch.responses) - 1))

    def send(self) -> None:
        """Sends the responses that are held back to a worker."""
        if self._held is not None:
            self._held.task = self._begin(self._held, self._held.responses)
            self._held = None

    def grade(self, responses: Sequence[str], answers: Sequence[str], *, thinking_opened: bool = False) -> list[Grade]:
        """Grades all responses, in order; `thinking_opened` as for `submit`.

        Raises:
          UserError: there is not one gold answer for each response, or one of them is no text.
        """
        for name, texts in (("responses", responses), ("answers", answers)):
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{name} must be a list of texts, not {texts!r:.80}.")
        if len(responses) != len(answers):
            raise UserError(f"there are {len(responses)} responses and {len(answers)} answers; give one for each.")
        pending = [
            self.submit(response, answer, thinking_opened=thinking_opened)
            for response, answer in zip(responses, answers, strict=True)
        ]
        return [row.result() for row in pending]

    def readable(self, answers: Sequence[str], kind: str = "") -> list[bool]:
        """For each gold answer: can this kind read it? An answer that times out can't.

        Raises:
          UserError: unknown kind, or a function that can't be loaded.
        """
        kind = kind or self.kind
        check_kind(kind)
        if kind in self._compare:
            return [comparisons.READABLE[kind](answer) for answer in answers]
        if kind == "judge":
            return rubric.readable(answers, functools.partial(self.readable, kind="code"))
        if user_functions.is_name(kind):
            found = self._pool(kind).call(user_functions.problem_with, user_functions.resolved(kind)).outcome()
            if found.failure or found.value:
                raise UserError(f"grader '{kind}' can't be loaded: {found.failure or found.value}")
            return [True] * len(answers)
        module = _module(kind)
        # Most need no parser, and equal ones are asked about once.
        unsure = sorted({a for a in answers if kind != "math" or not mathematics.surely_readable(a)})
        reads = functools.partial(module.readable, numpy=self._numpy) if kind == "code" else module.readable
        known = dict(zip(unsure, self._ask_all(kind, reads, unsure), strict=True))
        return [known.get(answer, True) for answer in answers]

    def _ask_all(self, kind: str, function: Callable[[str], bool], answers: Sequence[str]) -> list[bool]:
        def begin(some: Sequence[str]) -> Task:
            return self._pool(kind).call(each, function, [(answer,) for answer in some])

        groups = [answers[i : i + _GOLD_BATCH] for i in range(0, len(answers), _GOLD_BATCH)]
        tasks = [begin(group) for group in groups]
        found = [_finish(begin, group, task) for group, task in zip(groups, tasks, strict=True)]
        return [outcome.value is True for outcomes in found for outcome in outcomes]

    # --- worker processes -------------------------------------------------------------------------------------------

    def _pool(self, kind: str) -> Workers:
        if kind not in self._workers:
            if user_functions.is_name(kind):
                start, arguments = user_functions.start, (user_functions.resolved(kind),)
            else:
                if kind == "code":
                    sandbox.check()
                start, arguments = _module(kind).start, (MEMORY_LIMIT,)
            self._workers[kind] = Workers(self._num_workers, timeout=self._timeout, start=start, arguments=arguments)
        return self._workers[kind]

    def _begin(self, batch: "_Batch", responses: Sequence[str]) -> Task:
        workers = self._pool(batch.kind)
        if user_functions.is_name(batch.kind):
            kind = user_functions.resolved(batch.kind)
            given = (batch.answer, batch.prompt, dict(batch.columns), self._messages)
            timeout = self._timeout * len(responses)
            return workers.call(user_functions.score, kind, responses, *given, timeout=timeout)
        # Programs get what the time leaves.
        more = (self._timeout, self._numpy, self.modules) if batch.kind == "code" else ()
        rows = [(response, batch.answer, *more) for response in responses]
        return workers.call(each, _module(batch.kind).grade, rows)

    def _read(self, batch: "_Batch", number: int) -> Grade:
        """Waits for the grade of a response of a batch."""
        if batch.grades is None:
            if batch.task is None:
                self.send()
            assert batch.task is not None, "the batch without a task is the one that is held back"
            read = self._of_function if user_functions.is_name(batch.kind) else self._of_workers
            batch.grades = read(batch, batch.task)
        return batch.grades[number]

    def _of_workers(self, batch: "_Batch", task: Task) -> list[Grade]:
        found = _finish(functools.partial(self._begin, batch), batch.responses, task)
        grades = [_graded(outcome) for outcome in found]
        for response, one, outcome in zip(batch.responses, grades, found, strict=True):
            # A program that fails may have been too slow at a busy moment.
            if outcome.failure is None and (batch.kind != "code" or one.score):
                self._known.remember(batch.kind, response, batch.answer, one)
        return grades

    def _of_function(self, batch: "_Batch", task: Task) -> list[Grade]:
        """The grades that a user's function gives; one call, since they may depend on each other.

        Raises:
          GradingError: it raised.
        """
        found = task.outcome()
        if found.failure is not None:
            return [Grade(0.0, None, found.failure, found.timed_out, failed=True)] * len(batch.responses)
        if isinstance(found.value, str):
            raise GradingError(
                f"grader '{batch.kind}' raised {found.value}; fix it, then give the same command to resume."
            )
        return found.value


@dataclasses.dataclass(frozen=True)
class Pending:
    """A response that is being graded.

    Attributes:
      result: waits for the grade.
      future: of the grade, where it comes over the network.
    """

    result: Callable[[], Grade]
    future: futures.Future[Grade] | None = None


@dataclasses.dataclass
class _Batch:
    """Responses to one question, on their way to a worker, at work or graded."""

    kind: str
    answer: str
    prompt: str | tuple[user_functions.Turn, ...]
    columns: Mapping[str, Any]
    responses: list[str] = dataclasses.field(default_factory=list)
    task: Task | None = None
    grades: list[Grade] | None = None

    def takes(self, other: "_Batch") -> bool:
        """May the responses of another batch join this one? Programs may each take most of the time limit."""
        most = {"math": _BATCH, "code": 1}.get(self.kind, sys.maxsize)
        same = (self.kind, self.answer, self.prompt) == (other.kind, other.answer, other.prompt)
        return same and len(self.responses) < most and self.columns is other.columns


def _finish(begin: Callable[[Sequence[str]], Task], texts: Sequence[str], task: Task) -> list[Outcome]:
    """What became of each text of a task. Where all of them took too long, or their worker died, one by one."""
    whole = task.outcome()
    if whole.failure is None:
        return whole.value
    if whole.timed_out and len(texts) == 1:
        return [whole]
    alone = [begin([text]) for text in texts]
    return [outcome if outcome.failure else outcome.value[0] for outcome in (one.outcome() for one in alone)]


def _graded(outcome: Outcome) -> Grade:
    if outcome.failure is not None:
        return Grade(0.0, None, outcome.failure, outcome.timed_out, failed=not outcome.timed_out)
    return Grade(*outcome.value)


def _module(kind: str) -> types.ModuleType:
    """The module that workers of a kind run: `start`, `readable` and `grade`."""
    return mathematics if kind == "math" else importlib.import_module("cgrpo_jax.rewards.sandbox.grade")
