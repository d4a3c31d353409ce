"""Where files and folders lie: on a disk, or on Google Cloud Storage. Texts become paths here, and nowhere else.

    place("~/runs/a")           # PosixPath("/home/me/runs/a")
    place("gs://mine/runs/a")   # a BucketPath, which has pathlib's methods; with the extra [gcs]
    place("s3://mine/runs/a")   # UserError

What a bucket does not have, such as appending to a file or replacing one, is in `files`.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from cgrpo_jax.errors import UserError

if TYPE_CHECKING:
    from cgrpo_jax.runtime.bucket import BucketPath

_BUCKET = "gs://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)")  # one slash is a slip, and no folder of that name
_here = True  # whether paths are for this machine
_EXTRA = "pip install 'cgrpo_jax[gcs]'"


def place(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path, with `~` expanded, that may lie in a bucket; what is one already stays as it is.

    Raises:
      UserError: it is of a kind of storage that is not supported, or names no bucket.
    """
    text = os.fspath(path)
    if not _SCHEME.match(text):
        return path if isinstance(path, pathlib.Path) else pathlib.Path(expanded(text))
    if why := fault(text):
        raise UserError(why)
    from cgrpo_jax.runtime import bucket  # here: it needs the extra, and takes a second to import

    return cast(pathlib.Path, path if isinstance(path, bucket.BucketPath) else bucket.BucketPath(text))


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(_BUCKET)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Paths that are looked at within the block are for a program on other machines, which have their own packages."""
    global _here
    _here = False
    try:
        yield
    finally:
        _here = True


def is_elsewhere(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket and looked at for a program on other machines, within the block of `elsewhere`."""
    return is_bucket(path) and not _here


def in_bucket(path: pathlib.Path) -> "BucketPath | None":
    """Returns the path as one in a bucket, which can do more; None for one on a disk."""
    return cast("BucketPath", path) if is_bucket(path) else None


def expanded(text: str) -> str:
    """Returns a path as text with its `~` or `~user` expanded."""
    return os.path.expanduser(text) if text.startswith("~") else text


def fault(text: str) -> str | None:
    """Returns what is wrong with a path as text, without looking there, or None; a name without a scheme passes.

    Example:
      >>> fault("s3://mine/runs/a")
      's3://mine/runs/a is on s3://, which is not supported; give a path on a disk, or gs://BUCKET/NAME.'
    """
    match = _SCHEME.match(text)
    if not match:
        return None
    if match[1] == "gs" and not match[2]:
        return f"{text} has one slash where two must be; write {_BUCKET}{text[match.end() :]}."
    if not text.startswith(_BUCKET):
        return f"{text} is on {match[1]}://, which is not supported; give a path on a disk, or gs://BUCKET/NAME."
    bucket = text.removeprefix(_BUCKET).partition("/")[0]
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", bucket):
        return f"{text} names no bucket; write gs://BUCKET/NAME."
    if _here and importlib.util.find_spec("gcsfs") is None:
        return f"{text} is on Google Cloud Storage, which needs more packages: {_EXTRA}."
    return None


def in_the_way(path: str) -> str | None:
    """Returns what is no folder where a folder on this machine's disk, or one that it lies in, is due; None if nothing.

    Example: "train.jsonl" of "train.jsonl/run", where that is a file.
    """
    if is_bucket(path) or not _here:
        return None
    tried = pathlib.Path(path)
    nearest = next((one for one in (tried, *tried.parents) if os.path.lexists(one)), None)
    return None if nearest is None or os.path.isdir(nearest) else str(nearest)


def faults(value: Any) -> str | None:
    """Returns what `fault` says of the first path of which something is wrong; several are a tuple, or have commas."""
    several = value if isinstance(value, tuple) else str(value).split(",")
    return next((why for one in several if (why := fault(str(one).strip()))), None)
