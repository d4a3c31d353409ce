r"""Brackets, arguments and commands in LaTeX, found without a parser; what the rules of `normalize` are made of."""

import re
from collections.abc import Callable

MOST_OPEN = 30  # brackets within each other in what is parsed: the parser's time doubles by level
_CLOSING = {"{": "}", "(": ")", "[": "]"}
_ARGUMENT = re.compile(r"\s*(?:\\[a-zA-Z]+|[^\s{}\\])")


def group_end(text: str, start: int) -> int:
    r"""Index after the bracket that closes the one at `start`, -1 if none does. `\{` and `\}` are no braces.

    Example:
      >>> group_end("f(x(y))z", 1)
      7
    """
    opening, closing, depth = text[start], _CLOSING[text[start]], 0
    position = start
    while position < len(text):
        letter = text[position]
        if letter == "\\":
            position += 1  # what is escaped opens and closes nothing
        elif letter == opening:
            depth += 1
        elif letter == closing:
            depth -= 1
            if not depth:
                return position + 1
        position += 1
    return -1


def argument(text: str, start: int) -> tuple[str, int] | None:
    r"""The argument of a command from `start` on, without braces, and where it ends; None if there is none.

    Example:
      >>> argument("{12}3", 0), argument("12", 0), argument(r"\pi x", 0)
      (('12', 4), ('1', 1), ('\\pi', 3))
    """
    while start < len(text) and text[start].isspace():
        start += 1
    if start < len(text) and text[start] == "{":
        end = group_end(text, start)
        return None if end < 0 else (text[start + 1 : end - 1], end)
    found = _ARGUMENT.match(text, start)
    return None if found is None else (found.group().strip(), found.end())


def replace_calls(text: str, opening: re.Pattern, build: Callable[[re.Match, str], str | None]) -> str:
    """Replaces each group that a match of `opening` ends with the bracket of, innermost first, in one pass.

    Args:
      text: LaTeX.
      opening: ends with an opening bracket.
      build: the match and what the group holds -> what stands for both; None leaves them.
    """
    found = opening.search(text)
    if found is None:
        return text
    tracked = [bracket for bracket in _CLOSING if bracket in opening.pattern[-4:]]
    closing = {_CLOSING[bracket]: bracket for bracket in tracked}
    # What is open: the match, if it is one of them, its text, and what has been written since.
    frames: list[tuple[re.Match | None, str, list[str]]] = [(None, "", [])]
    position = 0
    while position < len(text):
        if found is not None and found.start() < position:
            found = opening.search(text, position)
        if found is not None and found.start() == position:
            frames.append((found, found.group(), []))
            position = found.end()
            continue
        letter = text[position]
        if letter == "\\":
            frames[-1][2].append(text[position : position + 2])
            position += 2
            continue
        if letter in tracked:
            frames.append((None, letter, []))
        elif letter in closing and frames[-1][1].endswith(closing[letter]):
            match, begin, inner = frames.pop()
            content = "".join(inner)
            new = None if match is None else build(match, content)
            frames[-1][2].append(begin + content + letter if new is None else new)
        else:
            frames[-1][2].append(letter)
        position += 1
    return "".join(begin + "".join(inner) for _, begin, inner in frames)


def balanced(text: str) -> bool:
    """Is every bracket closed? Intervals may mix round and square ones, so that only their number counts."""
    depth = braces = 0
    escaped = False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == "{":
            braces += 1
        elif letter == "}":
            braces -= 1
        if depth < 0 or braces < 0:
            return False
    return not depth and not braces


def deepest(text: str) -> int:
    r"""How many brackets are open at once, at most; those that are escaped are counted too.

    Example:
      >>> deepest(r"\frac{1}{(2+x)}")
      2
    """
    depth = most = 0
    for letter in text:
        depth = depth + 1 if letter in "([{" else max(depth - 1, 0) if letter in ")]}" else depth
        most = max(most, depth)
    return most


def split_top(text: str, separator: re.Pattern) -> list[str]:
    """Parts of a text between the matches of `separator` that stand in no bracket."""
    parts, begin, depth, position = [], 0, 0, 0
    while position < len(text):
        found = separator.match(text, position) if not depth else None
        if found is not None and found.end() > position:
            parts.append(text[begin:position])
            begin = position = found.end()
            continue
        letter = text[position]
        if letter == "\\" and position + 1 < len(text):
            follows = text[position + 1]
            depth += (follows == "{") - (follows == "}")
            position += 2
            continue
        depth += (letter in "([{") - (letter in ")]}")
        depth = max(depth, 0)
        position += 1
    return [*parts, text[begin:]]
