"""Data sets that `python -m cgrpo_jax.data prepare` writes: TensorFlow Datasets in ArrayRecord, without TensorFlow.

A row has the same columns whatever its format, and the set says of itself what it was made of (`description`), so that
training on it needs no column names. Any other data set of TensorFlow Datasets is opened the same way.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cgrpo_jax.datasets.examples import Example
from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import digests, places

VERSION = "1.0.0"  # of the folder; sets from before there were turns have no column for them
_LISTED = 10  # names that an error lists
_KEY = "cgrpo_jax"  # of our description among a data set's metadata
_SEALED = "cgrpo_jax_digests"  # there: the set has digests
_COLUMNS = [field.name for field in dataclasses.fields(Example)]


def build(
    folder: pathlib.Path,
    name: str,
    *,
    splits: Mapping[str, Callable[[], Iterable[Example]]],
    about: str,
    description: Mapping[str, Any],
) -> None:
    """Writes a data set's files into a folder of its name, as TensorFlow Datasets finds it: `NAME/1.0.0/`.

    Args:
      folder: the new, empty folder; the caller gives it the data set's name when all is well.
      name: of the data set.
      splits: makes the examples of each split, which are kept in their order.
      about: a sentence for people.
      description: what `description` returns of it, of what JSON knows.
    """
    import tensorflow_datasets as tfds  # heavy: only who prepares or reads such data pays for it

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Writes examples that are there already."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder  # pyright: ignore[reportAssignmentType]  (any path will do)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=about,
                features=tfds.features.FeaturesDict({column: tfds.features.Text() for column in _COLUMNS}),
                metadata=tfds.core.MetadataDict({_KEY: dict(description), _SEALED: True}),
                disable_shuffling=True,  # rows keep the order of their file
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(map(_encode, make())) for split, make in splits.items()}

        def _generate_examples(self):
            raise AssertionError("every split has its generator")

    Builder.name = name
    work = folder / "work"
    tfds.disable_progress_bar()  # the caller shows how far the examples are
    with contextlib.redirect_stdout(None):  # where it speaks of a download
        Builder(data_dir=work).download_and_prepare(file_format="array_record")
    (work / name / VERSION).rename(folder / VERSION)
    digests.write(folder / VERSION, sorted(path.name for path in (folder / VERSION).iterdir()))
    shutil.rmtree(work)


def open_source(name: str, *, split: str, data_dir: str | pathlib.Path | None = None):
    """Returns the rows of a prepared data set, a sequence of dicts.

    Args:
      name: data set, with config and version if needed, "gsm8k" or "my_set/small:1.0.0".
      split: "train", "test[:100]".
      data_dir: where it was prepared; None is TensorFlow Datasets' own default.

    Raises:
      UserError: the data set or split is not there (with those that are), or not in ArrayRecord format; it is one of
        ours, and its files are not those that were written.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    folder = tfds.core.as_path(data_dir or default_folder())
    try:
        # From its files, whether or not TensorFlow Datasets has code for a data set of this name: nothing is fetched.
        builder = read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"data set '{name}' is not in '{folder}' (there are: {_sets(folder, name)}); name one of these, or prepare "
            "it there."
        ) from error
    except Exception as error:  # its files may be damaged, and readers of JSON, protobufs and features raise anything
        raise UserError(f"data set '{name}' can't be opened in '{folder}' ({_line(error)}).") from error
    _check_unchanged(builder)
    try:
        return builder.as_data_source(split)  # pyright: ignore[reportCallIssue]  (it is wrapped)
    except NotImplementedError as error:
        raise UserError(
            f"data set '{name}' can't be read ({_line(error)}); prepare it in the array_record file format."
        ) from error
    except (AssertionError, FileNotFoundError, ValueError) as error:
        raise UserError(
            f"split '{split}' of data set '{name}' can't be opened ({_line(error)}); there are: "
            f"{_few(builder.info.splits)}."
        ) from error


