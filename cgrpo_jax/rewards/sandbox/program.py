"""The sandbox's side of `grade` that runs the model's program.

`tests`, in another sandbox, asks over a socket, in lines of JSON, for a name, an attribute or a call; this side
answers with a value, built of literals, or with an exception as text. So the program meets neither the tests nor what
they expect, and whatever it does to its own process, all it can send is a wrong answer.
"""

import builtins
import json
import os
import signal
import sys
import time
import types

from cgrpo_jax.rewards.sandbox.values import cut, decode, encode

MAX_MESSAGE = 2 << 20  # bytes of one answer
_CHANNEL = 3
_PROGRAM = "<program>"


class OutOfTimeError(BaseException):
    """The program has used its time; none of its `except Exception` catches this."""


def main(job):
    """Runs the job's program: as a module that answers calls, or as a script."""
    builtins.exit = builtins.quit = sys.exit  # Python has been started without `site`, which defines them
    (_script if job["script"] else _serve)(job)


def _load(job, name):
    """Runs the program as a module of this name and returns it; what came before it in the job is run first."""
    module = types.ModuleType(name)
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
    lines = job["program"].splitlines()
    # Lines that were put in front of the program are not the model's.
    text = lines[number - 1].strip() if number and number <= len(lines) else ""
    number = number - job["offset"] if number and number > job["offset"] else None
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # noqa: BLE001 - an exception of the program's own making
        message = ""
    return error_of(type(error).__name__, cut(" ".join(message.split())), number, cut(text))


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


def _serve(job):
    """Runs the program, then answers the tests until they end."""
    deadline = time.monotonic() + job["seconds"]
    channel = os.fdopen(_CHANNEL, "wb")
    lines = os.fdopen(os.dup(_CHANNEL), "rb")
    names, kept = {}, []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    def load():
        names.update(vars(_load(job, "program")))

    def answer(request):
        kind, content = request
        if kind == "name":
            return encode(names[content], keep)
        target, *content = decode(content, lambda number, *_: kept[number])
        if kind == "attribute":
            return encode(getattr(target, *content), keep)
        if kind == "set":
            return setattr(target, *content)
        args, kwargs = content
        return encode(target(*args, **kwargs), keep)

    def attempt(function, *args):
        try:
            reply = {"value": _timed(deadline, function, *args)}
        except BaseException as error:  # noqa: BLE001 - a program may raise anything, SystemExit included
            reply = {"error": _found(error, job)}
        line = json.dumps(reply).encode()
        if len(line) >= MAX_MESSAGE:
            line = json.dumps({"error": error_of("ValueError", "the result is too long")}).encode()
        channel.write(line + b"\n")
        channel.flush()

    attempt(load)
    for line in lines:
        attempt(answer, json.loads(line))


def _script(job):
    """Runs the program as a script; where it fails, reports the exception over the channel."""
    sys.argv = ["program.py"]
    try:
        try:
            _timed(time.monotonic() + job["seconds"], _load, job, "__main__")
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        os.write(_CHANNEL, json.dumps(_found(error, job)).encode())
        os._exit(1)
