"""Files of others: they are read whole, but only regular ones of a size that such files have."""

import errno
import os
import pathlib
import stat

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import places


def check_size(path: str | pathlib.Path, *, most: int) -> int:
    """Returns the bytes of a file.

    Args:
      path: of the file.
      most: that it may have.

    Raises:
      UserError: it is larger, or a device or a pipe, which has no end.
      OSError: it is not there, or a folder.
    """
    if places.is_bucket(path):
        return _checked_object(places.place(path), most)
    return _checked(os.stat(path), path, most)


def read_bytes(path: str | pathlib.Path, *, most: int) -> bytes:
    """Returns what a file holds; arguments and errors of `check_size`."""
    if places.is_bucket(path):
        _checked_object(there := places.place(path), most)
        return there.read_bytes()
    # Without blocking: a pipe would wait for whoever writes into it.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        _checked(os.fstat(file.fileno()), path, most)
        content = file.read(most + 1)
    if len(content) > most:  # it has grown meanwhile, or lies on a file system that says 0 of all
        raise _too_large(path, len(content), most)
    return content


def _checked_object(path: pathlib.Path, most: int) -> int:
    size = path.stat().st_size
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if size > most:
        raise _too_large(path, size, most)
    return size


def _checked(status: os.stat_result, path: str | pathlib.Path, most: int) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a device or a pipe; give a file.")
    if status.st_size > most:
        raise _too_large(path, status.st_size, most)
    return status.st_size


def _too_large(path: str | pathlib.Path, size: int, most: int) -> UserError:
    return UserError(
        f"{path} has {size:,} bytes, and no such file has more than {most:,}; it is damaged or another file, so "
        "fetch it again."
    )