def _check_unchanged(builder) -> None:
    """Checks the files of a set that we have prepared; that of others, and of earlier versions, has no digests."""
    folder = pathlib.Path(builder.data_dir)
    path = folder / digests.FILE
    try:
        if path.is_file():
            _check_digests(folder, path.stat().st_mtime_ns)
        elif _SEALED in (builder.info.metadata or {}):
            raise digests.Damaged(f"{digests.FILE} is missing")
    except digests.Damaged as error:
        raise UserError(
            f"data set '{folder}' is damaged ({error}); restore it from a copy, or prepare it again."
        ) from error


@functools.cache  # once, not for each of its splits
def _check_digests(folder: pathlib.Path, time: int) -> None:
    content = digests.read(folder)
    if content is not None:
        digests.check(folder, content)


def rows(source) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data set, floats of few bits as NumPy's of so many: TensorFlow Datasets widens them.

    Args:
      source: from `open_source`.
    """
    kinds = source.dataset_info.features.np_dtype
    for number in range(len(source)):
        yield _narrowed(source[number], kinds)


def _narrowed(value: Any, kind: Any) -> Any:
    """Returns a value with floats of its feature's type, a NumPy type or by its name that of each feature within."""
    if isinstance(value, Mapping):
        known = kind if isinstance(kind, Mapping) else {}
        return {name: _narrowed(inner, known.get(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_narrowed(inner, kind) for inner in value]
    if isinstance(value, float) and kind is not None and not isinstance(kind, Mapping):
        return np.dtype(kind).type(value) if np.dtype(kind).itemsize < 8 else value
    return value


def _sets(folder, name: str) -> str:
    """The data sets of a folder; of those with the name that is asked for, which configs and versions there are."""
    wanted = re.split("[/:]", name)[0]
    found = [path.parent for depth in ("*/*", "*/*/*") for path in folder.glob(f"{depth}/dataset_info.json")]
    parts = [(*path.parts[len(folder.parts) : -1], path.name) for path in found]
    same = ["/".join(names) + f":{version}" for *names, version in parts if names[0] == wanted]
    return _few(same or {"/".join(names) for *names, _ in parts}) or "none"


def _few(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:_LISTED]) + (f" and {len(first) - _LISTED} more" if len(first) > _LISTED else "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def description(source) -> dict[str, Any] | None:
    """Returns what a set that we have prepared says of itself; None of any other.

    Args:
      source: from `open_source`.

    Returns:
      `format`; `graders`, the number of rows of each kind; and of each of the `splits` the `rows`, what was
      `left_out` for which reason, its `source` and that one's `sha256`.
    """
    try:
        return source.dataset_info.metadata[_KEY]
    except (KeyError, TypeError):  # no metadata, or none of ours
        return None


def decode(row: Mapping[str, Any], where: str) -> Example:
    """Returns the example that a row of a prepared set holds.

    Sets that were prepared before there were turns have none: of a chat they kept the question alone.

    Raises:
      UserError: the row is damaged; `where` it is.
    """
    try:
        text: dict[str, Any] = {name: row[name].decode("utf-8") for name in _COLUMNS if name in row or name != "turns"}
        text["columns"] = json.loads(text["columns"])
        text["turns"] = tuple((role, said) for role, said in json.loads(text.get("turns", "[]")))
    except (AttributeError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{where} is damaged ({type(error).__name__}: {_line(error)}); prepare the set again."
        ) from error
    return Example(**text)


def default_folder() -> pathlib.Path:
    """Returns where TensorFlow Datasets keeps data sets by default."""
    from tensorflow_datasets.core import constants

    return places.place(constants.DATA_DIR)


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return digests.of_file(path)
    whole = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        whole.update(os.fsencode(file.relative_to(path)) + f"\0{digest(file)}\n".encode())
    return whole.hexdigest()


def _encode(example: Example) -> dict[str, str]:
    return dataclasses.asdict(example) | {name: json.dumps(getattr(example, name)) for name in ("columns", "turns")}
