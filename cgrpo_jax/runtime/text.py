"""Text of others: where it enters it is made valid Unicode, or refused; where people read it, what it hides is shown.

What a model, an endpoint, a program or a file says may hold half of a surrogate pair, which no tokenizer takes and no
UTF-8 file can hold, and characters that move a terminal's cursor or hide what stands beside them.
"""

import re
from typing import Any

from cgrpo_jax.errors import UserError

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# Cc but for the line end and the tab; Cf; Cs; Zl and Zp: what a terminal obeys, or a reader can't see.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
# Joiners, without which emoji and the scripts of Persia and India can't be written, stay where they follow such a one.
_JOINERS = "\u200c\u200d"
_SHOWN = 80  # characters of a value that a message quotes


def is_valid(text: str) -> bool:
    """Whether a text is valid Unicode: it holds no half of a surrogate pair.

    Example:
      >>> is_valid("a\\ud83d"), is_valid("a\\U0001f600")
      (False, True)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(text: str) -> str:
    """Returns a text as valid Unicode: halves of a surrogate pair are joined, one without the other becomes "?".

    Example:
      >>> clean("a\\ud83d\\ude00 b\\ud83d") == "a\\U0001f600 b?"
      True
    """
    if is_valid(text):
        return text
    whole = _PAIR.sub(lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), text)
    return whole.encode(errors="replace").decode()


def check(text: str, where: str) -> str:
    """Returns a text that is valid Unicode.

    Args:
      text: from elsewhere.
      where: what begins the message, such as "train.jsonl, line 3: column 'question'".

    Raises:
      UserError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(
            f"{where} is not valid Unicode: character {error.start + 1} of {len(text)} is U+{half:04X}, half of a "
            "surrogate pair; write the whole character."
        ) from None
    return text


def shown(text: str) -> str:
    """Returns a text for people's eyes: control and invisible characters as escapes; line ends and tabs stay.

    Example:
      >>> shown("right\\rwrong \\x1b[8m\\u202e!")
      'right\\\\rwrong \\\\x1b[8m\\\\u202e!'
    """
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_escaped, text)


def one_line(text: str) -> str:
    """Returns a text for a line that people read: `shown`, with blanks and line ends as one space each.

    Example:
      >>> one_line("two\\n lines\\x07")
      'two lines\\\\x07'
    """
    return shown(" ".join(text.split()))


def quoted(value: Any, most: int = _SHOWN) -> str:
    """Returns the beginning of a value's `repr` for a message, whatever the value is.

    Example:
      >>> quoted("\\x1b[2J" + "x" * 100, 16)
      "'\\\\x1b[2Jxxxxx..."
    """
    try:
        text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    except (ValueError, RecursionError):  # a number of too many digits, lists within lists within ...
        name = type(value).__name__
        text = f"a{'n' if name == 'int' else ''} {name} too large to be shown"
    return shown(text if len(text) <= most else f"{text[: most - 3]}...")


def _escaped(match: re.Match) -> str:
    found = match[0]
    if found in _JOINERS and match.start() and not match.string[match.start() - 1].isascii():
        return found
    return ascii(found)[1:-1]
