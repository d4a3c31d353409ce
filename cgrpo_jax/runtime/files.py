"""Folders that are whole or not there, written by one of several processes, and why a disk takes no more.

What a bucket has not as a disk has it (`places`): appending, replacing, renaming, is here once for both.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import places, processes

_CAUSES = {
    errno.ENOSPC: "the disk is full; free space there or give a folder on another disk",
    errno.EDQUOT: "the disk quota is used up; free space there or give a folder on another disk",
    errno.EROFS: "the file system is read-only; give a folder on another one",
    errno.EFBIG: "a file would be larger than is allowed; raise the limit (ulimit -f), or lower --max_shard_gb",
}

PARTIAL = ".partial"  # in a bucket's folder that is not whole
_STORAGE = ("gcsfs", "google", "aiohttp", "requests")  # packages whose errors are of writing into a bucket
# So TensorStore says it, as a ValueError: the second where a transaction can't be committed.
_OF_BUCKET = re.compile(r"\b[A-Z_]+: (Error [a-z]+ \"?gs://|.*\[http_response_code=)")

_REMOVE_SECONDS = 10.0  # in which a folder is gone, or stays
_AWAY = 5  # times in a row that it is not there again


def fault(path: str | pathlib.Path, error: BaseException) -> UserError:
    """Returns the error to raise where a path can't be written; libraries often say why in their message alone."""
    # Of a checkpoint's writes JAX abandons those that it had not begun, and Python would warn of that after the error.
    warnings.filterwarnings("ignore", "coroutine .*write_fragment' was never awaited", RuntimeWarning)
    text = " ".join(str(error).split())
    for code, cause in _CAUSES.items():
        if getattr(error, "errno", None) == code or os.strerror(code) in text:
            return UserError(f"{path} can't be written: {cause}.")
    cause = f"{type(error).__name__}: {text[:160]}"
    if isinstance(error, OSError) and error.strerror:
        other = error.filename if str(error.filename) != str(path) else None
        cause = f"{error.strerror} ({other})" if other else error.strerror
    return UserError(f"{path} can't be written: {cause}; give another folder.")


