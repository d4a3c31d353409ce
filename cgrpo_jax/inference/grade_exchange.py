"""Grades of all processes: each grades its share of the responses, and all read the grades at the same tick.

The responses to a question are dealt out row by row, or, where a grader takes groups, question by question. What is
read when depends on what was asked when, never on how long grading takes; so the schedule is the same on all processes.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import jax

from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.records import Problem, Turn, transcript
from cgrpo_jax.rewards.grader import Grade, Grader, Pending
from cgrpo_jax.runtime import processes, watchdog


@dataclasses.dataclass(eq=False)
class _Graded:
    """Responses to a problem that are being graded.

    Attributes:
      due: the tick at which their grades are read.
      graders: which process grades each response.
      deliver: takes the grades.
      pending: those that this process grades.
      error: why it can't; raised where all processes read the grades, so that all of them end.
    """

    due: int
    graders: Sequence[int]
    deliver: Callable[[list[Grade]], None]
    pending: list[Pending] = dataclasses.field(default_factory=list)
    error: Exception | None = None

    def read(self) -> list[tuple]:
        """Waits for the grades of this process; raises what went wrong."""
        if self.error is not None:
            raise self.error
        grades = []
        for row in self.pending:
            grades.append(dataclasses.astuple(row.result()))
            watchdog.alive()  # many rows in turn may take longer than anything else
        return grades


class GradeExchange:
    """What is being graded in a run.

    Args:
      grader: of this process.

    Attributes:
      seconds: in which nothing was done but wait for grades.
    """

    def __init__(self, grader: Grader):
        self.grader = grader
        self.seconds = 0.0
        self._graded: list[_Graded] = []
        self._num_groups = 0

    @property
    def busy(self) -> bool:
        """Whether grades are still to be read."""
        return bool(self._graded)

    def submit(
        self,
        responses: Sequence[str],
        problem: Problem,
        *,
        due: int,
        deliver: Callable[[list[Grade]], None],
        thinking_opened: Sequence[bool] = (),
    ) -> None:
        """Begins to grade responses to a problem.

        Args:
          responses, problem, thinking_opened: as for `orchestrator.grade`.
          due: the tick at which the grades are read.
          deliver: is then called with them, in order.
        """
        here, number = jax.process_index(), jax.process_count()
        if self.grader.takes_groups(problem.grader):
            graders = [self._num_groups % number] * len(responses)
            self._num_groups += 1
        else:
            graders = [row % number for row in range(len(responses))]
        graded = _Graded(due, graders, deliver)
        try:
            opened = thinking_opened or [False] * len(responses)
            rows = zip(responses, opened, graders, strict=True)
            own = [(response, thinking) for response, thinking, process in rows if process == here]
            graded.pending = [submit(self.grader, response, problem, thinking) for response, thinking in own]
            self.grader.send()
        except Exception as error:  # noqa: BLE001 - raised where all processes read these grades, so that all end
            graded.error = error
        self._graded.append(graded)

    def read(self, tick: int, *, everything: bool) -> None:
        """Waits for the grades that are due, or for all, and delivers them; each has the grader's time limit.

        Raises:
          GradingError: on all processes alike, a user's reward function raised.
        """
        due = [graded for graded in self._graded if everything or graded.due <= tick]
        if not due:
            return
        self._graded = [graded for graded in self._graded if not (everything or graded.due <= tick)]
        started = time.monotonic()
        own, error, failed = [], "", None
        try:
            own = [graded.read() for graded in due]
        except GradingError as raised:  # shared with the other processes, so that all say the same
            error = str(raised)
        except Exception as raised:  # noqa: BLE001 - raised once the others have heard of it, so that all end
            own, error, failed = [], None, raised
        shares, errors = zip(*processes.share([own, error]), strict=True)  # in one: a tick has few collectives
        self.seconds += time.monotonic() - started
        if failed is not None:
            raise failed
        if silent := [process for process, one in enumerate(errors) if one is None]:
            names = ", ".join(map(str, silent))
            raise UserError(f"grading failed on process {names}; its own message says why.")
        if any(errors):
            raise GradingError(next(filter(None, errors)))
        for i, graded in enumerate(due):
            rows = [iter(share[i]) for share in shares]
            graded.deliver([Grade(*next(rows[process])) for process in graded.graders])

    def clear(self) -> None:
        """Drops what is still being graded."""
        self._graded.clear()


def _asked(problem: Problem) -> str | tuple[Turn, ...]:
    """Returns a question, or the turns of the chat that it ends."""
    return (*problem.turns, ("user", problem.question)) if problem.turns else problem.question


def submit(grader: Grader, response: str, problem: Problem, thinking_opened: bool) -> Pending:
    """Begins to grade one response to a problem."""
    return grader.submit(
        response,
        problem.answer,
        kind=problem.grader,
        prompt=transcript(problem) if grader.is_remote(problem.grader) else _asked(problem),
        columns=problem.columns,
        thinking_opened=thinking_opened,
    )


def compare(grader: Grader, response: str, problem: Problem, reference: str) -> futures.Future[Grade]:
    """Begins to ask a grader's judge how much better a response is than a reference; the score says it."""
    if grader.judge is None:
        raise UserError("a comparison has no endpoint to ask; set judge.endpoint.url and judge.endpoint.model.")
    return grader.judge.compare(transcript(problem), response, reference)
