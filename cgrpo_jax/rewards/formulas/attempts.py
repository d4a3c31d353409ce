"""Formulas of a response without a box, of which math-verify tries one after the other, from the last on.

It tries each that one of its patterns finds, until one can be read, also those that it could not read before. Here a
formula is tried once, and after so many that can't be read the others of a response are not tried.

Run inside workers: math-verify is imported where it is needed.
"""

import functools

from cgrpo_jax.rewards.formulas import latex_groups, long_sums

MOST_UNREAD = 100  # formulas of one response that can't be read


class _Unread:
    """Formulas of one response that could not be read."""

    def __init__(self):
        self.formulas: set[str] = set()


_unread = _Unread()


def begin() -> None:
    """Begins another response; math-verify asks this module from the first one on."""
    from math_verify import parser

    _unread.formulas = set()
    if getattr(parser.parse_latex_cached, "__module__", "") != __name__:
        parser.parse_latex_cached = _tried_once(parser.parse_latex_cached)


def _tried_once(read):
    @functools.wraps(read)
    def tried(latex: str):
        if latex in _unread.formulas or len(_unread.formulas) >= MOST_UNREAD:
            raise ValueError("formulas of this response can't be read")
        try:
            if latex_groups.deepest(latex) > latex_groups.MOST_OPEN:
                raise ValueError("too many brackets within each other")
            return long_sums.settled(read(latex))
        except Exception:
            _unread.formulas.add(latex)
            raise

    tried.__module__ = __name__
    return tried
