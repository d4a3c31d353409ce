"""Worker processes that are killed at a time limit: where whatever a model wrote is parsed or run.

A worker that hangs is killed and replaced; one that dies costs its task alone. Nothing of the program that starts them
is imported into them: neither its main module nor JAX. Ctrl-C does not reach them.
"""

import dataclasses
import importlib.machinery
import multiprocessing.context
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

import pebble

from cgrpo_jax.errors import GradingError

_FIRST = "cgrpo_jax.rewards.worker_start"  # by its name: the module that a worker runs as its main one
MEMORY_LIMIT = 8 << 30  # bytes of address space of one worker that grades


@dataclasses.dataclass(frozen=True)
class Task:
    """A call that a worker works on."""

    workers: "Workers"
    call: tuple[Callable, tuple]
    timeout: float
    future: futures.Future

    def outcome(self) -> "Outcome":
        """Waits for what became of it."""
        return self.workers._outcome(self)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
      value: what it returned, None if it failed.
      failure: None, or why it failed, in a few words.
      timed_out: it was killed at its time limit.
    """

    value: Any
    failure: str | None = None
    timed_out: bool = False


class Workers:
    """A pool of processes, started at the first call. Several threads may call.

    Example:
      with Workers(2, timeout=5.0) as workers:
        workers.call(math.factorial, 5).outcome()    # Outcome(value=120, failure=None, timed_out=False)

    Args:
      number: of processes.
      timeout: seconds of a call; at the limit its worker is killed and replaced.
      start: called in each process at its start, before any time limit runs; a function of a module.
      arguments: of `start`.
    """

    def __init__(self, number: int, *, timeout: float, start: Callable | None = None, arguments: Sequence = ()):
        self._number, self._timeout = number, timeout
        self._start, self._arguments = start, tuple(arguments)
        self._pool: pebble.ProcessPool | None = None
        self._lock = threading.RLock()  # guards the pool

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Ends the processes; calls under way are dropped."""
        with self._lock:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()
                self._pool = None

    def call(self, function: Callable, *arguments, timeout: float | None = None) -> Task:
        """Starts a call of a module's function; arguments and result are pickled. `timeout` replaces the pool's."""
        timeout = self._timeout if timeout is None else timeout
        return Task(self, (function, arguments), timeout, self._schedule((function, arguments), timeout))

    def _schedule(self, call: tuple[Callable, tuple], timeout: float) -> futures.Future:
        with self._lock:
            if self._pool is not None and not self._pool.active:
                self.close()  # spoiled: see _outcome
            if self._pool is None:
                self._pool = pebble.ProcessPool(
                    max_workers=self._number,
                    initializer=self._start,
                    initargs=self._arguments,
                    context=_SpawnWithoutMain(),
                )
            return self._pool.schedule(_outcome_of, args=call, timeout=timeout)

    def _outcome(self, task: Task) -> Outcome:
        try:
            try:
                return task.future.result()
            except BrokenProcessPool:
                # An idle worker died (killed from outside, say), which spoils a pool: once more, in a fresh one.
                return self._schedule(task.call, task.timeout).result()
        except BrokenProcessPool as error:
            raise GradingError("the grading workers die at their start; see that math-verify is installed.") from error
        except futures.TimeoutError:
            return Outcome(None, f"timed out after {task.timeout:g} s", timed_out=True)
        except pebble.ProcessExpired as error:
            return Outcome(None, f"worker died (exit code {error.exitcode})")
        except Exception as error:  # noqa: BLE001 - what can't be pickled, say
            return failed(error)


class _ProcessWithoutMain(multiprocessing.context.SpawnProcess):
    """A spawned process that does not import the parent's main module again.

    Spawn looks for `__main__.__spec__` and `__main__.__file__` and runs what they name; for `python -m
    cgrpo_jax.train` that would be JAX and the model code in each worker. The workers need nothing of it, and run
    `worker_start` in its place.
    """

    _lock = threading.Lock()

    def start(self):
        main = sys.modules["__main__"]
        with self._lock:
            spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
            main.__spec__, main.__file__ = importlib.machinery.ModuleSpec(_FIRST, None), None
            resource_tracker.ensure_running()  # which would unblock what is blocked here
            # Inherited: Ctrl-C goes to the whole group, and who started the workers ends them.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                main.__spec__, main.__file__ = spec, file


class _SpawnWithoutMain(multiprocessing.context.SpawnContext):
    Process = _ProcessWithoutMain


def each(function: Callable, rows: Sequence[tuple]) -> list[Outcome]:
    """Calls a function for each row of arguments; one that raises costs its row alone. To be called in a worker."""
    return [_outcome_of(function, row) for row in rows]


def _outcome_of(function: Callable, arguments: tuple) -> Outcome:
    """Calls a function. In the worker, so that a `TimeoutError` of its own is not taken for the time limit."""
    try:
        return Outcome(function(*arguments))
    except Exception as error:  # noqa: BLE001 - whatever SymPy raises
        return failed(error)


def failed(error: Exception) -> Outcome:
    """The outcome of a call that raised."""
    return Outcome(None, f"grader failed: {type(error).__name__}: {error}".removesuffix(": ")[:200])
