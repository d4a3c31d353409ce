"""Fenced blocks of Markdown, also where models write it badly.

Fences are of backticks or tildes, indented, in a list or in a quotation. In Python a line within a string that goes
over several lines is no fence, however it looks.
"""

import dataclasses
import re
from typing import NamedTuple

# What may stand before a fence: marks of lists and quotations, then indentation and marks of lists.
_LIST = r"(?:[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t])*[ \t]*"
_FENCE = re.compile(rf"((?:{_LIST}>(?:[ \t]*>)*)?)({_LIST})(`{{3,}}|~{{3,}})[ \t]*(.*)")
_FENCE_IN_LINE = re.compile(r"()()[^`~\n]*(`{3,}|~{3,})((?:python|py)3?)[ \t]*$", re.IGNORECASE)
_PYTHON = re.compile(r"\{?[ \t]*[.#]?(?:(?:i|c|micro)?python|py|pypy|sage)[-_ ]?[\d.]*(?![\w+#-])", re.IGNORECASE)
_LANGUAGE = re.compile(r"\{?[ \t]*[.#]?([\w+#-]+)")
_TOKEN = re.compile(r"""#.*|'{3}|"{3}|'(?:\\.|[^'\\])*'?|"(?:\\.|[^"\\])*"?|[^'"#]+""")
_TO_END = {quote: re.compile(rf"(?:\\.|(?!{quote}).)*{quote}", re.DOTALL) for quote in ("'''", '"""')}
_TAB = 4  # columns
_DEEPER = 4  # columns by which a fence is content of the block that it stands in


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      info: what stands behind its fence.
      code: its content, without the indentation of its fence.
      inner: lines of its content look like fences.
    """

    info: str
    code: str
    inner: bool = False

    @property
    def python(self) -> bool:
        """Is it said to be Python?"""
        return _PYTHON.match(self.info) is not None

    @property
    def language(self) -> str:
        """Its language, in small letters."""
        found = _LANGUAGE.match(self.info)
        return found[1].lower() if found else ""


class _Fence(NamedTuple):
    """A line that may open or close a block.

    Attributes:
      depth: quotations that it stands in.
      gap: what follows their marks.
      column: where it begins.
      marker: its characters.
      info: what stands behind them.
      listed: it stands behind the mark of a list.
    """

    depth: int
    gap: str
    column: int
    marker: str
    info: str
    listed: bool

    @property
    def opens(self) -> bool:
        return self.marker[0] == "~" or "`" not in self.info

    @property
    def closes(self) -> bool:
        return not self.listed and not any(one.isalnum() or one == "{" for one in self.info)


class _Open:
    """A block that is being read."""

    def __init__(self, fence: _Fence, careful: bool):
        self._fence, self._careful = fence, careful
        self._lines: list[str] = []
        self._columns, self._begun = fence.column, False
        self._inner, self._quote = False, None
        self._python = not fence.info or _PYTHON.match(fence.info) is not None

    def unquoted(self, line: str) -> str | None:
        """Returns the line without the marks of its quotations; None if it stands in fewer."""
        for _ in range(self._fence.depth):
            bare = line.lstrip(" \t")
            if not bare.startswith(">"):
                return None
            line = bare[1:].removeprefix(self._fence.gap)
        return line

    def ends_at(self, line: str) -> bool:
        """Returns whether a line, without quotations, ends it; if not, the line is content."""
        fence = _fence(line, inside=True)
        if fence is None or not fence.marker.startswith(self._fence.marker):
            self._inner |= fence is not None
            return False
        if not self._careful:
            return True
        content = self._quote or fence.column >= self._fence.column + _DEEPER or not fence.closes
        self._inner |= bool(content)
        return not content

    def add(self, line: str) -> None:
        """Adds a line."""
        bare = line.lstrip(" \t")
        if self._columns and bare.strip():
            space = line[: len(line) - len(bare)].expandtabs(_TAB)
            if not self._begun:  # all of it may stand further left than its fence
                self._columns, self._begun = min(self._columns, len(space)), True
            line = space[self._columns :] + bare
        self._lines.append(line)
        if self._careful and self._python:
            self._quote = _quote_after(line, self._quote)

    def block(self, closed: bool = True) -> Block:
        """Returns what was read; a fence at the end of a line of code closes what no other does."""
        code = "".join(self._lines)
        if not closed and code.rstrip().endswith(self._fence.marker):
            code = code.rstrip().rstrip(self._fence.marker[0])
        return Block(self._fence.info, code, self._inner)


def blocks_of(text: str, *, careful: bool = True) -> list[Block]:
    """Returns the fenced blocks of a text; one that is never closed goes on to the end.

    Args:
      text: Markdown.
      careful: read it by the rules; else every fence ends the block before it, also one in a string, far to the right,
        or with a language, and opens another if it has one.

    Example:
      >>> blocks_of("- first:\\n  ```python\\n  x = 1\\n  ```\\n- second")
      [Block(info='python', code='x = 1\\n', inner=False)]
    """
    blocks: list[Block] = []
    block: _Open | None = None
    lines = text.split("\n")
    for line in [*(f"{line}\n" for line in lines[:-1]), lines[-1]]:
        left = block and block.unquoted(line)
        if block and left is None:
            blocks.append(block.block())
            block = None
        if block and left is not None:
            if not block.ends_at(left):
                block.add(left)
                continue
            blocks.append(block.block())
            block = None
            if careful:
                continue
        fence = _fence(line, inside=False)
        if fence and fence.opens and line.endswith("\n"):  # a fence that ends the text opens nothing
            if careful or fence.info or not blocks:
                block = _Open(fence, careful)
    return blocks + ([block.block(closed=False)] if block else [])


def _fence(line, inside):
    if "```" not in line and "~~~" not in line:
        return None
    found = _FENCE.match(line) or (None if inside else _FENCE_IN_LINE.match(line))
    if found is None or inside and found[1]:
        return None
    depth, before = found[1].count(">"), found[2].expandtabs(_TAB)
    gap = " " if depth and before.startswith(" ") else ""
    before = before.removeprefix(gap)
    return _Fence(depth, gap, len(before), found[3], found[4].strip(), bool(before.strip()))


def _quote_after(line, quote):
    """The quotation marks of the string that goes on after a line of Python; None if none does."""
    at = 0
    while at < len(line):
        found = (_TO_END[quote] if quote else _TOKEN).match(line, at)
        if found is None:  # the string does not end here
            return quote
        quote = found[0] if not quote and found[0] in _TO_END else None
        at = found.end()
    return quote
