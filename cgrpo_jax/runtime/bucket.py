"""Paths in a bucket of Google Cloud Storage, with the methods of pathlib's that this package and Orbax call.

A bucket holds objects, no folders: a folder is there while an object lies in it, and making one does nothing. An object
is written whole, so nobody sees half of one. What goes wrong is an `OSError`, as on a disk: "it is not there" is never
said because the network is gone. Nothing is cached: another host may have written since.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import functools
import io
import os
import uuid
from collections.abc import Iterator
from typing import IO, Any

import fsspec
import fsspec.config
from etils.epath import gpath, stat_utils

fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # also for the paths that Orbax makes itself
_COMPOSE = "b/{}/o/{}/compose"  # of the service: joins objects to one
_BLOCK = 16 * 2**20  # bytes that a file asks for, or sends, at a time
_BUSY = "another program has written it meanwhile"
_DENIED = ("forbidden", "invalid credentials", "unauthorized", "permission")


@dataclasses.dataclass
class Stat(stat_utils.StatResult):
    """What is known of an object; `st_size` as `os.stat` calls it."""

    generation: str = ""
    md5: str = ""  # in base64; empty where the service knows none

    @property
    def st_size(self) -> int:
        return self.length


@functools.cache
def _of_process(process: int) -> Any:
    # `finalize_on_close`: objects of zonal buckets are whole once they are closed, as those of others.
    return fsspec.filesystem("gcs", use_listings_cache=False, finalize_on_close=True)


def _fs() -> Any:
    return _of_process(os.getpid())  # threads that a fork left behind answer nobody


@contextlib.contextmanager
def _errors(path: os.PathLike | str) -> Iterator[None]:
    """Makes an `OSError` with a number of whatever gcsfs raises for a path."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except (IsADirectoryError, FileExistsError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        number = errno.EACCES if any(word in text.lower() for word in _DENIED) else errno.EIO
        raise OSError(number, f"{type(error).__name__}: {text}", str(path)) from error


def _stat(found: dict[str, Any]) -> Stat:
    length, is_folder = int(found.get("size") or 0), found["type"] == "directory"
    generation, md5 = str(found.get("generation", "")), found.get("md5Hash") or ""
    return Stat(is_folder, length, 0, None, None, None, generation, md5)


