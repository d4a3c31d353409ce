"""Copies, on this machine's disk, of what is read from a bucket: model folders and data.

    local("gs://mine/models/Qwen3-8B", suffixes=MODEL)   # ~/.cache/cgrpo_jax/copies/3f0c.../Qwen3-8B

A copy is named by a digest of what lies in the bucket, of names, sizes, generations and MD5s. So what changes there is
copied again, what does not is copied once by all programs, and a copy that a killed one has begun goes on. Nothing
removes them: the folder may be emptied when no program runs.
"""

import base64
import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import console, files, places, watchdog

if TYPE_CHECKING:
    from cgrpo_jax.runtime.bucket import BucketPath, Stat

# Of a Hugging Face folder: what says what the model is and how it reads text, and all that is read of it.
DESCRIPTION = (".json", ".txt", ".model", ".jinja")
MODEL = (*DESCRIPTION, ".safetensors")
_THREADS = 8
_PIECE = 32 * 2**20  # bytes that are asked for at a time
_LOOK_SECONDS = 0.2


def folder() -> pathlib.Path:
    """Returns where copies lie: `$XDG_CACHE_HOME/cgrpo_jax/copies`, by default in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "cgrpo_jax" / "copies"


def local(path: str | os.PathLike, *, suffixes: tuple[str, ...] = ()) -> pathlib.Path:
    """Returns where a file or folder lies on this machine: a path on a disk as it is, a copy of one in a bucket.

    Args:
      path: of the file or folder; where a bucket has none, it stays as it is, and who reads it says so.
      suffixes: of the files of a folder that are needed, those in its own folders aside; empty: all, at any depth.

    Raises:
      UserError: it can't be copied.
    """
    there = places.in_bucket(places.place(path))
    return places.place(path) if there is None else _local(there, suffixes)


@functools.cache  # what a run reads stays as it was when it was read first
def _local(there: "BucketPath", suffixes: tuple[str, ...]) -> pathlib.Path:
    with _readable(there):
        listed = _listed(there, suffixes)
    if not listed:
        return places.place(there)
    target = folder() / _digest(there, listed)
    copy = target / there.name
    with files.checked(target):
        folder().mkdir(parents=True, exist_ok=True)
        with _alone(target.with_suffix(".lock")):
            if not target.exists():
                size = sum(one.st_size for one in listed.values())
                console.say(f"copying {there} ({len(listed)} files, {size / 1e9:.3g} GB) to {copy}")
                _copy(there, listed, target)
            else:
                console.say(f"{there} is read from its copy in {copy}")
    return copy


def _listed(there: "BucketPath", suffixes: tuple[str, ...]) -> dict[str, "Stat"]:
    """Returns what is known of each object, by its name within the folder; of a file, by an empty name."""
    found = there.listing()
    if files.PARTIAL in found:
        raise UserError(f"{there} is not whole: a command is writing it, or was killed; write it again.")
    if strange := [name for name in found if not {"", ".", ".."}.isdisjoint(name.split("/")) and name]:
        raise UserError(f"{there} holds {strange[0]!r}, whose name is no path of a disk; remove it, or copy the rest.")
    return {
        name: one
        for name, one in found.items()
        if not (suffixes and name) or ("/" not in name and name.endswith(suffixes))
    }


def _digest(there: "BucketPath", listed: Mapping[str, "Stat"]) -> str:
    whole = hashlib.sha256(f"{there}\n".encode())
    for name in sorted(listed):
        one = listed[name]
        whole.update(f"{name}\0{one.st_size}\0{one.generation}\0{one.md5}\n".encode())
    return whole.hexdigest()[:16]


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Waits for other programs of this machine that copy the same."""
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                watchdog.alive()
                time.sleep(_LOOK_SECONDS)
            except OSError:  # some file systems know no locks: what is copied twice is the same
                break
        yield


def _copy(there: "BucketPath", listed: Mapping[str, "Stat"], target: pathlib.Path) -> None:
    partial = target.with_suffix(".partial")
    largest_first = sorted(listed, key=lambda name: -listed[name].st_size)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        copies = [
            pool.submit(_copy_one, there / name if name else there, listed[name], partial / there.name / name)
            for name in largest_first
        ]
        try:
            for one in copies:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    with _readable(there):
        now = there.listing()
    if any(now.get(name) != one for name, one in listed.items()):
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{there} changed while it was copied; start again when it is whole.")
    partial.rename(target)


def _copy_one(source: "BucketPath", known: "Stat", target: pathlib.Path) -> None:
    if target.is_file():  # whole, of a program that was killed before it had copied all
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    read, half = hashlib.md5(usedforsecurity=False), target.with_name(f"{target.name}.half")
    with half.open("wb") as file:
        for start in range(0, known.st_size, _PIECE):
            with _readable(source):
                piece = source.read_range(start, min(start + _PIECE, known.st_size))
            read.update(piece)
            file.write(piece)
            watchdog.alive()
    if half.stat().st_size != known.st_size or (known.md5 and base64.b64encode(read.digest()).decode() != known.md5):
        raise UserError(f"{source} came otherwise than the bucket says; start again.")
    half.rename(target)


@contextlib.contextmanager
def _readable(path: "BucketPath") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror or error}; check the path and who may read it."
        ) from error
