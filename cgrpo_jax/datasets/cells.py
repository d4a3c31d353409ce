"""What a cell of a row says: a number as it was written, a text, the turns of a chat; and what is none of these.

A gold answer is compared as text, so a number becomes text in one way, whatever kind of file it comes from:

    33.3 in a float32 column -> "33.3"    2e-05 -> "0.00002"    145.0 -> "145"    1e22 -> "10000000000000000000000"
"""

import decimal
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import text as text_lib

_MAX_DIGITS = 1000  # of a number in e-notation, written out; float64 needs 325
_MAX_TEXT = 1 << 24  # characters of a cell that is asked, or compared
_MAX_DEPTH = 64  # lists and objects within each other
# A role and a text of a chat; None where a message has none: it calls a tool, say, or shows a picture.
Message = tuple[str | None, str | None]
# Whom ShareGPT's chats call otherwise.
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf)", re.IGNORECASE)  # as programs write them


class DamagedText(UserError):
    """A row's text can't be used: it is not valid Unicode, or too long."""


class Written(float):
    """A float that keeps the digits it was written with: 3.14159265358979323846 has more than a float64 holds."""

    literal: str

    def __new__(cls, literal: str):
        number = super().__new__(cls, literal)
        number.literal = literal
        return number


def number_text(value: Any) -> str | None:
    """Returns a number as text without an exponent; None of what is no finite number, or is longer than any data.

    Floats have the fewest digits that say which number of their own width they are, and no zeros after these; decimals
    have the digits of their column.

    Example:
      >>> [number_text(value) for value in (np.float32(33.3), 2e-05, 145.0, decimal.Decimal("2.50"), float("nan"))]
      ['33.3', '0.00002', '145', '2.50', None]
    """
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, decimal.Decimal):
        return _positional(value)
    if isinstance(value, Written):
        written = _decimal(value.literal)
    elif isinstance(value, float | np.floating) or _is_narrow_float(value):
        written = _decimal(_shortest(value))
    else:
        return None
    digits = None if written is None else _positional(written)
    if digits is None:
        return None
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def text_of(value: Any, *, says: str = "user") -> str | None:
    """Returns the text of a cell, without blanks around it; None where it holds neither text, number nor chat.

    Args:
      value: the cell.
      says: the role whose last message a chat is read for: its last message of all where that role says nothing.

    Raises:
      UnicodeDecodeError: bytes that are no UTF-8.
    """
    value = _unpacked(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if (messages := _messages(value)) is not None:
        value = messages[_last(messages, says)][1]
    return value.strip() if isinstance(value, str) else number_text(value)


def turns_before(value: Any) -> list[Message]:
    """Returns the turns of a chat before the user's last one; none of what is no chat."""
    messages = _messages(_unpacked(value))
    return [] if messages is None else messages[: _last(messages, "user")]


def chat(value: Any) -> list[Message] | None:
    """Returns all messages of a chat, contents as they stand; None of what is no chat.

    Example:
      >>> chat([{"role": "user", "content": " 2 + 3? "}, {"from": "gpt", "value": "5"}])
      [('user', ' 2 + 3? '), ('assistant', '5')]
    """
    value = _unpacked(value)
    if isinstance(value, list | tuple):
        value = [_named_as_ours(one) for one in value]
    return _messages(value)


def _named_as_ours(message: Any) -> Any:
    """Returns a message of ShareGPT's names as one of ours; what is none stays as it is."""
    if not isinstance(message, Mapping) or "role" in message or not {"from", "value"} <= message.keys():
        return message
    who = message["from"]
    return {"role": _SHAREGPT.get(who, who) if isinstance(who, str) else who, "content": message["value"]}


def check_text(text: str, where: str) -> str:
    """Returns a text that may be asked, or compared.

    Raises:
      DamagedText: it is not valid Unicode, or longer than any question; `where` says what it is.
    """
    if len(text) > _MAX_TEXT:
        raise DamagedText(f"{where} has {len(text)} characters; use at most {_MAX_TEXT}.")
    try:
        return text_lib.check(text, where)
    except UserError as error:
        raise DamagedText(str(error)) from None


def why_no_text(value: Any) -> str:
    """Returns why a cell has no text, as the end of a sentence about it."""
    value = _unpacked(value)
    given = text_lib.quoted(value.item() if isinstance(value, np.generic) else value, 40)
    if isinstance(value, Written) and value.literal.strip("-")[:1].isdigit():
        return f"is a number that has more than {_MAX_DIGITS} digits where it is written out; give it as text"
    if isinstance(value, float | np.floating | decimal.Decimal) or _is_narrow_float(value):
        return f"is {given}; it must hold text or a finite number"
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return f"is {given}; each message of a chat must hold a role, and its text as content"
    return f"is {given}; it must hold text or a number"


def is_no_number(answer: str) -> bool:
    """Whether an answer is what programs write for a number that is missing or infinite: nan, inf, -inf."""
    return _NOT_FINITE.fullmatch(answer.strip()) is not None


def plain(value: Any, *, text: Callable[[str], str] = text_lib.clean, depth: int = 0) -> Any:
    """Returns a value as JSON has it: bytes become text, arrays lists, what has no JSON form its text.

    Args:
      value: any cell.
      text: what is made of each text in it; by default valid Unicode.
      depth: at which it stands.

    Raises:
      RecursionError: it is nested too deeply for those who come after.
    """
    if depth > _MAX_DEPTH:
        raise RecursionError(f"nested more than {_MAX_DEPTH} deep")
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, np.ndarray):
        # One by one: `tolist` widens floats. What has no dimension is its element.
        inner = value.tolist() if value.dtype.kind not in "fVO" else list(value) if value.ndim else value[()]
        return plain(inner, text=text, depth=depth)
    if isinstance(value, np.generic) and not isinstance(value, np.floating) and not _is_narrow_float(value):
        return plain(value.item(), text=text, depth=depth)
    if isinstance(value, float | np.floating) or _is_narrow_float(value):
        return float(value) if isinstance(value, float) else float(_shortest(value))
    if isinstance(value, Mapping):
        return {text(str(key)): plain(inner, text=text, depth=depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, text=text, depth=depth + 1) for inner in value]
    return value if value is None or isinstance(value, bool | int) else text(str(value))


