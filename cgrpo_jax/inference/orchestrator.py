"""Runs many questions at once, each at its own stage: coroutines that wait for texts, grades and remote answers.

A coroutine awaits `write`, `grade`, `await_future` or `gather`. Whatever it waits for is worked on beside what all
others wait for: one queue of requests for each engine, grading in worker processes, requests over the network. Nothing
waits for a stage to end.

All processes of a run step through the same schedule. It depends on the sampled tokens alone: grades are read a fixed
number of ticks after they were asked for, or when no engine has work. Only remote answers are read when they come;
process 0 asks for them and shares them.
"""

import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent import futures
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.engine import Engine, Sampled
from cgrpo_jax.inference.grade_exchange import GradeExchange, compare, submit
from cgrpo_jax.inference.grader_health import GraderHealth
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.records import Problem, Stage
from cgrpo_jax.rewards.grader import Grade, Grader
from cgrpo_jax.runtime import processes, watchdog

_GRADE_TICKS = 1  # from asking for a grade to reading it
_POLL_SECONDS = 1.0  # that process 0 waits for a remote answer before the processes speak again


@dataclasses.dataclass(eq=False)
class _Running:
    """A coroutine, what it is sent when it goes on, and which one waits for its result."""

    coroutine: Coroutine
    parent: "_Running | None" = None
    number: int = 0  # among the parent's children, or the run's coroutines
    value: Any = None
    results: list = dataclasses.field(default_factory=list)
    missing: int = 0


# --- what coroutines await ----------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Wait(Awaitable):
    """What a coroutine waits for; `begin(orchestrator, who waits)` sets it going."""

    begin: Callable[["Orchestrator", _Running], None]

    def __await__(self) -> Generator["_Wait", Any, Any]:
        return (yield self)


def gather(coroutines: Sequence[Coroutine]) -> Awaitable[list]:
    """Awaits several coroutines at once; returns their results in order."""
    return _Wait(lambda orchestrator, waiting: orchestrator._spawn(waiting, coroutines))


def write(engine: Engine, request: Request) -> Awaitable[list[Sampled]]:
    """Awaits the continuations that a request asks an engine for."""
    return _Wait(lambda orchestrator, waiting: orchestrator._ask(waiting, engine, request))


def grade(responses: Sequence[str], problem: Problem, thinking_opened: Sequence[bool] = ()) -> Awaitable[list[Grade]]:
    """Awaits the grades of responses to a problem, in order, from the orchestrator's grader.

    Args:
      responses: what models wrote.
      problem: what they answer.
      thinking_opened: of each, whether its prompt ends in a thinking part; by default none does.
    """
    opened = thinking_opened or [False] * len(responses)
    return _Wait(lambda orchestrator, waiting: orchestrator._grade(waiting, responses, problem, opened))


def prefer(responses: Sequence[str], problem: Problem, reference: str) -> Awaitable[list[float | None]]:
    """Awaits how much better than a reference the judge finds each response, from 0 to 1; None where it does not say.

    Args:
      responses: what models wrote, without thinking that the prompt opened.
      problem: what they answer.
      reference: another answer.
    """
    return _Wait(lambda orchestrator, waiting: orchestrator._prefer(waiting, responses, problem, reference))


def record_grades(
    grades: Sequence[Grade], responses: Sequence[str], problem: Problem, *, by: str
) -> Awaitable[list[Grade]]:
    """Returns grades of another grader than the orchestrator's, counted like its own; waits for nothing.

    Args:
      grades: in order.
      responses: that were graded.
      problem: that they answer.
      by: who graded them, in messages.
    """
    return _Wait(lambda orchestrator, waiting: orchestrator._record(waiting, grades, responses, problem, by))


def record_reply(problem: Problem, *, failure: str | None) -> Awaitable[None]:
    """Counts the reply of a critic behind an endpoint; waits for nothing. Arguments of `GraderHealth.record_reply`."""
    return _Wait(lambda orchestrator, waiting: orchestrator._record_reply(waiting, problem, failure))


def await_future(submit: Callable[[], futures.Future]) -> Awaitable[dict]:
    """Awaits the result, a dataclass of JSON values, of a future that `submit` returns; gives its fields.

    Process 0 alone calls `submit`.
    """
    return _Wait(lambda orchestrator, waiting: orchestrator._await(waiting, submit))


# --- what runs them -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run is: questions done and in all, texts that are written, texts that wait by stage, tokens."""

    done: int
    total: int
    live: int
    slots: int
    waiting: dict[Stage, int]
    tokens: int
    seconds: float


