"""Ctrl-C and SIGTERM: a program ends with one line, wherever they come; importing this takes no time."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from cgrpo_jax.errors import UserError

STATUS = 128 + signal.SIGINT  # as a shell has it


def end_while_importing() -> None:
    """Lets Ctrl-C end the program at once, while it does nothing yet but import, which takes seconds.

    Nothing is raised: an extension module that an exception reaches at its import makes an `ImportError` of it.
    """
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background job
        signal.signal(signal.SIGINT, _end)


def _open_streams() -> None:
    """Gives the program the standard streams that it was started without, as `>&-` does: they lead nowhere.

    Otherwise the next file that is opened takes their number, and libraries write their messages into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _end(number, frame) -> None:
    os.write(2, b"interrupted; nothing was begun\n")
    os._exit(STATUS)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raises `KeyboardInterrupt` where Ctrl-C comes within the block, and instead of whatever libraries make of it."""
    came = False

    def on_signal(number, frame):
        nonlocal came
        came = True
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end)
    if not ours or threading.current_thread() is not threading.main_thread():  # which alone may catch signals
        yield
        return
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def catch_stop() -> Iterator[Callable[..., int]]:
    """Gives a function that says, on all processes alike, which of SIGTERM and SIGINT (Ctrl-C) has reached one of them.

    It returns the signal's number, 0 for none; all processes must call it. Several that call it with `late=True` hear
    of what had come when they last did, and none waits for the devices: for a tick, of which many follow. A second
    signal ends a process at once, as usual. SIGINT stays ignored where it is, as in a shell's background job.
    """
    asked, before, late_largest = 0, {}, None

    def on_signal(number, frame):
        nonlocal asked
        asked = number
        restore()

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def any_asked(*, late: bool = False) -> int:
        nonlocal late_largest
        from cgrpo_jax.runtime import processes  # and with it JAX

        if not late:
            return processes.largest(asked)
        late_largest = late_largest or processes.LateLargest()
        return late_largest(asked)

    if threading.current_thread() is not threading.main_thread():  # which alone may catch signals
        yield any_asked
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, on_signal)
    try:
        yield any_asked
    finally:
        restore()


def stopped_status() -> int:
    """Returns the exit status of a run that SIGTERM stopped: `CGRPO_STOPPED_STATUS`, by default 0. Ctrl-C's is 130.

    A scheduler that takes 0 for the end of the run, and repeats what fails, needs another.

    Raises:
      UserError: it is no exit status.
    """
    value = os.environ.get("CGRPO_STOPPED_STATUS", "") or "0"
    if not re.fullmatch("[0-9]{1,3}", value) or int(value) > 255:
        raise UserError(f"CGRPO_STOPPED_STATUS is {value!r}; it must be an exit status, from 0 to 255.")
    return int(value)
