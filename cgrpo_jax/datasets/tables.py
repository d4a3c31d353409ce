"""Rows of the files that data sets come in: JSON lines, JSON, CSV or parquet, also gzipped, or a folder of them.

Every row comes with where it is, "train.jsonl, line 3", which is what an error about it begins with.
"""

import contextlib
import csv
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cgrpo_jax.datasets import arrow, cells
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Turn
from cgrpo_jax.runtime import places
from cgrpo_jax.runtime import text as text_lib

Rows = Iterator[tuple[str, dict[str, Any]]]
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_PARQUET_ROWS = 256  # decoded at a time: rows with whole reasoning traces are large
_MAX_LINE = 1 << 28  # bytes of a line of JSON
_UNREADABLE = (EOFError, OSError, zlib.error)  # of a file that is cut short, or damaged
_MAX_CELL = 2**30  # characters of one cell of a CSV file; Python's own limit is 131,072


def rows(path: str | pathlib.Path) -> Rows:
    """Reads a file by its suffix, or the files of a folder and of those in it, in the order of their names.

    Raises:
      UserError: no such file, a suffix that nothing is known of, or a row that can't be read.
    """
    path = places.place(path)
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
    if not places.place(path).exists():
        raise UserError(f"data file '{path}' does not exist; check the path{_from_here(path)}.")


def jsonl_rows(path: str | pathlib.Path) -> Rows:
    """Reads one JSON object a line; blank lines are passed over."""
    with _open(path) as lines:
        for number, line in _numbered(lines, path):
            if line.strip():
                yield (where := f"{path}, line {number}"), _object(_parse(line, where), where)


