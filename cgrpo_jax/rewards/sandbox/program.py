"""The sandbox's side of `grade` that runs the model's program.

`tests`, in another sandbox, asks over a socket, in lines of JSON, for a name, an attribute, a call or an operation;
this side answers with a value, or with an exception. So the program meets neither the tests nor what they expect, and
whatever it does to its own process, all it can send is a wrong answer.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import time
import types

from cgrpo_jax.rewards.sandbox import environment
from cgrpo_jax.rewards.sandbox.operations import BY_NAME
from cgrpo_jax.rewards.sandbox.values import MAX_SAID, Writer, cut, decode

MAX_MESSAGE = 2 << 20  # bytes of one answer
_CHANNEL = 3
_PROGRAM = "<program>"


class OutOfTimeError(BaseException):
    """The program has used its time; none of its `except Exception` catches this."""


def main(job):
    """Runs the job's program: as a module that answers calls, or as a script."""
    environment.prepare(job)
    (_script if job["script"] else _serve)(job)


def _load(job, name):
    """Runs the program as a module of this name and returns it; what came before it in the job is run first."""
    module = types.ModuleType(name)
    module.__file__ = "program.py"
    sys.modules[name] = module
    for source, file in ((job["before"], "<before>"), (job["program"], _PROGRAM)):
        exec(compile(source, file, "exec"), module.__dict__)
    return module


def _found(error, job):
    """An exception of the program as JSON: type, message, and the last of the program's own lines that it passed."""
    number = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _PROGRAM:
            number = trace.tb_lineno
        trace = trace.tb_next
    if number is None and isinstance(error, SyntaxError) and error.filename == _PROGRAM:
        number = error.lineno
    lines = job["program"].split("\n")
    # Lines that were put in front of the program are not the model's.
    text = lines[number - 1].strip() if number and number <= len(lines) else ""
    number = number - job["offset"] if number and number > job["offset"] else None
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # noqa: BLE001 - an exception of the program's own making
        message = ""
    return error_of(type(error).__name__, cut(" ".join(message.split()), MAX_SAID), number, cut(text))


def error_of(kind: str, message: str, line: int | None = None, text: str = "") -> dict:
    """An exception as JSON: its type, its message, and the number and text of the line it arose in."""
    return {"type": cut(kind), "message": message, "line": line, "text": text}


def _timed(deadline, function, *args):
    """Calls the function; at the deadline it is interrupted by an `OutOfTimeError`, where it then is."""

    def interrupt(*_):
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.01))
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# --- a module that answers ------------------------------------------------------------------------------------------


class _Kept:
    """What can't be copied to the tests, each under a number of its own."""

    def __init__(self):
        self._values, self._numbers = [], {}

    def __call__(self, value):
        number = self._numbers.setdefault(id(value), len(self._values))  # it is kept: no other gets its address
        if number == len(self._values):
            self._values.append(value)
        return number

    def find(self, kind, content):
        """The value that the tests mean."""
        if kind == "object":
            return self._values[content[0]]
        if kind == "iterator":
            return iter(decode(content[0], self.find))
        if kind == "exception class":
            module, _, name = content.rpartition(".")
            return getattr(sys.modules[module], name)
        _, made_of, _, args = content  # an exception
        return self.find("exception class", made_of)(*decode(args, self.find))


class _Answers:
    """Answers what the tests ask for.

    Args:
      job: with the program.
    """

    def __init__(self, job):
        self._job, self._names, self._kept = job, {}, _Kept()
        self.write = Writer(self._kept)

    def load(self):
        """Runs the program."""
        self._names.update(vars(_load(self._job, "program")))

    def answer(self, request):
        """Returns the answer to a request as JSON."""
        kind, content = request
        if kind == "name":
            return self.write(self._names[content])
        target, *content = decode(content, self._kept.find)
        if kind == "attribute":
            return self.write(getattr(target, *content))
        if kind == "set":
            return setattr(target, *content)
        if kind == "delete":
            return delattr(target, *content)
        if kind == "copy":
            return self.write.copied(target)
        if kind == "items":
            return self.write.items(target, *content)
        args, kwargs = content
        function = target if kind == "call" else BY_NAME[target]
        return self.write(function(*args, **kwargs))


def _serve(job):
    """Runs the program, then answers the tests until they end."""
    deadline = time.monotonic() + job["seconds"]
    channel = os.fdopen(_CHANNEL, "wb")
    lines = os.fdopen(os.dup(_CHANNEL), "rb")
    answers = _Answers(job)

    def raised(error):
        try:
            return {"error": _found(error, job), "raised": answers.write(error)}
        except Exception:  # noqa: BLE001 - an exception of the program's own making
            return {"error": _found(error, job)}

    def attempt(function, *args):
        try:
            reply = {"value": _timed(deadline, function, *args)}
        except BaseException as error:  # noqa: BLE001 - a program may raise anything, SystemExit included
            reply = raised(error)
        line = json.dumps(reply).encode()
        if len(line) >= MAX_MESSAGE:
            line = json.dumps({"error": error_of("ValueError", "the result is too long")}).encode()
        channel.write(line + b"\n")
        channel.flush()

    attempt(answers.load)
    for line in lines:
        attempt(answers.answer, json.loads(line))


# --- a script -------------------------------------------------------------------------------------------------------


def _script(job):
    """Runs the program as a script; where it fails, reports the exception over the channel."""
    deadline = time.monotonic() + job["seconds"]
    try:
        _timed(deadline, _run_to_its_end, job)
        if time.monotonic() >= deadline:  # the program may have caught what interrupted it
            raise OutOfTimeError
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        os.write(_CHANNEL, json.dumps(_found(error, job)).encode())
        os._exit(1)


def _run_to_its_end(job):
    """Runs the program as Python does: it ends when its threads have, and what it has registered for its exit."""
    try:
        _load(job, "__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # joins threads, closes executors
    atexit._run_exitfuncs()
    _flush()
    sys.modules.pop("__main__", None)
    gc.collect()  # files that it has left open are written, `__del__` is called
    _flush()


def _flush():
    if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
        sys.stdout.flush()
    with contextlib.suppress(AttributeError, ValueError):  # it may have been replaced, and closed or taken apart
        sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]
