"""What Orbax and TensorStore raise, and print, where they can't write: one line, on every process."""

import contextlib
import functools
import logging
import pathlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files, processes

# Of lines, with stack traces, that Orbax logs of what it raises when it is waited for.
_RAISED_TOO = (
    "in background save thread",
    "Save Finalize thread",
    "_SignalingThread.run() raised",
    "write metadata=",
    "update metadata=",
)


def _said_otherwise(record: logging.LogRecord) -> bool:
    """Whether a line of a log may be shown: of a save that fails in the background `one_line` says what is wrong."""
    return not any(words in str(record.msg) for words in _RAISED_TOO)


logging.getLogger("absl").addFilter(_said_otherwise)


@functools.cache  # once in a process: hooks are put around one another
def ignore_closed_loops() -> None:
    """Keeps from now on TensorStore's threads from printing that they report to a save that has failed, and so ended.

    They may go on at any time after the error, of which a line has been said, so this stays. What other code does with
    a loop that is closed is printed.
    """
    hook = sys.unraisablehook

    def of_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed" or not _is_of_saves(unraisable):
            hook(unraisable)

    sys.unraisablehook = of_others


def _is_of_saves(unraisable: Any) -> bool:
    """Whether TensorStore or Orbax has raised what can't be raised: the first by no Python code, and of no object.

    Other code's calls begin in a module of its own, or are of its object, such as a `__del__`.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    packages = {name.partition(".")[0] for name in frames}
    return bool(packages & {"tensorstore", "orbax"}) or (unraisable.object is None and packages == {"asyncio"})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax's threads from printing each what `together` says in one line, when they can't write.

    Some of them go on after the error has been raised, so where there is one they stay silent.
    """
    ignore_closed_loops()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [one.disabled for one in loggers]
    for one in loggers:
        one.disabled = True
    yield
    for one, disabled in zip(loggers, before, strict=True):
        one.disabled = disabled


@contextlib.contextmanager
def together(folder: pathlib.Path) -> Iterator[None]:
    """A step of writing: whatever fails on one process, which Orbax may raise as anything, all raise a `UserError`."""
    with processes.agree(f"writing {folder}"):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise files.fault(folder, error) from error


@contextlib.contextmanager
def one_line(folder: pathlib.Path) -> Iterator[None]:
    """Makes a `UserError` of what a save raises, in the background or at once, that can't write into a folder.

    What is no fault of writing, such as a step that is there already, is raised as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not files.is_of_writing(error):
            raise
        raise files.fault(folder, error) from error
