"""Programs of responses, run in the background for those who judge: the tests of an item, calls that they want to see.

All that reads or runs what a model wrote happens in worker processes with a hard time limit, and there in sandboxes.
"""

import threading
from collections.abc import Callable
from concurrent import futures

from cgrpo_jax.rewards.rubrics.rubric import Ruling
from cgrpo_jax.rewards.sandbox import grade as tests_lib
from cgrpo_jax.rewards.sandbox import observe as observe_lib
from cgrpo_jax.rewards.sandbox import sandbox
from cgrpo_jax.rewards.sandbox.modules import NONE, Modules
from cgrpo_jax.rewards.sandbox.values import EXPECTED
from cgrpo_jax.rewards.worker_pool import MEMORY_LIMIT, Outcome, Workers
from cgrpo_jax.runtime import text as text_lib

MAX_CALLS = observe_lib.MAX_CALLS


class Programs:
    """Runs the programs of responses. Its workers are started by the first one.

    Example:
      with Programs(timeout=5.0) as programs:
        programs.test("def f(x): return x", '{"asserts": ["assert f(1) == 2"]}').result()
        # Outcome(value=Ruling(share=0.0, number=1, evidence="Test 1 of 1 fails: f(1) returns 1. ..."), failure=None)
        programs.observe("def f(x): return x", "f(3)").result().value    # ["f(3) returns 3"]

    Args:
      num_workers: worker processes.
      timeout: seconds of one program with its tests, or its calls; at the limit its worker is killed.
      numpy: programs, tests and calls may import NumPy.
      modules: of the user's own, which programs may import.
    """

    def __init__(self, *, num_workers: int = 2, timeout: float = 5.0, numpy: bool = False, modules: Modules = NONE):
        self._limits = timeout, numpy, modules
        self._workers = Workers(num_workers, timeout=timeout, start=tests_lib.start, arguments=(MEMORY_LIMIT,))
        self._threads = futures.ThreadPoolExecutor(num_workers, thread_name_prefix="programs")
        self._lock, self._checked = threading.Lock(), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Ends the worker processes; what is under way is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()

    def test(self, response: str, tests: str) -> futures.Future[Outcome]:
        """Starts to run a response's program against tests; the future's outcome holds a `Ruling`."""
        return self._threads.submit(self._test, response, tests)

    def defined(self, response: str) -> futures.Future[Outcome]:
        """Starts to look for a response's program; the future's outcome holds the names that it defines."""
        return self._threads.submit(self._run, observe_lib.defined, response)

    def observe(self, response: str, asked: str) -> futures.Future[Outcome]:
        """Starts to run the calls in `asked`; the future's outcome holds what came of each, in a line of words."""
        return self._threads.submit(self._observe, response, asked)

    def _test(self, response: str, tests: str) -> Outcome:
        found = self._run(tests_lib.grade, response, tests, *self._limits)
        if found.timed_out:  # which is the response's own doing
            return Outcome(Ruling(0.0, evidence=found.failure or ""), timed_out=True)
        if found.failure is not None:
            return found
        score, _, reason = found.value
        said, mark, expected = reason.partition(EXPECTED)
        evidence = text_lib.one_line(said) + (mark and mark + text_lib.one_line(expected))
        return Outcome(Ruling(float(score), evidence=evidence))

    def _observe(self, response: str, asked: str) -> Outcome:
        found = self._run(observe_lib.observe, response, asked, *self._limits)
        if found.timed_out:
            return Outcome([f"running the program {found.failure}"])
        return found if found.failure else Outcome([text_lib.one_line(one) for one in found.value])

    def _run(self, function: Callable, *arguments) -> Outcome:
        with self._lock:
            if not self._checked:
                sandbox.check()
                self._checked = True
        return self._workers.call(function, *arguments).outcome()
