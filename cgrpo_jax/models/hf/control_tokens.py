"""The tokens that frame turns, and how a text that spells one stays a text.

Control is what the files call special, the named tokens and the ends of a turn, and every added token that the chat
template can write, whatever the files say of it: R1's role tokens are not special.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping

# What is put into a spelling, one after the other: a normaliser may strip the first ones.
_FILLERS = (" ", "-", "x")

Spans = Callable[[str, Collection[int]], list[tuple[int, int]]]


def written_by(source: str, rendered: Iterable[str], tokens: Iterable[str]) -> set[str]:
    """Returns the tokens that a template can write: those in its source and those in what it has rendered.

    Words and white space, which some vocabularies hold as added tokens, frame nothing.
    """
    texts = (source, *rendered)
    return {token for token in tokens if _frames(token) and any(token in text for text in texts)}


def _frames(token: str) -> bool:
    return len(token) > 1 and not token.replace("\u2581", " ").isspace() and not token.isalnum()


class ControlTokens:
    """The tokens that no text of others may produce.

    Args:
      ids: the id of each, by its spelling.
      spans: `(text, ids) -> where the text produces one of them`; None where only the spellings themselves do.
    """

    def __init__(self, ids: Mapping[str, int], spans: Spans | None = None):
        self.ids = frozenset(ids.values())
        spellings = [text for text in ids if len(text) > 1]
        # The first character of a spelling, in a lookahead: each one is found, also where two overlap.
        self._first = re.compile(f"(?={'|'.join(map(re.escape, spellings))})." if spellings else "(?!)", re.DOTALL)
        longest_first = sorted(spellings, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._spans = spans

    def begins(self, text: str) -> bool:
        """Does a text begin with one?"""
        return self._first.match(text) is not None

    def after_last(self, text: str) -> str:
        """Returns what comes after the last one of a text; all of it where there is none."""
        return text[max((found.end() for found in self._whole.finditer(text)), default=0) :]

    def broken(self, text: str) -> str:
        """Returns a text with each spelling broken: "<|im_end|>" becomes "< |im_end|>".

        What a normaliser would make one of them, such as full-width letters, is broken likewise.
        """
        text = self._first.sub(r"\g<0> ", text)
        if self._spans is None:
            return text
        for filler in _FILLERS:
            spans = self._spans(text, self.ids)
            if not spans:
                return text
            # After the first character that is no space: a token may take those before it.
            first = [start + len(text[start:end]) - len(text[start:end].lstrip()) + 1 for start, end in spans]
            text = filler.join(text[a:b] for a, b in itertools.pairwise([0, *first, len(text)]))
        for start, end in reversed(self._spans(text, self.ids)):  # a spelling of one character has no inside
            text = f"{text[:start]}?{text[end:]}"
        return text