class Orchestrator:
    """What the coroutines of a run share.

    Args:
      grader: grades responses; needed if `grade` is awaited. Several processes divide the work (grade_exchange.py).

    Attributes:
      health: what the graders of the last run failed at.
      grade_seconds: of the last run, in which nothing was done but wait for grades.

    Example:
      async def answer(problem): ...
          (sampled,) = await orchestrator.write(engine, request)
          (verdict,) = await orchestrator.grade([text], problem)
      results = Orchestrator(grader).run([answer(problem) for problem in problems], engines=[engine])
    """

    def __init__(self, grader: Grader | None = None):
        self.grader = grader
        self.health = GraderHealth()
        self._grades = GradeExchange(grader) if grader else None
        self.grade_seconds = 0.0
        self._reset()

    def _reset(self) -> None:
        self._ready: collections.deque[_Running] = collections.deque()
        self._asked: dict[int, _Running] = {}  # who waits for the texts of a request, by its id
        self._engines: list[Engine] = []
        self._results, self._left = [], 0
        self._remote: dict[int, tuple[_Running, futures.Future | None]] = {}
        self._num_remote = self._tick = 0

    @property
    def timeouts(self) -> int:
        """Rows whose grading ran into its time limit, since the start of the last run."""
        return self.health.timeouts

    @property
    def failures(self) -> int:
        """Rows without a verdict, since the start of the last run."""
        return self.health.failures

    def run(
        self,
        coroutines: Sequence[Coroutine],
        *,
        engines: Sequence[Engine] = (),
        on_tick: Callable[[Status], None] | None = None,
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
        self.health.start_run()
        self._grades = GradeExchange(self.grader) if self.grader else None
        self.grade_seconds = 0.0
        self._engines = list(engines)
        running = [_Running(coroutine, None, number) for number, coroutine in enumerate(coroutines)]
        self._results, self._left = [None] * len(running), len(running)
        self._ready.extend(running)
        tokens = 0
        try:
            while True:
                self._advance()
                if not self._left:
                    return self._results
                before = sum(engine.stats.tokens for engine in engines)
                self._run_tick()
                tokens += sum(engine.stats.tokens for engine in engines) - before
                watchdog.tick()
                if on_tick:
                    on_tick(self._status(tokens, time.monotonic() - started))
        finally:
            for one in [*self._ready, *running]:
                one.coroutine.close()
            if self._grades:
                self._grades.clear()
            self._reset()

    def _run_tick(self) -> None:
        """Steps every engine that has work, then hands out the grades that are due and the remote answers there are."""
        busy = [engine for engine in self._engines if engine.busy]
        grading = self._grades is not None and self._grades.busy
        if not (busy or grading or self._remote):
            raise RuntimeError("a coroutine waits for something that is none of the orchestrator's")
        for engine in busy:
            self._deliver(engine.step())
        self._tick += 1
        self._hand_out(idle=not busy)

    def _advance(self) -> None:
        """Runs every coroutine that can go on, until all wait."""
        while self._ready:
            running = self._ready.popleft()
            try:
                wait = running.coroutine.send(running.value)
            except StopIteration as stop:
                self._finish(running, stop.value)
            else:
                if not isinstance(wait, _Wait):
                    raise RuntimeError(f"a coroutine waits for {wait!r}, which is none of the orchestrator's")
                wait.begin(self, running)

    def _finish(self, running: _Running, result) -> None:
        if running.parent is None:
            self._results[running.number] = result
            self._left -= 1
        else:
            self._put(running.parent, running.number, result)

    def _put(self, waiting: _Running, number: int, result) -> None:
        """Gives a coroutine one of the results that it waits for."""
        waiting.results[number] = result
        waiting.missing -= 1
        if not waiting.missing:
            self._resume(waiting, waiting.results)

    def _resume(self, waiting: _Running, value) -> None:
        waiting.value = value
        self._ready.append(waiting)

    def _status(self, tokens: int, seconds: float) -> Status:
        waiting: collections.Counter = collections.Counter()
        for engine in self._engines:
            waiting.update(engine.waiting_by_stage())
        return Status(
            done=len(self._results) - self._left,
            total=len(self._results),
            live=sum(engine.live for engine in self._engines),
            slots=sum(engine.total_slots for engine in self._engines),
            waiting=dict(waiting),
            tokens=tokens,
            seconds=seconds,
        )

    # --- coroutines, texts ------------------------------------------------------------------------------------------

    def _spawn(self, waiting: _Running, coroutines: Sequence[Coroutine]) -> None:
        waiting.results, waiting.missing = [None] * len(coroutines), len(coroutines)
        self._ready.extend(_Running(coroutine, waiting, number) for number, coroutine in enumerate(coroutines))
        if not coroutines:
            self._resume(waiting, [])

    def _ask(self, waiting: _Running, engine: Engine, request: Request) -> None:
        waiting.results, waiting.missing = [None] * len(request.indices), len(request.indices)
        self._asked[id(request)] = waiting
        engine.add(request)

    def _deliver(self, finished: Sequence[tuple[Request, int, Sampled]]) -> None:
        for request, number, sampled in finished:
            waiting = self._asked[id(request)]
            self._put(waiting, number, sampled)
            if not waiting.missing:
                del self._asked[id(request)]

    # --- grades -----------------------------------------------------------------------------------------------------

    def _grade(self, waiting: _Running, responses: Sequence[str], problem: Problem, opened: Sequence[bool]) -> None:
        grader, exchange = self.grader, self._grades
        if grader is None or exchange is None:
            raise ValueError("grades are awaited of an orchestrator without a grader; give it one.")
        kind = problem.grader or grader.kind

        def request(response: str, thinking: bool) -> futures.Future[Grade]:
            future = submit(grader, response, problem, thinking).future
            assert future is not None  # grades of a remote grader have one
            return future

        async def grade_remotely(response: str, thinking: bool) -> Grade:
            found = Grade(**await await_future(lambda: request(response, thinking)))
            self.health.record([found], [response], problem, kind=kind, thinking_opened=[thinking])
            return found

        def deliver(grades: list[Grade]) -> None:
            self._record(waiting, grades, responses, problem, kind, opened)

        if grader.is_remote(problem.grader):
            self._spawn(waiting, [grade_remotely(*one) for one in zip(responses, opened, strict=True)])
        else:
            due = self._tick + _GRADE_TICKS
            exchange.submit(responses, problem, due=due, deliver=deliver, thinking_opened=opened)

    def _prefer(self, waiting: _Running, responses: Sequence[str], problem: Problem, reference: str) -> None:
        grader = self.grader
        if grader is None:
            raise ValueError("a judge is asked through an orchestrator's grader; give it one.")

        async def prefer(response: str) -> float | None:
            found = Grade(**await await_future(lambda: compare(grader, response, problem, reference)))
            self.health.record([found], [response], problem, kind="judge")
            return None if found.failed else float(found.score)

        self._spawn(waiting, [prefer(response) for response in responses])

    def _record(
        self,
        waiting: _Running,
        grades: Sequence[Grade],
        responses: Sequence[str],
        problem: Problem,
        kind: str,
        opened: Sequence[bool] = (),
    ) -> None:
        self.health.record(grades, responses, problem, kind=kind, thinking_opened=opened)
        self._resume(waiting, list(grades))

    def _record_reply(self, waiting: _Running, problem: Problem, failure: str | None) -> None:
        self.health.record_reply(problem, failure=failure)
        self._resume(waiting, None)

    # --- grades and remote answers, which processes share at once ---------------------------------------------------

    def _hand_out(self, *, idle: bool) -> None:
        """Hands out the grades that are due, all where no engine works, and the remote answers that have come."""
        started = time.monotonic()
        due = self._grades.take(self._tick, everything=idle) if self._grades else None
        if due is None and not self._remote:
            return
        answers, errors = self._answers(wait=idle and due is None and not self._ready)
        told = processes.share([due and due.own, answers])  # in one collective
        if due is not None:
            self.grade_seconds += time.monotonic() - started
            due.deliver([grades for grades, _ in told])
        _, answers = told[0]
        for key, result in answers:
            waiting, _ = self._remote.pop(key)
            if error := errors.get(key):
                raise error
            if result is None:
                raise UserError("asking an endpoint failed on process 0; its own message says why.")
            self._resume(waiting, result)

    # --- remote answers ---------------------------------------------------------------------------------------------

    def _await(self, waiting: _Running, submit: Callable[[], futures.Future]) -> None:
        self._remote[self._num_remote] = waiting, _submitted(submit) if processes.is_first() else None
        self._num_remote += 1

    def _answers(self, *, wait: bool) -> tuple[list, dict[int, BaseException | None]]:
        """Returns the remote answers that have come to this process, and the errors of those that are none.

        Args:
          wait: a while, for one at least.
        """
        pending = [future for _, future in self._remote.values() if future is not None]
        if wait and pending:
            futures.wait(pending, timeout=_POLL_SECONDS, return_when=futures.FIRST_COMPLETED)
        done = {key: future for key, (_, future) in self._remote.items() if future is not None and future.done()}
        errors = {key: future.exception() for key, future in done.items()}
        return [[key, None if errors[key] else dataclasses.asdict(one.result())] for key, one in done.items()], errors


def _submitted(submit: Callable[[], futures.Future]) -> futures.Future:
    """Returns the future that `submit` returns; one that has failed where it raises, since the others wait for it."""
    try:
        return submit()
    except Exception as error:  # noqa: BLE001 - raised where all processes read this answer, so that all end
        failed: futures.Future = futures.Future()
        failed.set_exception(error)
        return failed
