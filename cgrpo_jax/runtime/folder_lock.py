"""One program at a time writes a folder.

On a disk the second is refused: a lock of the system's, which ends with the process that holds it, however it ends.

A bucket has no locks, and what a killed program would leave in the place of one would keep its own resumption out. So
the one that comes last owns the folder: it writes who it is into `.writer`, and the one before finds that out at its
next line, and ends without writing it. Of what that one is writing at that moment, a checkpoint may still be finished.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import uuid
from collections.abc import Callable, Iterator

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import places

_WRITER = ".writer"


@contextlib.contextmanager
def owned(folder: pathlib.Path, *, busy: str) -> Iterator[Callable[[], None]]:
    """Keeps other programs out of a folder, which is there, within the block, or until the process dies.

    Args:
      folder: the folder.
      busy: what to say where another program has it.

    Yields:
      A check that it is still this program's, which raises a `UserError` where another has taken it.

    Raises:
      UserError: another program has it.
      OSError: it can't be opened, or written in a bucket.
    """
    if places.is_bucket(folder):
        writer, mine = folder / _WRITER, uuid.uuid4().hex
        try:
            writer.write_text(json.dumps({"host": platform.node(), "process": os.getpid(), "token": mine}) + "\n")
        except FileNotFoundError as error:
            raise OSError(error.errno, "there is no such bucket", str(folder)) from error
        for left in folder.glob(".*.part"):  # of lines that a killed program was appending
            left.unlink(missing_ok=True)
        yield lambda: _check(writer, mine)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(busy) from None
    except OSError:  # some file systems know no locks
        pass
    try:
        yield lambda: None
    finally:
        os.close(descriptor)


def _check(writer: pathlib.Path, mine: str) -> None:
    try:
        found = json.loads(writer.read_text(encoding="utf-8"))
        other = f"process {found['process']} on {found['host']}"
        taken = found["token"] != mine
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        other, taken = "another program", True
    if taken:
        raise UserError(f"{writer.parent} is written by {other} now, which began after this one; this one ends.")
