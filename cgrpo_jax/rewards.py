"""Rewards: is the final answer of a response right?

Each kind reads a final answer out of a response and compares it with the gold answer:

  - `math`: LaTeX or plain mathematics, by math-verify, in worker processes with a hard time limit.
  - `numeric`: the last number of the response, within 1e-6 relative.
  - `exact`: the rest of the line after the last "Answer:", or the whole text, up to whitespace.
  - `trace`: everything after the last "Answer:", up to whitespace.

Whatever a model writes, grading a row gives a `Grade`; it never raises.
"""

import dataclasses
import math
import multiprocessing.context
import re
import sys
import threading
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

import pebble

from cgrpo_jax import math_worker
from cgrpo_jax.errors import UserError

MEMORY_LIMIT = 8 << 30  # bytes of address space of one worker
_NUMBER = re.compile(r"(?:(?<![\w.)\]])[-\u2212])?\s?\$?\s?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")
_ANSWER = "Answer:"


@dataclasses.dataclass(frozen=True)
class Grade:
    """Verdict on one response.

    Attributes:
      score: 1.0 if the final answer is right, else 0.0.
      extracted: the final answer as it was read, None if there was none.
      reason: why, in a few words; "timed out after 5 s" where the time limit struck.
      timed_out: the grader was killed at its time limit. Count these: they are zeros that say nothing of the answer.
    """

    score: float
    extracted: str | None
    reason: str
    timed_out: bool = False


def grade(kind: str, responses: Sequence[str], answers: Sequence[str], *, timeout: float = 5.0) -> list[Grade]:
    """Grades responses once; a loop should keep a `Grader`, whose worker processes live on.

    Example:
      >>> grade("numeric", ["so she has $1,200.00 left.", "I don't know"], ["1200", "7"])[0].score
      1.0

    Args:
      kind: "math", "exact", "numeric" or "trace".
      responses: what the model wrote.
      answers: one gold answer a response.
      timeout: seconds for one response.

    Raises:
      UserError: unknown kind.
    """
    with Grader(kind, timeout=timeout) as grader:
        return grader.grade(responses, answers)


def check_gold(kind: str, answers: Sequence[str], *, timeout: float = 5.0) -> None:
    """Checks that every gold answer can be read, so that no row is rewarded or failed for the parser's sake.

    Raises:
      UserError: unknown kind, or answers that can't be read: the first five rows and how many there are.
    """
    with Grader(kind, timeout=timeout) as grader:
        readable = grader.readable(answers)
    bad = [row for row, ok in enumerate(readable) if not ok]
    if bad:
        rows = "; ".join(f"row {row}: {answers[row][:80]!r}" for row in bad[:5])
        raise UserError(
            f"{len(bad)} of {len(answers)} gold answers can't be read by reward kind '{kind}' ({rows}"
            f"{'; ...' if len(bad) > 5 else ''}); mend or drop these rows, or choose another kind."
        )


