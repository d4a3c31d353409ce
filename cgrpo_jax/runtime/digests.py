"""Digests of a folder's files, kept beside them in `digests.json`: what is read is what was written, or is damaged.

SHA-256 of each file: 1.4 GB/s a thread where the processor computes it, 0.4 elsewhere; several threads read. They find
what a disk, a copy or a program has changed, not what somebody has who writes new ones too.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from cgrpo_jax.runtime import files as files_lib
from cgrpo_jax.runtime import watchdog

FILE = "digests.json"
_VERSION = 1
_MAX_BYTES = 64 * 2**20  # of the file itself: hundreds of thousands of files
_THREADS = 8


class Damaged(Exception):
    """Files are not those that were written; says which, and what is wrong with them."""


def write(folder: pathlib.Path, names: Iterable[str], **about: Any) -> None:
    """Writes the digests of files into `digests.json`, whole or not at all.

    Args:
      folder: that holds them.
      names: of files, or of folders with all that is in them; what `digests.json` does not name is not checked.
      **about: JSON values to keep beside the digests; `read` returns them.

    Example:
      >>> write(folder, ["weights"], step=4)
      {"version": 1, "step": 4, "files": {"weights/a": {"bytes": 7, "sha256": "e3b0..."}}}
    """
    found = sorted(path for name in names for path in _files(folder / name))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    made = _of_all(folder, sizes)
    listed = {name: {"bytes": sizes[name], "sha256": made[name]} for name in sizes}
    content = {"version": _VERSION, **about, "files": listed}
    files_lib.write_atomically(folder / FILE, json.dumps(content, indent=1) + "\n")


def read(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns what `digests.json` holds; None where a folder has none.

    Raises:
      Damaged: it is not what `write` writes.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = content["version"] == _VERSION and all(_is_entry(*item) for item in content["files"].items())
    except OSError as error:
        raise Damaged(f"{FILE} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{FILE} is damaged") from error
    if not whole:
        raise Damaged(f"{FILE} is damaged, or of a later version")
    return content


def check(
    folder: pathlib.Path,
    content: Mapping[str, Any],
    *,
    where: Callable[[str], bool] = lambda name: True,
    divided: bool = False,
) -> None:
    """Checks that files are those of which `content`, as `read` returns it, has the digests.

    Args:
      folder: that holds them.
      content: what its `digests.json` says.
      where: which of the files, by their names.
      divided: each process reads its part of them, so that all together read each once. It then raises for its own
        part alone: the caller lets the processes agree.

    Raises:
      Damaged: one is missing, or is another; its name stands in the message.
    """
    listed = {name: content["files"][name] for name in content["files"] if where(name)}
    for name, entry in listed.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read: {error.strerror}"
            raise Damaged(f"{name} {why}") from error
        if size != entry["bytes"]:
            raise Damaged(f"{name} has {size} bytes, {entry['bytes']} were written")
    if divided:
        by_size = sorted(listed, key=lambda name: (-listed[name]["bytes"], name))
        listed = {name: listed[name] for name in by_size[jax.process_index() :: jax.process_count()]}
    try:
        found = _of_all(folder, {name: entry["bytes"] for name, entry in listed.items()})
    except OSError as error:
        raise Damaged(f"{error.filename} can't be read: {error.strerror}") from error
    for name, entry in listed.items():
        if found[name] != entry["sha256"]:
            raise Damaged(f"{name} is not what was written")


def of_file(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, however it is written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _of_all(folder: pathlib.Path, sizes: Mapping[str, int]) -> dict[str, str]:
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    found = {}
    with concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for name, digest in zip(
            largest_first, pool.map(lambda name: of_file(folder / name), largest_first), strict=True
        ):
            found[name] = digest
            watchdog.alive()  # all of a large checkpoint take minutes, in which other processes wait
    return found


def _files(path: pathlib.Path) -> Iterable[pathlib.Path]:
    return [path] if path.is_file() else (one for one in path.rglob("*") if one.is_file())


def _is_entry(name: str, entry: Mapping[str, Any]) -> bool:
    inside = not os.path.isabs(name) and ".." not in name.split("/")
    return inside and type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