def _shortest(value: Any) -> str:
    """Returns the fewest digits, perhaps with an exponent, that say which float of its own width a value is."""
    if isinstance(value, float):  # a float64 included
        return str(float(value))
    if isinstance(value, np.floating):
        return str(value)
    exact = float(value)
    texts = (f"{exact:.{digits}g}" for digits in range(1, 18))
    return next((text for text in texts if float(type(value)(float(text))) == exact), str(exact))


def _unpacked(value: Any) -> Any:
    """Returns a cell without the array around it."""
    if isinstance(value, np.ndarray):
        return value[()] if value.ndim == 0 else list(value)
    return value


def _is_narrow_float(value: Any) -> bool:
    """Whether a value is a bfloat16, or another float that NumPy itself does not have."""
    return isinstance(value, np.generic) and value.dtype.kind == "V" and not isinstance(value, np.void)


def _decimal(text: str) -> decimal.Decimal | None:
    try:
        return decimal.Decimal(text)
    except ArithmeticError:  # an exponent beyond all bounds
        return None


def _positional(value: decimal.Decimal) -> str | None:
    """Returns a decimal without an exponent; None where that would fill pages, or it is not finite."""
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent > _MAX_DIGITS or value.adjusted() < -_MAX_DIGITS:
        return None
    return f"{value:f}"


def _messages(value: Any) -> list[Message] | None:
    """Returns the messages of a chat; None of what is no chat.

    A chat is a list of objects with `role` and `content`, or one object of two such lists, as TensorFlow Datasets
    has it.
    """
    if isinstance(value, Mapping) and {"role", "content"} <= value.keys():
        columns = [_unpacked(value[name]) for name in ("role", "content")]
        if not all(isinstance(one, list) for one in columns) or len(columns[0]) != len(columns[1]):
            return None
        value = [{"role": role, "content": content} for role, content in zip(*columns, strict=True)]
    if not isinstance(value, list | tuple) or not value:
        return None
    if not all(isinstance(one, Mapping) and "content" in one for one in value):
        return None
    return [(_message_text(one.get("role")), _content(one["content"])) for one in value]


def _content(value: Any) -> str | None:
    """Returns the text of a message: a text, a number, or a list of parts that are texts."""
    parts = _unpacked(value)
    if not isinstance(parts, list | tuple):
        return _message_text(parts)
    texts = [_message_text(one.get("text") if isinstance(one, Mapping) else one) for one in parts]
    return "".join(filter(None, texts)) if texts and None not in texts else None


def _message_text(value: Any) -> str | None:
    value = _unpacked(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if isinstance(value, str) else number_text(value)


def _last(messages: Sequence[Message], role: str) -> int:
    """Returns the number of the last message of a role, of the last one where there is none."""
    return max((number for number, (who, _) in enumerate(messages) if who == role), default=len(messages) - 1)
