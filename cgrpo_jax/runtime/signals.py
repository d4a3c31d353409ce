"""Ctrl-C ends a program with one line and status 130, wherever it comes; importing this takes no time."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

STATUS = 128 + signal.SIGINT  # as a shell has it


def end_while_importing() -> None:
    """Lets Ctrl-C end the program at once, while it does nothing yet but import, which takes seconds.

    Nothing is raised: an extension module that an exception reaches at its import makes an `ImportError` of it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background job
        signal.signal(signal.SIGINT, _end)


def _end(number, frame) -> None:
    os.write(2, b"interrupted; nothing was begun\n")
    os._exit(STATUS)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raises `KeyboardInterrupt` where Ctrl-C comes within the block, and instead of whatever libraries make of it."""
    came = False

    def note(number, frame):
        nonlocal came
        came = True
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end)
    if not ours or threading.current_thread() is not threading.main_thread():  # which alone may catch signals
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
