"""What the replies of a model that judges say: each reading takes time linear in the reply, and None is no verdict."""

import re
from collections.abc import Sequence

from cgrpo_jax.runtime import text as text_lib

MAX_QUOTE = 300  # characters of a quotation that a critique shows

# What may stand before a verdict stays within its line: else each of many empty lines would be searched to the last.
_VERDICT = re.compile(r"^(?:[^\S\n]|[*_-])*([0-9]{1,3})[\s*_]*[.:)-][\s*_]*(yes|no)\b", re.IGNORECASE | re.MULTILINE)
_BETTER = re.compile(r"^(?:[^\S\n]|[*_])*better[\s*_]*:[\s*_]*(a|b|same)\b", re.IGNORECASE | re.MULTILINE)
_RULING = re.compile(r"^(?:[^\S\n]|[*_])*verdict[\s*_]*:[\s*_]*(yes|no)\b", re.IGNORECASE | re.MULTILINE)
_QUOTE = re.compile(r"^(?:[^\S\n]|[*_])*quote[^\S\n*_]*[*_]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_SCORE = re.compile(
    r"^(?:[^\S\n]|[*_])*score[\s*_]*:[\s*_]*([0-9]{1,3})(?![0-9]|\.[0-9])(?:\s*/\s*10\b)?", re.IGNORECASE | re.MULTILINE
)
_NOTHING = re.compile(r"\W*(?:nothing|none|n/a)?\W*", re.IGNORECASE)
_AROUND = " \t*_`'\"\u2018\u2019\u201c\u201d\u00ab\u00bb"  # what models put around what they quote


def read_verdicts(text: str, *, number: int) -> list[bool] | None:
    """The judge's verdicts on criteria 1 to `number`; None if one is missing or there are two that differ.

    Example:
      >>> read_verdicts("1: yes\\n2: no", number=2)
      [True, False]
    """
    found: dict[int, bool] = {}
    for match in _VERDICT.finditer(text):
        criterion, met = int(match[1]), match[2].lower() == "yes"
        if found.setdefault(criterion, met) != met:
            return None
    return [found[i] for i in range(1, number + 1)] if found.keys() == set(range(1, number + 1)) else None


def read_comparison(text: str) -> str | None:
    """Which text the judge finds better, "a", "b" or "same"; None if it does not say, or says two things."""
    said = {match.lower() for match in _BETTER.findall(text)}
    return said.pop() if len(said) == 1 else None


def read_score(text: str) -> int | None:
    """The judge's score from 1 to 10; None if it gives none, another number, or two that differ.

    Example:
      >>> read_score("Clear, but long.\\nScore: 7"), read_score("Score: 11")
      (7, None)
    """
    said = {int(match) for match in _SCORE.findall(text)}
    found = said.pop() if len(said) == 1 else 0
    return found if 1 <= found <= 10 else None


def read_calls(text: str) -> str | None:
    """What a reply that should hold calls says, which a worker then reads as Python; None if there can't be one."""
    return text if "(" in text else None


def read_ruling(text: str, *, shown: Sequence[str]) -> tuple[bool, str] | None:
    """The judge's verdict on one criterion, and the line it quotes, "" for none; None if that is no ruling.

    A verdict must rest on something: a quotation that stands in nothing that the judge was shown is none, and a yes
    needs one. What is absent can't be quoted, so a no needs none.

    Args:
      text: the reply.
      shown: what may be quoted: the response, and what came of running its program.

    Example:
      >>> read_ruling("Quote: It is Paris.\\nVerdict: yes", shown=["Well.\\nIt is Paris."])
      (True, 'It is Paris.')
      >>> read_ruling("Quote: It is Rome.\\nVerdict: yes", shown=["Well.\\nIt is Paris."]) is None
      True
    """
    said = {match.lower() for match in _RULING.findall(text)}
    quotes = _QUOTE.findall(text)
    if len(said) != 1 or not quotes:
        return None
    holds, quote = said.pop() == "yes", _bare(quotes[-1])
    if _NOTHING.fullmatch(quote):
        return None if holds else (False, "")
    if not any(quote in _bare(one) for one in shown):
        return None
    return holds, text_lib.one_line(quote)[:MAX_QUOTE]


def _bare(text: str) -> str:
    """Text with blanks as one space each, without what models put around a quotation."""
    return " ".join(text.split()).strip(_AROUND)
