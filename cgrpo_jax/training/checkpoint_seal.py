"""What makes the parts of a checkpoint one: digests of its arrays' files; in its JSON the step, and which save it is.

    STEP/digests.json    {"version": 1, "step": 4, "save": "5f0c...", "files": {"params/d/a1b2": {...}, ...}}
    STEP/extra/metadata  {"iteration": 4, ..., "_seal": {"step": 4, "save": "5f0c...", "sha256": "e3b0..."}}

A part of another save, also of one with the same number, and a folder that was given another number are damaged. The
JSON has its own digest, within it, since it is replaced by itself (`Checkpoints.amend`). What an earlier version wrote
has neither, and is read unchecked.
"""

import functools
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from cgrpo_jax.runtime import console, digests
from cgrpo_jax.runtime.digests import Damaged

EXTRA = "metadata"  # the file of the JSON values
_SEAL = "_seal"
_MAX_BYTES = 256 * 2**20  # of the JSON values


def sealed(extra: Mapping[str, Any], *, step: int, save: str) -> dict[str, Any]:
    """Returns the JSON values of a checkpoint as they are written."""
    values = {name: value for name, value in extra.items() if name != _SEAL}
    return values | {_SEAL: {"step": step, "save": save, "sha256": digests.of_json(values)}}


def amended(checkpoint: pathlib.Path, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON values that replace those of a checkpoint; without a seal where its version knew none."""
    manifest = digests.read(checkpoint)
    return dict(extra) if manifest is None else sealed(extra, step=manifest["step"], save=manifest["save"])


def write(checkpoint: pathlib.Path, items: Collection[str], *, step: int, save: str) -> None:
    """Writes the digests of a checkpoint's arrays, once they are all on disk."""
    digests.write(checkpoint, items, step=step, save=save)


def check(checkpoint: pathlib.Path, items: Collection[str], *, divided: bool = False, heads: bool = False) -> None:
    """Checks arrays of a checkpoint.

    Args:
      checkpoint: its folder, whose name is the step.
      items: which of its items.
      divided: as for `digests.check`.
      heads: only what says which arrays there are: their names, shapes and dtypes.

    Raises:
      Damaged: a file is missing or another one, or the folder is of another step.
    """
    manifest = _manifest(checkpoint)
    if manifest is None:
        if _SEAL in _read(checkpoint, damaged={}):
            raise Damaged(f"{digests.FILE} is missing")
        _say_unchecked(checkpoint.parent)
        return
    extra(checkpoint)  # which is of the same save
    for item in items:
        if not any(name.startswith(f"{item}/") for name in manifest["files"]):
            raise Damaged(f"{digests.FILE} names no file of {item}")

    def asked(name: str) -> bool:
        item, _, rest = name.partition("/")
        return item in items and (not heads or rest.startswith("_"))

    digests.check(checkpoint, manifest, where=asked, divided=divided)


def extra(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON values of a checkpoint.

    Raises:
      Damaged: they are not what was written with its arrays.
    """
    manifest = _manifest(checkpoint)
    values = _read(checkpoint)
    seal = values.pop(_SEAL, None)
    if manifest is None and seal is None:
        _say_unchecked(checkpoint.parent)
        return values
    if manifest is None:
        raise Damaged(f"{digests.FILE} is missing")
    written = {"step": manifest["step"], "save": manifest["save"], "sha256": digests.of_json(values)}
    if seal != written:
        raise Damaged(f"extra/{EXTRA} is not what was written with the arrays")
    return values


def _manifest(checkpoint: pathlib.Path) -> dict[str, Any] | None:
    manifest = digests.read(checkpoint)
    if manifest is None:
        return None
    if not isinstance(manifest.get("save"), str) or type(manifest.get("step")) is not int:
        raise Damaged(f"{digests.FILE} is damaged")
    if str(manifest["step"]) != checkpoint.name:
        raise Damaged(f"it is the checkpoint of step {manifest['step']}")
    return manifest


def _read(checkpoint: pathlib.Path, damaged: dict[str, Any] | None = None) -> dict[str, Any]:
    path = checkpoint / "extra" / EXTRA
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        if damaged is not None:
            return damaged
        why = error.strerror if isinstance(error, OSError) else error
        raise Damaged(f"extra/{EXTRA} can't be read: {why}") from error
    return values


@functools.cache  # a line a folder
def _say_unchecked(folder: pathlib.Path) -> None:
    console.say(f"{folder} was written by an earlier version, without digests: damage in it may pass unseen")
