"""The watch over the graders of a run, and over a critic behind an endpoint: what fails is counted, and a grader or a
critic that fails on everything ends the run."""

import collections
import dataclasses
import logging
from collections.abc import Sequence

from cgrpo_jax.errors import GradingError
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import user_functions
from cgrpo_jax.rewards.grader import Grade
from cgrpo_jax.rewards.thinking import after_thinking
from cgrpo_jax.runtime import processes
from cgrpo_jax.runtime import text as text_lib

# A grader that has failed on so many responses, to so many questions, and has given no verdict at all, is out of order.
# A reward function that gives None says, as with TRL, that it is not meant for a response: that is no such failure.
_FAILED_RESPONSES, _FAILED_QUESTIONS = 8, 4
# Likewise a critic that has given no verdict to so many requests in a row, about so many questions. A critic may write
# without a verdict now and then, so there must be more of them; what a budget has ended is as the user wants it.
UNUSABLE_REPLIES = 32
_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Record:
    """What the grader of one kind has done.

    Attributes:
      given: verdicts on responses that say something; no grader is needed to see that one is empty.
      failed: responses without a verdict.
      questions: that these answer.
    """

    given: int = 0
    failed: int = 0
    questions: set[tuple[str, int]] = dataclasses.field(default_factory=set)

    @property
    def is_hopeless(self) -> bool:
        return not self.given and self.failed >= _FAILED_RESPONSES and len(self.questions) >= _FAILED_QUESTIONS


class GraderHealth:
    """Counts what graders fail at; each kind of grader must work by itself.

    Attributes:
      timeouts: rows whose grading ran into its time limit, since `start_run`.
      failures: rows without a verdict, likewise.
    """

    def __init__(self):
        self.timeouts = self.failures = 0
        self._by_kind: collections.defaultdict[str, _Record] = collections.defaultdict(_Record)
        self._logged: set[str] = set()
        self._unusable = _Record()  # the critic's replies since the last one that held a verdict

    def start_run(self) -> None:
        """Starts the counts of a run. A kind without any verdict may become hopeless over several runs."""
        self.timeouts = self.failures = 0
        for kind in [kind for kind, record in self._by_kind.items() if record.given]:
            del self._by_kind[kind]

    def record(
        self,
        grades: Sequence[Grade],
        responses: Sequence[str],
        problem: Problem,
        *,
        kind: str,
        thinking_opened: Sequence[bool] = (),
    ) -> None:
        """Counts the grades, by a grader of some kind, of responses to a problem.

        Args:
          grades, kind: what was given, and by what.
          responses, problem, thinking_opened: as for `orchestrator.grade`.

        Raises:
          GradingError: all of their kind have failed so far, and there are enough to judge by.
        """
        failed = [grade for grade in grades if grade.failed]
        if failed and kind not in self._logged and processes.is_first():
            self._logged.add(kind)
            _logger.warning(
                "grader '%s' gave no verdict: %s; counted in grade/failures, not said again.",
                kind,
                text_lib.one_line(failed[0].reason),
            )
        self.timeouts += sum(grade.timed_out for grade in grades)
        self.failures += len(failed)
        record = self._by_kind[kind]
        broken = [grade for grade in failed if grade.reason != user_functions.DECLINED]
        record.failed += len(broken)
        record.questions |= {(problem.source, problem.index)} if broken else set()
        record.given += sum(
            bool(after_thinking(text, opened=opened).strip()) and not grade.failed
            for text, opened, grade in zip(responses, thinking_opened or [False] * len(responses), grades, strict=True)
        )
        if broken and record.is_hopeless:
            raise GradingError(
                f"grader '{kind}' gave no verdict on any of {record.failed} responses ({broken[0].reason}); see that "
                "it works, then give the same command to resume."
            )

    def record_reply(self, problem: Problem, *, failure: str | None) -> None:
        """Counts the reply of a critic behind an endpoint.

        Args:
          problem: what it was asked about.
          failure: why it can't be used; None if it can.

        Raises:
          GradingError: so many in a row can't be used that the critic is out of order.
        """
        if failure is None:
            self._unusable = _Record()
            return
        record = self._unusable
        record.failed += 1
        record.questions.add((problem.source, problem.index))
        if record.failed >= UNUSABLE_REPLIES and len(record.questions) >= _FAILED_QUESTIONS:
            raise GradingError(
                f"the critic's endpoint gave no verdict to its last {record.failed} requests ({failure}); see that it "
                "works, then give the same command to resume."
            )
