"""Rows of the files that data sets come in: JSON lines, JSON, CSV or parquet, also gzipped, or a folder of them.

Every row comes with where it stands, "train.jsonl, line 3", which is what an error about it begins with.
"""

import csv
import gzip
import io
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax.errors import UserError

Rows = Iterator[tuple[str, dict[str, Any]]]
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_PARQUET_ROWS = 256  # decoded at a time: rows with whole reasoning traces are large
_MAX_CELL = 2**30  # characters of one cell of a CSV file; Python's own limit is 131,072


def rows(path: str | pathlib.Path) -> Rows:
    """Reads a file by its suffix, or the files of a folder and of those in it, in the order of their names.

    Raises:
      UserError: no such file, a suffix that nothing is known of, or a row that can't be read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in _SUFFIXES)
        if not files:
            raise UserError(f"folder '{path}' holds no {', '.join(_SUFFIXES)} file; check the path.")
        for file in files:
            yield from rows(file)
        return
    _check_file(path)
    read = {".jsonl": jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": parquet_rows}.get(_suffix(path))
    if read is None:
        raise UserError(f"data file '{path}' is of no known kind; use {', '.join(_SUFFIXES)}, also with .gz.")
    yield from read(path)


def check_exists(path: str | pathlib.Path) -> None:
    """Raises a `UserError` where there is neither a file nor a folder."""
    if not pathlib.Path(path).exists():
        raise UserError(f"data file '{path}' does not exist; check the path.")


def jsonl_rows(path: str | pathlib.Path) -> Rows:
    """Reads one JSON object a line; blank lines are passed over."""
    with _open(path) as lines:
        for number, line in _numbered(lines, path):
            if line.strip():
                yield (where := f"{path}, line {number}"), _object(_parse(line, where), where)


def parquet_rows(path: str | pathlib.Path) -> Rows:
    """Reads a parquet file, a few rows at a time; needs pyarrow, which the extra `parquet` installs."""
    _check_file(path)
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow; pip install 'cgrpo_jax[parquet]'.") from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as parquet ({_line(error)}); fetch the file again.") from error


def column(row: Mapping[str, Any], keys: str, where: str) -> str:
    """The text of a column, or of several ("Body,Question") joined by a space.

    "reward_model.ground_truth" is a column within a column; a chat (a list of messages) is its last message by the
    user, or where there is none its last message.

    Example:
      >>> column({"Body": "There are 2.", "Question": "How many?"}, "Body,Question", "train.jsonl, line 1")
      'There are 2. How many?'

    Args:
      row: as it was read.
      keys: names of columns, separated by commas.
      where: the row's place, for an error.

    Raises:
      UserError: a column is missing, is nested, or holds neither text nor a number nor a chat.
    """
    parts = []
    for key in keys.split(","):
        found, value = _find(row, key.strip())
        text = _text(value)
        if text is None:
            raise UserError(f"{where}: column '{key.strip()}' {_why_no_text(row, key.strip(), found, value)}.")
        parts.append(text)
    return " ".join(parts)


def has(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row has a column, with something in it."""
    value = _find(row, key)[1]
    return value is not None and not (isinstance(value, str | bytes | Sequence) and not len(value))


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes become text, arrays lists, what has no JSON form its text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def answer_pattern(pattern: str | None) -> re.Pattern | None:
    """Returns an `answer_pattern`, ready to search.

    Raises:
      UserError: it is no regular expression, or has no group.
    """
    try:
        compiled = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(f"answer_pattern {pattern!r} is no regular expression ({error}).") from error
    if compiled is not None and compiled.groups < 1:
        raise UserError(f"answer_pattern {pattern!r} has no group; put the answer in parentheses.")
    return compiled


def answer_in(text: str, pattern: re.Pattern | None, where: str) -> str:
    """Returns the answer within the text of an answer column: group 1 of the pattern, or all of it.

    Raises:
      UserError: the pattern is not found.
    """
    if pattern is None:
        return text.strip()
    match = pattern.search(text)
    if match is None or match.group(1) is None:
        raise UserError(f"{where}: answer_pattern {pattern.pattern!r} is not found in {text[-80:]!r}.")
    return match.group(1).strip()


def _find(row: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    if key in row:
        return True, row[key]
    outer, dot, inner = key.partition(".")
    if dot and isinstance(row.get(outer), Mapping):
        return _find(row[outer], inner)
    return False, None


def _why_no_text(row: Mapping[str, Any], key: str, found: bool, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"is nested (it has: {', '.join(value)}); name a column within it, as {key}.{next(iter(value), 'NAME')}"
    if found:
        return f"is {value!r:.40}; it must hold text or a number"
    outer, _, inner = key.partition(".")
    if inner and isinstance(row.get(outer), Mapping):
        return _why_no_text(row[outer], inner, found, value).replace("there are", f"{outer} has", 1)
    return f"is missing (there are: {', '.join(row)}); name one of these"


def _text(value: Any) -> str | None:
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 145.0, as JSON writers put it, is the answer 145
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        said = [message for message in value if message.get("role") == "user"] or value
        value = said[-1].get("content")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()


# --- files --------------------------------------------------------------------------------------------------------


def _suffix(path: pathlib.Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _check_file(path: str | pathlib.Path) -> None:
    """Checks that there is a file, which a folder is not."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"data file '{path}' does not exist; check the path.")


def _open(path: str | pathlib.Path):
    _check_file(path)
    path = pathlib.Path(path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _numbered(lines, path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from enumerate(lines, start=1)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"{path} can't be read ({_line(error)}); fetch the file again.") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}); each line must be one JSON object.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a {type(value).__name__}; each line must be one JSON object.")
    return value


def _json_rows(path: str | pathlib.Path) -> Rows:
    """Reads a list of objects, or one object that is the only row."""
    with _open(path) as file:
        try:
            content = json.loads(file.read().decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, EOFError, OSError) as error:
            raise UserError(f"{path} is not valid JSON ({_line(error)}); fetch the file again.") from error
    if isinstance(content, dict):
        yield str(path), content
        return
    if not isinstance(content, list):
        raise UserError(f"{path} holds a {type(content).__name__}; it must hold a list of objects, or one object.")
    for number, row in enumerate(content, start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: a {type(row).__name__}; each row must be one JSON object.")
        yield where, row


def _csv_rows(path: str | pathlib.Path) -> Rows:
    """Reads a file whose first line names the columns."""
    csv.field_size_limit(_MAX_CELL)
    with _open(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise UserError(f"{path} can't be read as UTF-8 text ({_line(error)}); fetch the file again.") from error
    number = 0
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), start=1):
            where = f"{path}, row {number}"
            if None in row or None in row.values():
                raise UserError(f"{where}: another number of cells than the first line names; fix the file.")
            yield where, row
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: not CSV ({error}); fix the file.") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
