"""JSON files from elsewhere: whatever is wrong with one is said in a line that names it."""

import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import places, reading
from cgrpo_jax.runtime import text as text_lib

_LARGEST = 4 << 20  # bytes; what they become takes up to fifty times as many, and such files have a million or two
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a surrogate pair, as JSON may spell it
_FETCH = "Fetch the file again"
_LFS = b"version https://git-lfs"


def read_json(
    path: str | pathlib.Path, *, missing: str = "a Hugging Face model folder holds it", broken: str | None = None
) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      missing: what to do, or to know, if it does not exist.
      broken: what to do if it can't be read; to fetch it again, by default.

    Raises:
      UserError: the file is missing, can't be read, is too large, or is not JSON in valid Unicode.
    """
    path = places.place(path)
    try:
        data = reading.read_bytes(path, most=_LARGEST)
        content = json.loads(data.decode("utf-8"))
        if _HALF.search(data):  # no tokenizer takes such a text, and no file
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.parent.is_file():
            raise UserError(f"{path.parent} is a file; give the folder that holds {path.name}.") from error
        raise UserError(f"{path} does not exist; {missing}.") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); {broken or fetch_again(path)}.") from error
    except (json.JSONDecodeError, UnicodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {broken or fetch_again(path)}.") from error
    except (RecursionError, ValueError) as error:  # the latter: Python refuses to read so long an integer
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        raise UserError(f"{path} is not valid JSON ({why}); {broken or fetch_again(path)}.") from error


def read_json_object(path: str | pathlib.Path, **kw: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object, such as a `config.json`; arguments and errors of `read_json`."""
    content = read_json(path, **kw)
    if not isinstance(content, dict):
        advice = kw.get("broken") or fetch_again(path)
        raise UserError(f"{path} holds {shown(content)} where an object, {{...}}, must be; {advice}.")
    return content


def object_at(values: Mapping[str, Any], key: str, where: str | pathlib.Path) -> Mapping[str, Any]:
    """The object under a key; an empty one where it is missing or null. `where` says in a message what `values` are."""
    value = values.get(key)
    if value is None or isinstance(value, Mapping):
        return value or {}
    raise UserError(f"{where}: {key} is {shown(value)}; it must be an object, {{...}}. {_FETCH}.")


def number(
    values: Mapping[str, Any],
    key: str,
    where: str | pathlib.Path,
    kind: type = int,
    *,
    zero: bool = False,
    most: float = sys.float_info.max,
) -> Any:
    """The positive, finite number under a key.

    Args:
      values: what a file holds, or a part of it.
      key: a key of it.
      where: says in a message what `values` are.
      kind: int or float; an integer is a float too.
      zero: whether 0 is allowed.
      most: that it may be.

    Raises:
      UserError: there is no such number.
    """
    value = values.get(key)
    if value is None:
        raise UserError(f"{where} has no {key}; fetch the file again.")
    allowed = not isinstance(value, bool) and isinstance(value, int | kind)
    if not (allowed and (0 < value <= sys.float_info.max or (zero and value == 0))):  # neither does nan pass
        wanted = "a number of at least 0" if zero else "a positive number"
        raise UserError(f"{where}: {key} is {shown(value)}; it must be {wanted}. {_FETCH}.")
    if value > most:
        raise UserError(f"{where}: {key} is {shown(value)}; no model has more than {most:,}. {_FETCH}.")
    return kind(value)


def shown(value: Any) -> str:
    """A value for a message: its beginning, where it is long."""
    return text_lib.quoted(value)


def fetch_again(path: str | pathlib.Path) -> str:
    """What to do about a file that is not what its name says."""
    try:
        with places.place(path).open("rb") as file:
            pointer = file.read(len(_LFS)) == _LFS
    except OSError:
        pointer = False
    return "it is a pointer of Git LFS, so run `git lfs pull` in its folder" if pointer else _FETCH.lower()
