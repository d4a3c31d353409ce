"""Grades of all processes: each grades its share of the responses, and all read the grades at the same tick.

The responses to a question are dealt out row by row, or, where a grader takes groups, question by question. What is
read when depends on what was asked when, never on how long grading takes; so the schedule is the same on all processes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent import futures

import jax

from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.records import Problem, Turn, transcript
from cgrpo_jax.rewards.grader import Grade, Grader, Pending
from cgrpo_jax.runtime import watchdog


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


class Due:
    """Grades that are due: those of this process, to be shared, and who waits for those of all.

    Args:
      graded: what is due; the grades of this process are waited for.

    Attributes:
      own: what this process tells the others, a JSON value.
    """

    def __init__(self, graded: Sequence[_Graded]):
        self._graded, self._failed = graded, None
        own, error = [], ""
        try:
            own = [one.read() for one in graded]
        except GradingError as raised:  # shared with the other processes, so that all say the same
            error = str(raised)
        except Exception as raised:  # noqa: BLE001 - raised once the others have heard of it, so that all end
            own, error, self._failed = [], None, raised
        self.own = [own, error]

    def deliver(self, told: Sequence) -> None:
        """Delivers the grades, from what each process tells (`own`), in the order of the processes.

        Raises:
          GradingError: on all processes alike, a user's reward function raised.
        """
        shares, errors = zip(*told, strict=True)
        if self._failed is not None:
            raise self._failed
        if silent := [process for process, one in enumerate(errors) if one is None]:
            names = ", ".join(map(str, silent))
            raise UserError(f"grading failed on process {names}; its own message says why.")
        if any(errors):
            raise GradingError(next(filter(None, errors)))
        for i, graded in enumerate(self._graded):
            rows = [iter(share[i]) for share in shares]
            graded.deliver([Grade(*next(rows[process])) for process in graded.graders])


class GradeExchange:
    """What is being graded in a run.

    Args:
      grader: of this process.
    """

    def __init__(self, grader: Grader):
        self.grader = grader
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

    def take(self, tick: int, *, everything: bool) -> Due | None:
        """Waits for this process's grades of what is due, or of all; each has the grader's time limit.

        Returns:
          what is to be shared and delivered; None where nothing is due, on all processes alike.
        """
        due = [graded for graded in self._graded if everything or graded.due <= tick]
        self._graded = [graded for graded in self._graded if not (everything or graded.due <= tick)]
        return Due(due) if due else None

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
