"""Grading of programs by unit tests, run only inside worker processes: they wait for the programs.

The gold answer holds the tests, see `gold`.

The program runs in one sandbox, the asserts in another; see `program` for what passes between them. What is
expected, and the verdict, never are in a process that runs the program, and no word of the tests but the names that are
tested has its meaning from the program (see `names`). Arguments and results are passed as copies:
what a function does to its arguments can't be tested, and functions can't be passed to it. What can't be copied stays
with the program, see `remote`.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import socket
import time

from cgrpo_jax.rewards.sandbox import environment, gold, sandbox
from cgrpo_jax.rewards.sandbox.extraction import bound_names, defines, program_of
from cgrpo_jax.rewards.sandbox.gold import readable, unclear_names
from cgrpo_jax.rewards.sandbox.modules import NONE, Modules
from cgrpo_jax.rewards.sandbox.names import modules as modules_used
from cgrpo_jax.rewards.sandbox.values import EXPECTED, MAX_SAID, MAX_SHOWN, cut

__all__ = ["grade", "program_of", "readable", "seconds_for", "start", "unclear_names"]

# What of a worker's time limit is kept for starting sandboxes and for reporting a program that hangs.
_MARGIN = 2.0  # seconds, at most
_KEPT = 0.4  # share of the time limit, at most
_START = 0.75  # share of what is kept, for the start
_AT_ONCE = 4  # scripts of one program: most of the time in which one starts is waiting
_MAX_OUTPUT = 1 << 20  # bytes that a program may print
_MAX_REPORT = 1 << 16
_LINE_DIGITS = 8  # of a line's number
_HERE = pathlib.Path(__file__).resolve().parent
_PROGRAM, _TESTS = _HERE / "program.py", _HERE / "tests.py"


def start(memory_limit: int) -> None:
    """Initialises a worker.

    Args:
      memory_limit: bytes of the worker alone: programs have limits of their own.
    """
    import resource

    if not sandbox.isolated():
        sandbox.hide()
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def seconds_for(timeout: float) -> float:
    """Returns the seconds that all tests of a program share, of the worker's time limit.

    Example:
      >>> seconds_for(5.0), seconds_for(60.0), seconds_for(1.0)
      (3.0, 58.0, 0.6)
    """
    return timeout - _margin(timeout)


def _margin(timeout):
    return min(_MARGIN, _KEPT * timeout)


def _start_seconds(timeout):
    """Seconds that a sandbox may take to start, before the program's time runs."""
    return _START * _margin(timeout)


def grade(
    response: str,
    answer: str,
    timeout: float = 5.0,
    numpy: bool = False,
    modules: Modules = NONE,
    *,
    seconds: float | None = None,
) -> tuple[float, str | None, str]:
    """Runs the program in `response` against the tests in `answer`.

    Args:
      response: what the model wrote.
      answer: JSON, see above.
      timeout: seconds after which the worker is killed.
      numpy: programs and tests may import NumPy.
      modules: of the user's own, which programs may import; their tests see none of them.
      seconds: of wall-clock time, for all tests; by default what the time limit leaves, see `seconds_for`.

    Returns:
      `(score, program, reason)`, see `rewards.Grade`. The score is 1.0 if all tests pass, else 0.0. The reason names
      the first test that fails, the call and what came of it: a value, or an exception with the program's line. What
      was expected comes after `EXPECTED`, so that it can be left out.

    Example:
      >>> grade("def add(a, b):\\n    return a - b", '{"asserts": ["assert add(1, 2) == 3"]}')[2]
      'Test 1 of 1 fails: add(1, 2) returns -1. Tests passed: 0 of 1.\\nExpected: 3'
    """
    tests = gold.read(answer)
    if tests is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    of_names = "stdin" not in tests and [name for name in gold.names(tests) if not name.startswith(".")]
    program = program_of(response, of_names or (), bound_names(tests.get("prompt", "")))
    if not program.strip():
        return 0.0, None, "no program found"
    run = _run_scripts if "stdin" in tests else _run_asserts
    seconds = seconds_for(timeout) if seconds is None else seconds
    wanted = environment.wanted(program, answer, numpy, modules)
    passed, reason = run(program, tests, seconds, _start_seconds(timeout), wanted)
    return float(passed), _written(program), _written(reason)


def unimportable(modules: Modules, timeout: float = 5.0, numpy: bool = False, limit: float | None = None) -> str:
    """Returns the first of the modules that a program can't import, and why; "" if it can import all.

    Args:
      modules, numpy: as for `grade`.
      timeout: seconds of the check of one.
      limit: time limit of a program, where that is less: one that takes longer to be imported is tried again within it.
    """
    for name in modules.names:
        program, tests = f"import {name}\n\n\ndef imported():\n    return True", '{"asserts": ["assert imported()"]}'
        started = time.monotonic()
        score, _, reason = grade(program, tests, timeout, numpy, modules)
        taken = time.monotonic() - started
        if not score:
            said = " ".join(reason.split()).removeprefix("No test could be run: ")
            return f"{name} ({said.removesuffix(' Tests passed: 0 of 1.').removesuffix('.')})"
        if limit is not None and taken > seconds_for(limit) and not grade(program, tests, limit, numpy, modules)[0]:
            return f"{name} (it takes {taken:.1f} s, of which grader.timeout {limit:g} leaves {seconds_for(limit):.1f})"
    return ""