class BucketPath(gpath.PosixGPath):
    """gs://BUCKET/NAME.

    Example:
      >>> BucketPath("gs://mine/runs") / "a" / "summary.json"
      BucketPath('gs://mine/runs/a/summary.json')
    """

    # --- what is there ----------------------------------------------------------------------------------------------

    def stat(self, **_: Any) -> Stat:  # pyright: ignore[reportIncompatibleMethodOverride]
        with _errors(self):
            found = _fs().info(str(self))
        return _stat(found)

    def _found(self) -> Stat | None:
        try:
            return self.stat()
        except FileNotFoundError:
            return None

    def exists(self, **_: Any) -> bool:
        return self._found() is not None

    def is_dir(self, **_: Any) -> bool:
        return (found := self._found()) is not None and found.is_directory

    def is_file(self) -> bool:
        return (found := self._found()) is not None and not found.is_directory

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["BucketPath"]:
        with _errors(self):
            found = _fs().ls(str(self), detail=False)
        names = sorted({one.rstrip("/").rpartition("/")[2] for one in found if one.rstrip("/") != self._name()})
        return (self / name for name in names)

    def glob(self, pattern: str, **more: Any) -> Iterator["BucketPath"]:
        head, _, rest = pattern.partition("/")
        if head == "**":
            raise NotImplementedError("** is asked of a bucket by `rglob`")
        try:
            here = [one for one in self.iterdir() if fnmatch.fnmatchcase(one.name, head)]
        except FileNotFoundError:
            return iter(())
        return iter(here) if not rest else (two for one in here for two in one.glob(rest))

    def rglob(self, pattern: str, **_: Any) -> Iterator["BucketPath"]:
        """Yields the objects, not the folders, of any depth."""
        return (one for one in self.objects() if fnmatch.fnmatchcase(one.name, pattern))

    def objects(self) -> list["BucketPath"]:
        """Returns all that lies in this folder, at any depth."""
        with _errors(self):
            found = _fs().find(str(self), update_cache=False)
        return [type(self)(f"gs://{one}") for one in sorted(found) if not one.endswith("/")]

    def listing(self) -> dict[str, Stat]:
        """Returns what is known of all in this folder, at any depth, by its name within; of an object by an empty one.

        Empty where nothing is there.
        """
        with _errors(self):
            found: Any = _fs().find(str(self), detail=True, update_cache=False)
        return {
            name.removeprefix(self._name()).lstrip("/"): _stat(one)
            for name, one in found.items()
            if not name.endswith("/")
        }

    def samefile(self, other: Any) -> bool:
        return str(self) == str(other)

    # --- reading and writing ----------------------------------------------------------------------------------------

    def open(self, mode: str = "r", *, encoding: str | None = None, **_: Any) -> IO[Any]:  # pyright: ignore
        if "r" in mode:
            raw: IO[Any] = io.BufferedReader(_Reader(self), _BLOCK)
        else:
            with _errors(self):
                raw = _fs().open(str(self), mode.replace("t", "").replace("b", "") + "b", block_size=_BLOCK)
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding=encoding or "utf-8")

    def read_bytes(self) -> bytes:
        with _errors(self):
            return _fs().cat_file(str(self))

    def read_range(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to before `end`."""
        with _errors(self):
            return _fs().cat_file(str(self), start=start, end=end)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        with _errors(self):
            _fs().pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, **_: Any) -> int:
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def upload(self, source: os.PathLike) -> None:
        """Writes a file of the disk as this object."""
        with _errors(self):
            _fs().put_file(os.fspath(source), str(self))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        if not self.exists():
            self.write_bytes(b"")

    def append(self, data: bytes) -> None:
        """Appends to an object, which is made if need be, without reading it: the service joins it and the new part.

        Nobody sees part of what is appended, and what another writer has appended meanwhile is not lost.

        Raises:
          OSError: it can't be written, or another writer has just changed it.
        """
        before = self._found()
        if before is None:
            self._create(data)
            return
        part = self.with_name(f".{self.name}.{uuid.uuid4().hex[:8]}.part")
        part.write_bytes(data)
        try:
            self._join(part, before, len(data))
        finally:
            part.unlink(missing_ok=True)

    def _create(self, data: bytes) -> None:
        try:
            with _errors(self):
                _fs().pipe_file(str(self), data, mode="create")
        except FileExistsError as error:
            if self.read_bytes() != data:  # else the answer to the first of two tries was lost
                raise OSError(errno.EBUSY, _BUSY, str(self)) from error

    def _join(self, part: "BucketPath", before: Stat, size: int) -> None:
        bucket, name, _ = _fs().split_path(str(self))
        sources = [{"name": name}, {"name": _fs().split_path(str(part))[1]}]
        body = {"sourceObjects": sources, "destination": {"contentType": "application/octet-stream"}}
        try:
            with _errors(self):
                _fs().call("POST", _COMPOSE, bucket, name, json=body, ifGenerationMatch=before.generation)
        except FileExistsError as error:  # the condition does not hold
            if self.stat().st_size != before.st_size + size:  # else the answer to the first of two tries was lost
                raise OSError(errno.EBUSY, _BUSY, str(self)) from error

    # --- folders, copies, names -------------------------------------------------------------------------------------

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        if (found := self._found()) and not (exist_ok and found.is_directory):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _errors(self):
                _fs().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        try:
            with _errors(self):
                _fs().rm(str(self), recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def copy(self, dst: Any, overwrite: bool = False, **_: Any) -> "BucketPath":  # pyright: ignore
        with _errors(self):
            _fs().cp_file(str(self), str(dst))
        return type(self)(dst)

    def rename(self, target: Any) -> "BucketPath":
        """Copies an object, or all of a folder, and removes the old: a reader may see both, and part of the new one."""
        found = [self] if self.is_file() else self.objects()
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        target = type(self)(target)
        names = [str(one).removeprefix(str(self)) for one in found]
        with _errors(self):
            _fs().copy([str(one) for one in found], [f"{target}{name}" for name in names])
        for one in found:
            one.unlink(missing_ok=True)
        return target

    def replace(self, target: Any) -> "BucketPath":
        return self.rename(target)

    def absolute(self) -> "BucketPath":
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    def is_absolute(self) -> bool:
        return True

    def _name(self) -> str:
        return str(self).removeprefix("gs://")


class _Reader(io.RawIOBase):
    """Reads an object by its ranges: what fails in the middle is an `OSError`, too."""

    def __init__(self, path: BucketPath):
        found = path.stat()
        if found.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._path, self._size, self._at = path, found.st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._path.read_range(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
