"""Runs many questions at once, each at its own stage: coroutines that wait for texts, grades and answers from afar.

A coroutine awaits `write`, `grade`, `call` or `together`. Whatever it waits for is worked on beside what all others
wait for: one queue of requests for each engine, grading in worker processes, calls over the network. Nothing waits for
a stage to end.

All processes of a run step through the same schedule. It depends on the sampled tokens alone: grades are read a fixed
number of ticks after they were asked for, or when no engine has work. Only answers from afar come when they come;
process 0 asks for them and tells the others.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent import futures
from typing import Any

import jax

from cgrpo_jax.errors import GradingError
from cgrpo_jax.inference.engine import Engine, Sampled
from cgrpo_jax.inference.slot_scheduler import Request
from cgrpo_jax.records import Problem, Stage
from cgrpo_jax.rewards import user_functions
from cgrpo_jax.rewards.answers import without_thinking
from cgrpo_jax.rewards.grader import Grade, Grader, Pending
from cgrpo_jax.runtime import processes as processes_lib

_GRADE_TICKS = 1  # from asking for a grade to reading it
_POLL_SECONDS = 1.0  # that process 0 waits for an answer from afar before the processes speak again
# A grader that has failed on so many responses, to so many questions, and has given no verdict at all, is out of order.
# A reward function that gives None says, as with TRL, that it is not meant for a response: that is no such failure.
_FAILED_RESPONSES, _FAILED_QUESTIONS = 8, 4
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Task:
    """A coroutine, what it is sent when it goes on, and who waits for its result."""

    coroutine: Coroutine
    parent: "_Task | None" = None
    number: int = 0  # among the parent's children, or the run's coroutines
    value: Any = None
    results: list = dataclasses.field(default_factory=list)
    missing: int = 0


@dataclasses.dataclass(eq=False)
class _Wait(Awaitable):
    """What a coroutine waits for; `begin(pipeline, task)` sets it going."""

    begin: Callable[["Pipeline", _Task], None]

    def __await__(self) -> Generator["_Wait", Any, Any]:
        return (yield self)


def together(coroutines: Sequence[Coroutine]) -> Awaitable[list]:
    """Awaits several coroutines at once; returns their results in order."""
    return _Wait(lambda pipeline, task: pipeline._spawn(task, coroutines))


def write(engine: Engine, request: Request) -> Awaitable[list[Sampled]]:
    """Awaits the continuations that a request asks an engine for."""
    return _Wait(lambda pipeline, task: pipeline._ask(task, engine, request))


def grade(responses: Sequence[str], problem: Problem) -> Awaitable[list[Grade]]:
    """Awaits the grades of responses to a problem, in order, from the pipeline's grader."""
    return _Wait(lambda pipeline, task: pipeline._grade(task, responses, problem))


def note(grades: Sequence[Grade], responses: Sequence[str], problem: Problem, *, by: str) -> Awaitable[list[Grade]]:
    """Awaits nothing, and gives grades of somebody else than the pipeline's grader, once they are counted like its own.

    Args:
      grades: in order.
      responses: that were graded.
      problem: that they answer.
      by: who graded them, in messages.
    """
    return _Wait(lambda pipeline, task: pipeline._take(task, grades, responses, problem, by))


def call(submit: Callable[[], futures.Future]) -> Awaitable[dict]:
    """Awaits the result, a dataclass of JSON values, of a future that `submit` returns; gives its fields.

    Process 0 alone calls `submit`.
    """
    return _Wait(lambda pipeline, task: pipeline._call(task, submit))