def _written(text):
    """The text as it can be written: a program may raise halves of characters."""
    return text.encode("utf-8", "replace").decode()


def _sandbox(runner, job, wanted, seconds, **more):
    """A sandbox with what its program wants, see `environment`."""
    job = job | wanted
    return sandbox.Sandbox(runner, job, limits=_limits(seconds), shown=environment.wanted_paths(wanted), **more)


# --- tests that call the program's functions --------------------------------------------------------------------------


def _run_asserts(program, tests, seconds, start, wanted):
    """Returns (passed, reason)."""
    job = _program_job(program, tests) | {"script": False, "seconds": seconds}
    before = [tests.get("setup", "")] + ([tests["prompt"]] if _compiles(tests.get("prompt", "")) else [])
    sources, names = tests.get("asserts") or [tests["check"]], gold.names(tests)
    forgotten = [f"import {name}" for name in modules_used([*before, *sources]) if name not in names]
    asked = dict(
        names=names,
        before=forgotten + before,
        tests=sources,
        entry_point=tests.get("entry_point", "") if "check" in tests else "",
    )
    tests_want = wanted | {"modules": {}}
    deadline = time.monotonic() + seconds + start
    with contextlib.ExitStack() as stack:
        ours, theirs = [stack.enter_context(end) for end in socket.socketpair()]
        read, write = _pipe(stack, stack)
        tester = stack.enter_context(
            _sandbox(_TESTS, asked, tests_want, seconds, fds=[ours.fileno(), write.fileno()], deadline=deadline)
        )
        runner = stack.enter_context(_sandbox(_PROGRAM, job, wanted, seconds, fds=[theirs.fileno()], deadline=deadline))
        for end in (ours, theirs, write):
            end.close()
        said, why = sandbox.read_capped(read.fileno(), limit=_MAX_REPORT, deadline=deadline)
        if why == "deadline":  # without the program, the tests report how far they came
            runner.stop()
            said += sandbox.read_capped(read.fileno(), limit=_MAX_REPORT, deadline=time.monotonic() + 1)[0]
        tester.stop()
        status = runner.stop() if runner.wait(1) else None
    try:
        report = json.loads(said)
    except ValueError:
        return False, f"the tests did not end within {seconds:g} s" if why == "deadline" else "the tests ended early"
    if report["failure"] is None:
        return True, f"passes all {report['total']} tests"
    return False, _describe(report, seconds, why, status)


def _program_job(program, tests):
    """What is run before the program, the program, and how many of its lines are not the model's."""
    prompt, entry = tests.get("prompt", ""), tests.get("entry_point", "")
    if not prompt or not entry:
        return {"before": "", "program": program, "offset": 0}
    if defines(program, entry):
        return {"before": prompt if _compiles(prompt) else "", "program": program, "offset": 0}
    # The response goes on where the prompt ends.
    return {"before": "", "program": f"{prompt.rstrip()}\n{program}", "offset": len(prompt.rstrip().splitlines())}


def _limits(seconds):
    """No process may use less of the CPU than the wall-clock time that it has."""
    return sandbox.Limits(cpu=max(sandbox.Limits.cpu, math.ceil(seconds) + 1))


def _compiles(source):
    try:
        compile(source, "<prompt>", "exec")
    except (SyntaxError, ValueError):
        return False
    return bool(source)


def _describe(report, seconds, why, status):
    """The first failure of a report in words."""
    found, expected = report["failure"], ""
    call = found["call"] or "the program"
    if "missing" in found:
        what = f"the program defines no {found['missing']}"
    elif "raised" in found:
        what = _exception(call, found["raised"], seconds)
    elif "ended" in found:
        what = f"{call} did not end within {seconds:g} s" if why == "deadline" else f"{call} ends the process"
        what += f" by signal {-status}" if why != "deadline" and status is not None and status < 0 else ""
    elif "refused" in found:
        where = f"Test {found['number']} of {report['total']} can't be decided"
        returned = f"{call} returns {found['returned']}; " if found["returned"] else ""
        said = f"{where}: {returned}an object of the program is compared with a value of the test. "
        return said + f"Tests passed: {report['passed']} of {report['total']}."
    elif "tests" in found:
        returned = f"{call} returns {found['returned']}, and " if found["returned"] else ""
        what = f"{returned}the test raises {found['tests']}"
    else:
        what = f"{call} returns {found['returned']}" if found["call"] else "it does not hold"
        what += f", and {found['side']} is {found['value']}" if found["side"] else ""
        what += f", wrong from {found['where']} on" if found["where"] else ""
        expected = EXPECTED + found["expected"]
    return _reason(found["number"], report["passed"], report["total"], what) + expected