def parquet_rows(path: str | pathlib.Path) -> Rows:
    """Reads a parquet file, a few rows at a time."""
    from pyarrow import ArrowException, parquet  # here: most data are read without

    _check_file(path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in arrow.rows(batch):
                    number += 1
                    yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, row {number + 1}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as parquet ({_line(error)}); fetch the file again.") from error


def column(row: Mapping[str, Any], keys: str, where: str, *, says: str = "user", named_by: str = "") -> str:
    """The text of a column, or of several ("Body,Question") joined by a space.

    "reward_model.ground_truth" is a column within a column; a chat (a list of messages) is its last message by the
    user, or where there is none its last message. Numbers are written out (`cells.number_text`).

    Example:
      >>> column({"Body": "There are 2.", "Question": "How many?"}, "Body,Question", "train.jsonl, line 1")
      'There are 2. How many?'

    Args:
      row: as it was read.
      keys: names of columns, separated by commas.
      where: the row's place, for an error.
      says: the role whose last message a chat is read for.
      named_by: the key of a configuration that names the columns, for an error; empty for none.

    Raises:
      UserError: a column is missing, is nested, holds neither text nor a finite number nor a chat, or damaged text.
    """
    parts = []
    for key in keys.split(","):
        found, value = _find(row, key.strip())
        what = f"{where}: column '{key.strip()}'"
        with _decoded(what):
            text = cells.text_of(value, says=says)
        if text is None:
            where_else = f" in {named_by}" if named_by and not found else ""
            raise UserError(f"{what} {_why_no_text(row, key.strip(), found, value)}{where_else}.")
        parts.append(cells.check_text(text, what))
    return " ".join(parts)


def solution_column(row: Mapping[str, Any], keys: str, where: str, *, named_by: str = "") -> str:
    """The text of a column that answers, as `column` returns it; of a chat, the assistant's last message."""
    return column(row, keys, where, says="assistant", named_by=named_by)


def turns(row: Mapping[str, Any], keys: str, where: str) -> tuple[Turn, ...]:
    """The turns of a chat in a column before the question that `column` returns; none where the column is no chat.

    What follows the user's last message answers it, and is left out.

    Args:
      row, keys, where: as for `column`; one of several columns at most may be a chat with such turns.

    Raises:
      UserError: a turn has no role or no text, or several columns have turns.
    """
    found: list[cells.Message] = []
    for key in keys.split(","):
        with _decoded(f"{where}: column '{key.strip()}'"):
            new = cells.turns_before(_find(row, key.strip())[1])
        if new and found:
            raise UserError(f"{where}: columns '{keys}' hold several chats; name one of them.")
        found += new
    checked = []
    for number, (role, text) in enumerate(found, start=1):
        what = f"{where}: turn {number} of the chat in column '{keys}'"
        if not role or text is None:
            raise UserError(f"{what} has no {'text' if role else 'role'}; each needs a role, and its text as content.")
        checked.append((cells.check_text(role, what), cells.check_text(text, what)))
    return tuple(checked)


def others(row: Mapping[str, Any], asked: Collection[str], where: str) -> dict[str, Any]:
    """The columns of a row that are not asked, as JSON has them.

    Raises:
      UserError: one is nested too deeply.
    """
    try:
        return {text_lib.clean(key): cells.plain(value) for key, value in row.items() if key not in asked}
    except RecursionError as error:
        raise UserError(f"{where}: a column is {error}; leave it out, or flatten it.") from error


def has(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row has a column, with something in it."""
    value = _find(row, key)[1]
    return value is not None and not (isinstance(value, str | bytes | Sequence) and not len(value))


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
      UserError: the pattern is not found, or the answer is a number that is missing or infinite.
    """
    if pattern is None:
        return finite(text.strip(), where)
    match = pattern.search(text)
    if match is None or match.group(1) is None:
        raise UserError(
            f"{where}: answer_pattern {pattern.pattern!r} is not found in {text_lib.quoted(text[-80:], 82)}."
        )
    return finite(match.group(1).strip(), where)


def finite(answer: str, where: str) -> str:
    """Returns a gold answer that is no number without a value.

    Raises:
      UserError: it is what programs write for one: nan, inf, -inf.
    """
    if cells.is_no_number(answer):
        raise UserError(f"{where}: the gold answer is {answer!r}, with which nothing can be compared; give its value.")
    return answer


@contextlib.contextmanager
def _decoded(what: str) -> Iterator[None]:
    """Within the block bytes become text; `what` begins the message where they are none."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise cells.DamagedText(f"{what} is not UTF-8 ({error.reason}); save it as UTF-8.") from error


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
        return cells.why_no_text(value)
    outer, _, inner = key.partition(".")
    if inner and isinstance(row.get(outer), Mapping):
        return _why_no_text(row[outer], inner, found, value).replace("there are", f"{outer} has", 1)
    return f"is missing (there are: {', '.join(row)}); name one of these"


# --- files --------------------------------------------------------------------------------------------------------


def _suffix(path: pathlib.Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _from_here(path: str | pathlib.Path) -> str:
    return "" if places.place(path).is_absolute() else f", which begins in {pathlib.Path.cwd()}"


def _check_file(path: str | pathlib.Path) -> None:
    """Checks that there is a file, which a folder is not."""
    if not places.place(path).is_file():
        raise UserError(f"data file '{path}' does not exist; check the path{_from_here(path)}.")


def _open(path: str | pathlib.Path):
    _check_file(path)
    path = places.place(path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _numbered(lines, path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        while line := lines.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise UserError(f"{path}, line {number}: longer than {_MAX_LINE} bytes; write one object a line.")
            yield number, line
    except _UNREADABLE as error:
        raise UserError(f"{path} can't be read ({_line(error)}); fetch the file again.") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return _loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({_why_no_json(error)}); each line must be one JSON object.") from error


def _loads(text: str) -> Any:
    return json.loads(text, parse_float=cells.Written)


def _why_no_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    # Else Python refuses to read so long an integer, lest it take for ever.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _whole_text(path: str | pathlib.Path, encoding: str) -> str:
    """Returns the text of a file.

    Raises:
      UserError: it is cut short, or not in this encoding: the line is named.
    """
    with _open(path) as file:
        try:
            content = file.read()
        except _UNREADABLE as error:
            raise UserError(f"{path} can't be read ({_line(error)}); fetch the file again.") from error
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a {type(value).__name__}; each line must be one JSON object.")
    return value


def _json_rows(path: str | pathlib.Path) -> Rows:
    """Reads a list of objects, or one object that is the only row."""
    text = _whole_text(path, "utf-8")
    try:
        content = _loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({_line(error)}); fetch the file again.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON ({_why_no_json(error)}); write such values as text.") from error
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
    text = _whole_text(path, "utf-8-sig")
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