@dataclasses.dataclass
class _Gradings:
    """What has come of the grades of one kind.

    Attributes:
      given: verdicts on responses that say something; no grader is needed to see that one is empty.
      failed: responses without a verdict.
      questions: that these answer.
    """

    given: int = 0
    failed: int = 0
    questions: set[tuple[str, int]] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class _Graded:
    """Responses that are being graded: when they are due, who waits, who grades each; those graded here, or why not."""

    due: int
    task: _Task
    problem: Problem
    responses: Sequence[str]
    processes: Sequence[int]
    pending: list[Pending] = dataclasses.field(default_factory=list)
    error: Exception | None = None

    def read(self) -> list[tuple]:
        """Waits for the grades of this process; raises what went wrong."""
        if self.error is not None:
            raise self.error
        return [dataclasses.astuple(row.result()) for row in self.pending]


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: questions done and in all, texts that are written, texts that wait by stage, tokens."""

    done: int
    total: int
    live: int
    slots: int
    waiting: dict[Stage, int]
    tokens: int
    seconds: float


class Pipeline:
    """What the coroutines of a run share.

    Args:
      grader: grades responses; needed if `grade` is awaited. Several processes divide the work: the responses to a
        question, or whole questions, where it takes groups.

    Example:
      async def answer(problem): ...
          (sampled,) = await pipeline.write(engine, request)
          (verdict,) = await pipeline.grade([text], problem)
      results = Pipeline(grader).run([answer(problem) for problem in problems], engines=[engine])
    """

    def __init__(self, grader: Grader | None = None):
        self.grader = grader
        self.timeouts = 0  # rows whose grading ran into its time limit, since the start of the last run
        self.failures = 0  # rows without a verdict, likewise
        self.grade_seconds = 0.0  # in which nothing was done but wait for grades, likewise
        self._by_kind: collections.defaultdict[str, _Gradings] = collections.defaultdict(_Gradings)
        self._told: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._ready: collections.deque[_Task] = collections.deque()
        self._asked: dict[int, _Task] = {}
        self._engines: list[Engine] = []
        self._gradings: list[_Graded] = []
        self._num_groups = 0
        self._calls: dict[int, tuple[_Task, futures.Future | None]] = {}
        self._num_calls = self._tick = 0

    # --- what coroutines wait for -----------------------------------------------------------------------------------

    def _spawn(self, task: _Task, coroutines: Sequence[Coroutine]) -> None:
        task.results, task.missing = [None] * len(coroutines), len(coroutines)
        self._ready.extend(_Task(coroutine, task, number) for number, coroutine in enumerate(coroutines))
        if not coroutines:
            self._resume(task, [])

    def _ask(self, task: _Task, engine: Engine, request: Request) -> None:
        task.results, task.missing = [None] * len(request.indices), len(request.indices)
        self._asked[id(request)] = task
        engine.add(request)

    def _grade(self, task: _Task, responses: Sequence[str], problem: Problem) -> None:
        def submit(response: str) -> Pending:
            return self.grader.submit(
                response, problem.answer, kind=problem.grader, prompt=problem.question, columns=problem.columns
            )

        async def from_afar(response: str) -> Grade:
            found = Grade(**await call(lambda: submit(response).future))
            self._note(problem, [response], [found], problem.grader or self.grader.kind)
            return found

        if self.grader.is_remote(problem.grader):
            self._spawn(task, [from_afar(response) for response in responses])
            return
        here, number = jax.process_index(), jax.process_count()
        if self.grader.takes_groups(problem.grader):
            processes = [self._num_groups % number] * len(responses)
            self._num_groups += 1
        else:
            processes = [row % number for row in range(len(responses))]
        one = _Graded(self._tick + _GRADE_TICKS, task, problem, responses, processes)
        try:
            one.pending = [submit(response) for response, at in zip(responses, processes, strict=True) if at == here]
            self.grader.send()
        except Exception as error:  # noqa: BLE001 - raised where all processes read these grades, and can be told
            one.error = error
        self._gradings.append(one)

    def _take(self, task: _Task, grades: Sequence[Grade], responses: Sequence[str], problem: Problem, by: str) -> None:
        self._note(problem, responses, grades, by)
        self._resume(task, list(grades))

    def _call(self, task: _Task, submit: Callable[[], futures.Future]) -> None:
        self._calls[self._num_calls] = task, submit() if processes_lib.is_first() else None
        self._num_calls += 1

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(
        self,
        coroutines: Sequence[Coroutine],
        *,
        engines: Sequence[Engine] = (),
        on_tick: Callable[[Progress], None] | None = None,
    ) -> list:
        """Runs coroutines to their ends and returns their results in order.

        Args:
          coroutines: one a question.
          engines: that they write with, at work (`Engine.begin`).
          on_tick: called after every tick; may raise, on all processes alike.

        Raises:
          GradingError: on all processes alike, a user's reward function raised, or a grader fails on all responses.
        """
        started = time.monotonic()
        self._reset()
        self.timeouts, self.failures, self.grade_seconds = 0, 0, 0.0
        for kind in [kind for kind, found in self._by_kind.items() if found.given]:
            del self._by_kind[kind]  # those without any verdict may become hopeless over several runs
        self._engines = list(engines)
        tasks = [_Task(coroutine, None, number) for number, coroutine in enumerate(coroutines)]
        self._results, self._left = [None] * len(tasks), len(tasks)
        self._ready.extend(tasks)
        tokens = 0
        try:
            while True:
                self._advance()
                if not self._left:
                    return self._results
                before = sum(engine.stats.tokens for engine in engines)
                busy = [engine for engine in engines if engine.busy]
                if not (busy or self._gradings or self._calls):
                    raise RuntimeError("a coroutine waits for something that is none of the pipeline's")
                for engine in busy:
                    self._deliver(engine.step())
                self._tick += 1
                self._read_grades(everything=not busy)
                self._read_calls(wait=not busy and not self._ready)
                tokens += sum(engine.stats.tokens for engine in engines) - before
                if on_tick:
                    on_tick(self._progress(tokens, time.monotonic() - started))
        finally:
            for task in [*self._ready, *tasks]:
                task.coroutine.close()
            self._reset()

    def _advance(self) -> None:
        """Runs every coroutine that can go on, until all wait."""
        while self._ready:
            task = self._ready.popleft()
            try:
                wait = task.coroutine.send(task.value)
            except StopIteration as stop:
                self._finish(task, stop.value)
            else:
                if not isinstance(wait, _Wait):
                    raise RuntimeError(f"a coroutine waits for {wait!r}, which is none of the pipeline's")
                wait.begin(self, task)

    def _finish(self, task: _Task, result) -> None:
        if task.parent is None:
            self._results[task.number] = result
            self._left -= 1
        else:
            self._put(task.parent, task.number, result)

    def _put(self, task: _Task, number: int, result) -> None:
        """Gives a task one of the results that it waits for."""
        task.results[number] = result
        task.missing -= 1
        if not task.missing:
            self._resume(task, task.results)

    def _resume(self, task: _Task, value) -> None:
        task.value = value
        self._ready.append(task)

    def _deliver(self, finished: Sequence[tuple[Request, int, Sampled]]) -> None:
        for request, number, sampled in finished:
            task = self._asked[id(request)]
            self._put(task, number, sampled)
            if not task.missing:
                del self._asked[id(request)]

    def _read_grades(self, *, everything: bool) -> None:
        """Waits for the grades that are due and hands them out; each has the grader's time limit."""
        due = [one for one in self._gradings if everything or one.due <= self._tick]
        if not due:
            return
        self._gradings = [one for one in self._gradings if not (everything or one.due <= self._tick)]
        started = time.monotonic()
        own, error = [], ""
        with processes_lib.agree("grading"):
            try:
                own = [one.read() for one in due]
            except GradingError as raised:  # told to the other processes, so that all say the same
                error = str(raised)
        shares, errors = zip(*processes_lib.share([own, error]), strict=True)
        self.grade_seconds += time.monotonic() - started
        if any(errors):
            raise GradingError(next(filter(None, errors)))
        for i, one in enumerate(due):
            rows = [iter(share[i]) for share in shares]
            grades = [Grade(*next(rows[process])) for process in one.processes]
            self._note(one.problem, one.responses, grades, one.problem.grader or self.grader.kind)
            self._resume(one.task, grades)

    def _note(self, problem: Problem, responses: Sequence[str], grades: Sequence[Grade], kind: str) -> None:
        """Counts the grades, by a grader of some kind, of responses to a problem.

        Raises:
          GradingError: all of their kind have failed so far, and there are enough to tell.
        """
        found = self._by_kind[kind]
        failed = [grade for grade in grades if grade.failed]
        if failed and kind not in self._told and processes_lib.is_first():
            self._told.add(kind)
            _logger.warning(
                "grader '%s' gave no verdict: %s; counted in grade/failures, not said again.", kind, failed[0].reason
            )
        self.timeouts += sum(grade.timed_out for grade in grades)
        self.failures += len(failed)
        broken = [grade for grade in failed if grade.reason != user_functions.DECLINED]
        found.failed += len(broken)
        found.questions |= {(problem.source, problem.index)} if broken else set()
        found.given += sum(
            bool(without_thinking(text).strip()) and not one.failed for text, one in zip(responses, grades, strict=True)
        )
        if (
            broken
            and not found.given
            and found.failed >= _FAILED_RESPONSES
            and len(found.questions) >= _FAILED_QUESTIONS
        ):
            raise GradingError(
                f"grader '{kind}' gave no verdict on any of {found.failed} responses ({broken[0].reason}); see that it "
                "works, then give the same command to go on."
            )

    def _read_calls(self, *, wait: bool) -> None:
        """Hands out the answers from afar that have come."""
        if not self._calls:
            return
        waiting = [future for _, future in self._calls.values() if future is not None]
        if wait:
            futures.wait(waiting, timeout=_POLL_SECONDS, return_when=futures.FIRST_COMPLETED)
        done = {key: future for key, (_, future) in self._calls.items() if future is not None and future.done()}
        here = [[key, dataclasses.asdict(future.result())] for key, future in done.items()]
        for key, result in processes_lib.share(here)[0]:
            task, _ = self._calls.pop(key)
            self._resume(task, result)

    def _progress(self, tokens: int, seconds: float) -> Progress:
        waiting: collections.Counter = collections.Counter()
        for engine in self._engines:
            waiting.update(engine.waiting_by_stage())
        return Progress(
            done=len(self._results) - self._left,
            total=len(self._results),
            live=sum(engine.live for engine in self._engines),
            slots=sum(engine.total_slots for engine in self._engines),
            waiting=dict(waiting),
            tokens=tokens,
            seconds=seconds,
        )