def _exception(what, found, seconds):
    line = f" in line {found['line']}" if found["line"] else ""
    line += f": `{found['text']}`" if found["text"] else ""
    if found["type"] == "OutOfTimeError":
        return f"{what} did not end within {seconds:g} s" + (f", and was{line}" if line else "")
    return f"{what} raises {found['type']}" + (f": {found['message']}" if found["message"] else "") + line


def _reason(number, passed, total, what):
    where = f"Test {number} of {total} fails" if number else "No test could be run"
    return f"{where}: {what}. Tests passed: {passed} of {total}."


# --- tests that read what the program prints --------------------------------------------------------------------------


def _run_scripts(program, tests, seconds, start, wanted):
    """Returns (passed, reason)."""
    deadline, total, passed, first = time.monotonic() + seconds, len(tests["stdin"]), 0, None
    waiting = collections.deque(enumerate(tests["stdin"], start=1))
    running = collections.deque()
    with contextlib.ExitStack() as stack:
        while waiting or running:
            left = deadline - time.monotonic()
            if waiting and len(running) < _AT_ONCE and (left > 0 or not first):
                number, test = waiting.popleft()
                script = stack.enter_context(_Script(program, test, max(left, 0.1), seconds, start, wanted))
                running.append((number, script))
            elif running:
                number, script = running.popleft()
                wrong = script.outcome()
                passed += wrong is None
                first = first or (wrong and (number, *wrong))
            else:
                break  # out of time
    if first is None:
        return True, f"passes all {total} tests"
    number, what, expected = first
    return False, _reason(number, passed, total, what) + expected


class _Script:
    """A program that runs one test, from the start on, in a sandbox of its own."""

    def __init__(self, program, test, left, seconds, start, wanted):
        self._test, self._seconds = test, seconds
        job = {"script": True, "before": "", "program": program, "offset": 0, "seconds": left}
        self._deadline = time.monotonic() + left + start
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as theirs:
            self._output, stdout = _pipe(stack, theirs)
            self._errors, channel = _pipe(stack, theirs)
            self._box = _sandbox(
                _PROGRAM,
                job,
                wanted,
                seconds,
                stdin=test["input"].encode(errors="replace"),
                stdout=stdout.fileno(),
                fds=[channel.fileno()],
                deadline=self._deadline,
            )
            stack.enter_context(self._box)
            self._stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *failed):
        return self._stack.__exit__(*failed)

    def outcome(self):
        """Waits for its end; returns None if it passes, else what is wrong in words, without and with the expected."""
        box, seconds = self._box, self._seconds
        with self._stack:
            printed, why = sandbox.read_capped(self._output.fileno(), limit=_MAX_OUTPUT, deadline=self._deadline)
            status = box.stop() if why != "end" or box.wait(self._deadline - time.monotonic()) else None
            if status is None:
                box.stop()
            error = sandbox.read_capped(self._errors.fileno(), limit=_MAX_REPORT, deadline=time.monotonic() + 1)[0]
        given = f"with the input {cut(repr(self._test['input']))} the program"
        if why == "limit":
            return f"{given} prints more than {_MAX_OUTPUT} bytes", ""
        if why == "deadline" or status is None:
            return f"{given} did not end within {seconds:g} s", ""
        if status:
            return _failed_script(given, error, status, seconds), ""
        return _compare(given, printed.decode(errors="replace"), self._test["output"])


def _failed_script(given, error, status, seconds):
    try:
        found = json.loads(error)  # written by the program's process: no more than words
        most = {"type": MAX_SHOWN, "message": MAX_SAID, "line": MAX_SHOWN, "text": MAX_SHOWN}
        found = {key: found[key] and cut(str(found[key]), most[key]) for key in most}
        found["line"] = found["line"] if len(found["line"] or "") < _LINE_DIGITS else None
        return _exception(given, found, seconds)
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{given} ends " + (f"by signal {-status}" if status < 0 else f"with status {status}")


def _compare(given, printed, expected):
    """Returns None if the outputs are equal up to spaces at the ends of lines, else the first line that differs."""
    lines, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    if lines == wanted:
        return None
    both = min(len(lines), len(wanted))
    at = next((at for at in range(both) if lines[at] != wanted[at]), both)
    if at == len(lines):
        what = f"{given} prints nothing after line {at}"
    else:
        what = f"{given} prints {cut(repr(lines[at]))} as line {at + 1}"
    line = cut(repr(wanted[at])) if at < len(wanted) else "the end of the output"
    return what, f"{EXPECTED}{line}" + (f" as line {at + 1}" if len(wanted) > 1 else "")


def _pipe(ours, theirs):
    """A pipe from the program; its two ends are closed with the two stacks."""
    read, write = os.pipe()
    return ours.enter_context(os.fdopen(read, "rb")), theirs.enter_context(os.fdopen(write, "wb"))