def is_of_writing(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a disk takes no more, or not from this user."""
    codes = (*_CAUSES, errno.EACCES, errno.EPERM, errno.EIO)
    while error is not None:
        if type(error).__module__.partition(".")[0] in _STORAGE:
            return True
        text = str(error)
        if isinstance(error, OSError) or _OF_BUCKET.search(text) or any(os.strerror(code) in text for code in codes):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def checked(path: str | pathlib.Path) -> Iterator[None]:
    """Turns what the system refuses within the block into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        raise fault(path, error) from error


@contextlib.contextmanager
def by_one(path: str | pathlib.Path) -> Iterator[bool]:
    """A step of writing, that all processes take or none: gives whether this one is the one that writes."""
    with processes.agree(f"writing {path}"), checked(path):
        yield processes.is_first()


@contextlib.contextmanager
def new_folder(target: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write into that takes the name `target` when the block ends well, and goes when it does not.

    Every process must take part. One command at a time can write a target: it holds a lock beside it, which the system
    frees when the process dies, however it does. What a dead one has left is removed by the next. In a bucket the
    folder has its name from the start, and holds a file `PARTIAL` until it is whole.

    Raises:
      UserError: `target` exists, another command is writing it, its parent can't be written, or not every process sees
        it.

    Example:
      >>> with new_folder("exports/mine") as folder:
      ...     (folder / "config.json").write_text("{}")
    """
    if places.is_bucket(target):
        with _new_in_bucket(places.place(target)) as folder:
            yield folder
        return
    target = pathlib.Path(os.path.abspath(target))  # also where it ends in `..`
    # Of this command alone: where a file system knows no locks, two still don't write into one folder.
    partial = target.with_name(f".{target.name}.partial-{_token()}") if target.name else target
    with by_one(target):
        if os.path.lexists(target):
            raise _exists(target)
    with contextlib.ExitStack() as undo:  # what process 0 has made, in the reverse order, also where it fails
        made = undo.enter_context(contextlib.ExitStack())  # ... of it, what stays when all has gone well
        try:
            with by_one(target) as writes:
                if writes:
                    _make_parents(target, made)
                    locked = undo.enter_context(_locked(target))
                    if locked:
                        _remove_left(target)
                    partial.mkdir()
                    made.callback(remove, partial)
            with by_one(target):
                if not partial.is_dir():
                    raise UserError(
                        f"process {jax.process_index()} does not see {partial}, which process 0 has made; "
                        "give a folder that all processes share."
                    )
            yield partial
            with by_one(target) as writes:
                if writes:
                    _rename(partial, target)
        except UserError as error:  # it is `target` that the user has named
            raise UserError(str(error).replace(str(partial), str(target))) from error
        made.pop_all()


@contextlib.contextmanager
def _new_in_bucket(target: pathlib.Path) -> Iterator[pathlib.Path]:
    mark = target / PARTIAL
    with by_one(target) as writes:
        if writes:
            if mark.exists():  # of a command that was killed
                remove_folder(target)
            if target.exists():
                raise _exists(target)
            mark.write_text("this folder is not whole\n", encoding="utf-8")
    try:
        yield target
        with by_one(target) as writes:
            if writes:
                mark.unlink()
    except BaseException:
        if processes.is_first():
            remove_folder(target)
        raise


def remove(folder: pathlib.Path) -> None:
    """Removes what a failed save has left, into which threads may write on for a moment.

    TensorStore's end what they have begun after another's error has been raised, and make the folders that they miss:
    the folder is gone when it has stayed away.
    """
    if places.is_bucket(folder):
        remove_folder(folder)
        return
    end = time.monotonic() + _REMOVE_SECONDS
    away = 0
    while away < _AWAY and time.monotonic() < end:
        away += 1
        if os.path.lexists(folder):
            shutil.rmtree(folder, ignore_errors=True)
            away = 0
        time.sleep(0.05)


def _token() -> str:
    """Returns 16 hexadecimal digits that are the same on every process, and no other command's."""
    drawn = np.frombuffer(uuid.uuid4().bytes[:8], np.uint8)
    if jax.process_count() > 1:
        drawn = np.asarray(multihost_utils.broadcast_one_to_all(drawn)).astype(np.uint8)
    return drawn.tobytes().hex()


def _make_parents(target: pathlib.Path, made: contextlib.ExitStack) -> None:
    for folder in reversed([one for one in target.parents if not os.path.lexists(one)]):
        with contextlib.suppress(FileExistsError):  # another command may need it too
            folder.mkdir()
            made.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _locked(target: pathlib.Path) -> Iterator[bool]:
    """Holds the lock of a target; gives whether it does: some file systems have none."""
    path = target.with_name(f".{target.name}.lock")
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise fault(target, OSError(error.errno, error.strerror)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"{target} is being written by another command; wait for it to end, or give another folder."
            ) from None
        except OSError:
            locked = False
        try:  # whether it is still the file of that name: one that ended just now has removed the file
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    try:
        yield locked
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_left(target: pathlib.Path) -> None:
    """Removes what commands that were killed have left of a target, whose lock is held."""
    left = re.compile(rf"\.{re.escape(target.name)}\.partial-[0-9a-f]{{16}}")
    for path in target.parent.iterdir():
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _rename(partial: pathlib.Path, target: pathlib.Path) -> None:
    if os.path.lexists(target):
        raise _exists(target)
    try:
        partial.rename(target)
    except OSError as error:
        if os.path.lexists(target):  # made within this instant; the system replaces empty folders only
            raise _exists(target) from error
        raise


def _exists(target: pathlib.Path) -> UserError:
    return UserError(f"{target} exists already; give a new folder, or remove it.")


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old one or the new one."""
    if there := places.in_bucket(path):
        there.write_text(text)
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write a file to that takes its place when the block ends well, and goes when it does not.

    What a process that was killed within the block has left is named `.NAME.tmp`; the next replaces it.
    """
    if there := places.in_bucket(path):
        with tempfile.TemporaryDirectory(prefix="cgrpo_") as folder:
            yield (local := pathlib.Path(folder) / path.name)
            there.upload(local)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems can't; the name is then on disk when the system writes it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def filled_folder(folder: pathlib.Path, *, last: str) -> Iterator[pathlib.Path]:
    """Gives a folder to write files into that are to lie in another one, beside what is there; it makes that one.

    On a disk it is that folder itself. What is for a bucket goes there when the block ends well, the file `last` after
    all others: where that one is there, the others are.
    """
    there = places.in_bucket(folder)
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cgrpo_") as made:
        yield (local := pathlib.Path(made))
        found = sorted((one for one in local.rglob("*") if one.is_file()), key=lambda one: (one.name == last, one))
        for one in found:
            (there / one.relative_to(local).as_posix()).upload(one)


def append(path: pathlib.Path, data: str | bytes) -> None:
    """Appends to a file; to one in a bucket all of it or nothing."""
    data = data.encode() if isinstance(data, str) else data
    if there := places.in_bucket(path):
        there.append(data)
        return
    with path.open("ab") as file:
        file.write(data)


def truncate(path: pathlib.Path, size: int) -> None:
    """Cuts a file to its first bytes."""
    if there := places.in_bucket(path):
        if there.stat().st_size != size:
            there.write_bytes(there.read_bytes()[:size])
        return
    os.truncate(path, size)


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file beside itself, or elsewhere on the same disk or in the same bucket."""
    if there := places.in_bucket(source):
        there.copy(target)
        return
    shutil.copyfile(source, target)


def remove_folder(folder: pathlib.Path) -> None:
    """Removes a folder with all that is in it, as far as it can."""
    if there := places.in_bucket(folder):
        with contextlib.suppress(OSError):
            there.rmtree(missing_ok=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
