"""Grading of programs by unit tests, run only inside worker processes: they wait for the programs.

A gold answer is JSON text with one kind of tests:

  - `{"asserts": ["assert add(1, 2) == 3", ...], "setup": "import math", "names": ["add"]}` (MBPP). The setup is part
    of the tests: it is run after the program and before the asserts, and the program does not see what it defines.
    `names` are those that the program gives; without them, the tests must use a single name that nobody defines;
  - `{"prompt": "def add(a, b):\\n ...", "entry_point": "add", "check": "def check(candidate): ..."}` (HumanEval);
  - `{"stdin": [{"input": "1 2\\n", "output": "3\\n"}, ...]}`: the program is run as a script, once a test. What it
    prints is compared line by line, up to spaces at the ends of lines and empty lines at the end.

The program runs in one sandbox, the asserts in another; see `code_program` for what passes between them. What is
expected, and the verdict, never are in a process that runs the program, and no word of the tests but the names that are
tested has its meaning from the program (see `code_names`). Arguments and results are passed as copies:
what a function does to its arguments can't be tested, and functions can't be passed to it.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import time

from cgrpo_jax import sandbox
from cgrpo_jax.answers import without_thinking
from cgrpo_jax.code_names import modules, only_name
from cgrpo_jax.code_values import EXPECTED, cut

SECONDS = 3.0  # of wall-clock time for all tests of a program: less than the time limit of the worker itself
_START_SECONDS = 1.5  # that a sandbox may take before the program's time begins
_MAX_OUTPUT = 1 << 20  # bytes that a program may print
_MAX_REPORT = 1 << 16
_HERE = pathlib.Path(__file__).resolve().parent
_PROGRAM, _TESTS = _HERE / "code_program.py", _HERE / "code_tests.py"
_FENCE = re.compile(r"[ \t]*```[ \t]*([\w+-]*)")
_TEXTS = ("setup", "check", "entry_point", "prompt")


def start(memory_limit):
    """Initialises a worker. Programs have limits of their own, so `memory_limit` is that of the worker alone."""
    import resource

    if not sandbox.isolated():
        sandbox.hide()
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def program_of(response: str) -> str:
    """Returns the program in a response: its last block of Python, else its last block, else all of it.

    Example:
      >>> program_of("So:\\n```python\\nprint(1)\\n```\\nDone.")
      'print(1)\\n'
    """
    text = without_thinking(response)
    blocks = _blocks(text)
    python = [code for language, code in blocks if language.lower() in ("python", "python3", "py")]
    return (python or [code for _, code in blocks] or [text])[-1]


def _blocks(text):
    """The fenced blocks of a text as (language, content); one that is never closed goes on to the end."""
    blocks, content = [], None
    lines = text.split("\n")
    lines = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
    for line in lines:
        fence = _FENCE.match(line)
        if content is not None and fence is None:
            content.append(line)
        elif content is not None:
            content = None
        elif fence and line.endswith("\n"):  # a fence that ends the text opens nothing
            content = []
            blocks.append((fence[1], content))
    return [(language, "".join(content)) for language, content in blocks]


def readable(answer: str) -> bool:
    """Does the gold answer hold tests of one kind, and do those in Python parse?"""
    return _read(answer) is not None


def grade(response: str, answer: str, *, seconds: float = SECONDS) -> tuple[float, str | None, str]:
    """Runs the program in `response` against the tests in `answer`.

    Args:
      response: what the model wrote.
      answer: JSON, see above.
      seconds: of wall-clock time, for all tests together.

    Returns:
      `(score, program, reason)`, see `rewards.Grade`. The score is 1.0 if all tests pass, else 0.0. The reason names
      the first test that fails, the call and what came of it: a value, or an exception with the program's line. What
      was expected stands after `EXPECTED`, so that it can be left out.

    Example:
      >>> grade("def add(a, b):\\n    return a - b", '{"asserts": ["assert add(1, 2) == 3"]}')[2]
      'Test 1 of 1 fails: add(1, 2) returns -1. Tests passed: 0 of 1.\\nExpected: 3'
    """
    tests = _read(answer)
    if tests is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    program = program_of(response)
    if not program.strip():
        return 0.0, None, "no program found"
    run = _run_scripts if "stdin" in tests else _run_asserts
    passed, reason = run(program, tests, seconds)
    return float(passed), program, reason


def _read(answer):
    """The gold answer's fields, None if it can't be read."""
    try:
        tests = json.loads(answer)
        kinds = [kind for kind in ("asserts", "check", "stdin") if kind in tests]
        if len(kinds) != 1 or tests.keys() - {*_TEXTS, *kinds, *(["names"] if kinds == ["asserts"] else [])}:
            return None
        if not all(isinstance(tests.get(name, ""), str) for name in _TEXTS):
            return None
        if not isinstance(tests[kinds[0]], str if kinds == ["check"] else list):
            return None
        if kinds == ["stdin"]:
            pairs = [(test["input"], test["output"]) for test in tests["stdin"]]
            good = all(isinstance(text, str) for pair in pairs for text in pair)
            return tests if good and pairs else None
        compile(tests.get("setup", ""), "<setup>", "exec")
        sources = [tests["check"]] if kinds == ["check"] else tests["asserts"]
        asserts = [re.search(r"\bassert\b", source) and compile(source, "<tests>", "exec") for source in sources]
        if kinds == ["check"] and not (tests.get("entry_point", "").isidentifier() and "def check(" in tests["check"]):
            return None
        return tests if asserts and all(asserts) and _names(tests) else None
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        return None


def _names(tests):
    """The names that the tests take from the program; none if that is not clear."""
    if "check" in tests:
        return [tests["entry_point"]]
    if "names" not in tests:
        name = only_name(tests.get("setup", ""), tests["asserts"])
        return [] if name is None else [name]
    names = tests["names"]
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


# --- tests that call the program's functions --------------------------------------------------------------------------


def _run_asserts(program, tests, seconds):
    """Returns (passed, reason)."""
    job = _program_job(program, tests) | {"script": False, "seconds": seconds}
    before = [tests.get("setup", "")] + ([tests["prompt"]] if _compiles(tests.get("prompt", "")) else [])
    sources, names = tests.get("asserts") or [tests["check"]], _names(tests)
    forgotten = [f"import {name}" for name in modules([*before, *sources]) if name not in names]
    asked = dict(
        names=names,
        before=forgotten + before,
        tests=sources,
        entry_point=tests.get("entry_point", "") if "check" in tests else "",
    )
    deadline = time.monotonic() + seconds + _START_SECONDS
    with contextlib.ExitStack() as stack:
        ours, theirs = [stack.enter_context(end) for end in socket.socketpair()]
        read, write = _pipe(stack)
        tester = stack.enter_context(sandbox.Sandbox(_TESTS, asked, fds=[ours.fileno(), write.fileno()]))
        runner = stack.enter_context(sandbox.Sandbox(_PROGRAM, job, fds=[theirs.fileno()]))
        for end in (ours, theirs, write):
            end.close()
        said, how = sandbox.read_capped(read.fileno(), limit=_MAX_REPORT, deadline=deadline)
        if how == "deadline":  # without the program, the tests tell how far they came
            runner.stop()
            said += sandbox.read_capped(read.fileno(), limit=_MAX_REPORT, deadline=time.monotonic() + 1)[0]
        tester.stop()
        status = runner.stop() if runner.wait(1) else None
    try:
        report = json.loads(said)
    except ValueError:
        return False, f"the tests did not end within {seconds:g} s" if how == "deadline" else "the tests ended early"
    if report["failure"] is None:
        return True, f"passes all {report['total']} tests"
    return False, _describe(report, seconds, how, status)


def _program_job(program, tests):
    """What is run before the program, the program, and how many of its lines are not the model's."""
    prompt, entry = tests.get("prompt", ""), tests.get("entry_point", "")
    if not prompt or not entry:
        return {"before": "", "program": program, "offset": 0}
    if re.search(rf"^def\s+{entry}\b|^{entry}\s*=", program, re.MULTILINE):
        return {"before": prompt if _compiles(prompt) else "", "program": program, "offset": 0}
    # The response goes on where the prompt ends.
    return {"before": "", "program": f"{prompt.rstrip()}\n{program}", "offset": len(prompt.rstrip().splitlines())}