class Grader:
    """Grades responses of one kind; for "math" it owns the worker processes, started at the first response.

    Example:
      with Grader("math", num_workers=2, timeout=5.0) as grader:
        grader.grade([r"thus \\boxed{1/2}"], ["0.5"])    # [Grade(score=1.0, extracted="1/2", ...)]

    Args:
      kind: "math", "exact", "numeric" or "trace".
      num_workers: worker processes (math only).
      timeout: seconds for one response (math only); at the limit its worker is killed and replaced.

    Raises:
      UserError: unknown kind.
    """

    def __init__(self, kind: str, *, num_workers: int = 2, timeout: float = 5.0):
        if kind not in KINDS:
            raise UserError(f"reward kind '{kind}' is unknown; choose one of {', '.join(KINDS)}.")
        self._kind, self._num_workers, self._timeout = kind, num_workers, timeout
        self._pool = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the worker processes; responses still being graded are dropped."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def submit(self, response: str, answer: str) -> "Pending":
        """Begins to grade one response; `.result()` waits for its `Grade`."""
        if self._kind == "math":
            return Pending(self, (response, answer), self._schedule(math_worker.grade, response, answer))
        future = futures.Future()
        future.set_result(_IN_PROCESS[self._kind](math_worker.without_thinking(response), answer))
        return Pending(self, (response, answer), future)

    def grade(self, responses: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """Grades all responses, in order."""
        pending = [self.submit(response, answer) for response, answer in zip(responses, answers, strict=True)]
        return [row.result() for row in pending]

    def readable(self, answers: Sequence[str]) -> list[bool]:
        """For each gold answer: can this kind read it? An answer that times out can't."""
        if self._kind != "math":
            return [_READABLE[self._kind](answer) for answer in answers]
        # Plain numbers, nearly all of some data sets, need no parser; equal answers are asked about once.
        unsure = {answer for answer in answers if not _PLAIN_NUMBER.fullmatch(answer.strip())}
        tasks = {answer: self._schedule(math_worker.readable, answer) for answer in sorted(unsure)}
        known = {
            answer: self._outcome(task, math_worker.readable, (answer,))[0] is True for answer, task in tasks.items()
        }
        return [known.get(answer, True) for answer in answers]

    def _schedule(self, function, *args):
        if self._pool is not None and not self._pool.active:
            self.close()  # spoiled: see _outcome
        if self._pool is None:
            self._pool = pebble.ProcessPool(
                max_workers=self._num_workers,
                initializer=math_worker.start,
                initargs=(MEMORY_LIMIT,),
                context=_SpawnWithoutMain(),
            )
        return self._pool.schedule(function, args=args, timeout=self._timeout)

    def _outcome(self, future, function, args):
        """`(result, None, False)` of a task, or `(None, reason, timed_out)`."""
        try:
            try:
                return future.result(), None, False
            except BrokenProcessPool:
                # An idle worker died (killed from outside, say), which spoils a pool: once more, in a fresh one.
                return self._schedule(function, *args).result(), None, False
        except BrokenProcessPool as error:
            raise RuntimeError("The grading workers die at their start; is math-verify installed?") from error
        except futures.TimeoutError:
            return None, f"timed out after {self._timeout:g} s", True
        except pebble.ProcessExpired as error:
            return None, f"worker died (exit code {error.exitcode})", False
        except Exception as error:  # noqa: BLE001 - whatever SymPy raises is this row's zero, not the trainer's end
            return None, f"grader failed: {type(error).__name__}", False


@dataclasses.dataclass(frozen=True)
class Pending:
    """A response that is being graded."""

    grader: Grader
    row: tuple[str, str]
    future: futures.Future

    def result(self) -> Grade:
        """Waits for the grade."""
        result, reason, timed_out = self.grader._outcome(self.future, math_worker.grade, self.row)
        if reason is not None:
            return Grade(0.0, None, reason, timed_out)
        return Grade(*result)


def _squeeze(text):
    return " ".join(text.split())


def _compare(extracted, answer):
    if not answer:
        return 0.0, extracted or None, "gold answer '' can't be read"
    if not extracted:
        return 0.0, None, "no answer found"
    return float(extracted == answer), extracted, "equal" if extracted == answer else "not equal"


def _exact(response, answer):
    _, found, rest = response.rpartition(_ANSWER)
    lines = rest.strip().splitlines() if found else [response]
    return _compare(_squeeze(lines[0]) if lines else "", _squeeze(answer))


def _trace(response, answer):
    _, found, rest = response.rpartition(_ANSWER)
    return _compare(_squeeze(rest) if found else "", _squeeze(answer))


def _read_number(answer):
    """The gold answer as a float, None if it is not one number and its currency or percent sign."""
    match = _NUMBER.fullmatch(answer.strip().rstrip(".").removesuffix("%").rstrip())
    value = _value(match) if match else math.inf
    return value if math.isfinite(value) else None


def _value(match):
    value = float(match.group(1).replace(",", ""))
    return -value if match.group().lstrip()[:1] in ("-", "\u2212") else value


def _numeric(response, answer):
    gold = _read_number(answer)
    if gold is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    last = None
    for match in _NUMBER.finditer(response):
        last = match
    if last is None:
        return 0.0, None, "no answer found"
    equal = math.isclose(_value(last), gold, rel_tol=1e-6)
    return float(equal), last.group().strip(), "equal" if equal else "not equal"


_IN_PROCESS = {"exact": _exact, "numeric": _numeric, "trace": _trace}
_READABLE = {
    "exact": lambda answer: bool(answer.strip()),
    "numeric": lambda answer: _read_number(answer) is not None,
    "trace": lambda answer: bool(answer.strip()),
}
KINDS = ("math", *_IN_PROCESS)


class _ProcessWithoutMain(multiprocessing.context.SpawnProcess):
    """A spawned process that does not import the parent's main module again.

    Spawn looks for `__main__.__spec__` and `__main__.__file__` and runs what they name; for `python -m
    cgrpo_jax.train` that would be JAX and the model code in each worker. The workers need nothing of it.
    """

    _lock = threading.Lock()

    def start(self):
        main = sys.modules["__main__"]
        with self._lock:
            spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
            main.__spec__ = main.__file__ = None
            try:
                super().start()
            finally:
                main.__spec__, main.__file__ = spec, file


class _SpawnWithoutMain(multiprocessing.context.SpawnContext):
    Process = _ProcessWithoutMain