def _compiles(source):
    try:
        compile(source, "<prompt>", "exec")
    except (SyntaxError, ValueError):
        return False
    return bool(source)


def _describe(report, seconds, how, status):
    """The first failure of a report in words."""
    found, expected = report["failure"], ""
    call = found["call"] or "the program"
    if "missing" in found:
        what = f"the program defines no {found['missing']}"
    elif "raised" in found:
        what = _exception(call, found["raised"], seconds)
    elif "ended" in found:
        what = f"{call} did not end within {seconds:g} s" if how == "deadline" else f"{call} ends the process"
        what += f" by signal {-status}" if how != "deadline" and status is not None and status < 0 else ""
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


def _run_scripts(program, tests, seconds):
    """Returns (passed, reason)."""
    deadline, total, passed, first = time.monotonic() + seconds, len(tests["stdin"]), 0, None
    for number, test in enumerate(tests["stdin"], start=1):
        left = deadline - time.monotonic()
        if left <= 0 and first:
            break
        wrong = _run_script(program, test, max(left, 0.1), seconds)
        passed += wrong is None
        first = first or (wrong and (number, *wrong))
    if first is None:
        return True, f"passes all {total} tests"
    number, what, expected = first
    return False, _reason(number, passed, total, what) + expected


def _run_script(program, test, left, seconds):
    """Runs one test; returns None if it passes, else what is wrong in words, without and with what was expected."""
    job = {"script": True, "before": "", "program": program, "offset": 0, "seconds": left}
    deadline = time.monotonic() + left + _START_SECONDS
    typed = test["input"].encode(errors="replace")
    with contextlib.ExitStack() as stack:
        output, stdout = _pipe(stack)
        errors, channel = _pipe(stack)
        box = sandbox.Sandbox(_PROGRAM, job, stdin=typed, stdout=stdout.fileno(), fds=[channel.fileno()])
        stack.enter_context(box)
        stdout.close(), channel.close()
        printed, how = sandbox.read_capped(output.fileno(), limit=_MAX_OUTPUT, deadline=deadline)
        status = box.stop() if how != "end" or box.wait(deadline - time.monotonic()) else None
        if status is None:
            box.stop()
        error = sandbox.read_capped(errors.fileno(), limit=_MAX_REPORT, deadline=time.monotonic() + 1)[0]
    given = f"with the input {cut(repr(test['input']))} the program"
    if how == "limit":
        return f"{given} prints more than {_MAX_OUTPUT} bytes", ""
    if how == "deadline" or status is None:
        return f"{given} did not end within {seconds:g} s", ""
    if status:
        return _failed_script(given, error, status, seconds), ""
    return _compare(given, printed.decode(errors="replace"), test["output"])


def _failed_script(given, error, status, seconds):
    try:
        found = json.loads(error)  # written by the program's process: no more than words
        found = {key: found[key] and cut(str(found[key])) for key in ("type", "message", "line", "text")}
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
    told = cut(repr(wanted[at])) if at < len(wanted) else "the end of the output"
    return what, f"{EXPECTED}{told}" + (f" as line {at + 1}" if len(wanted) > 1 else "")


def _pipe(stack):
    read, write = os.pipe()
    return stack.enter_context(os.fdopen(read, "rb")), stack.enter_context(os.fdopen(write, "wb"))
