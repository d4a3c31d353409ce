r"""Rules of `normalize` about numbers: thousands, e-notation, repeating decimals, mixed numbers, ratios."""

import re
from fractions import Fraction
from math import gcd, lcm


class Unreadable(ValueError):
    """An answer that would be read as something else."""


_GROUPED = re.compile(r"(?<![0-9.])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
_MIXED = re.compile(r"(?<![0-9.^_{])([0-9]{1,9})\s+([0-9]{1,9})\s*/\s*([0-9]{1,9})(?![0-9.])")
_APART = re.compile(r"(?:^|[^0-9.^_])[0-9.]+\s+[0-9]")
_E_NOTATION = re.compile(
    r"(?<![\w.^\\])((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)[eE]([-+]?)([0-9]{1,4})(?![\w.^!])"
)
_PERIODS = tuple(
    re.compile(r"([0-9]{0,30})\.([0-9]{0,30}?)" + period)
    for period in (
        r"\\(?:overline|bar)\s*\{\s*([0-9]{1,30})\s*\}",
        r"\(([0-9]{1,30})\)",
        r"(\\dot\s*\{?[0-9]\}?(?:[0-9]{0,28}\\dot\s*\{?[0-9]\}?)?)",
        r"([0-9]{1,5}?)\3\3+\s*(?:\\[lc]?dots|\.\.\.+)",
        r"([0-9]{6,12})\3+\s*(?:\\[lc]?dots|\.\.\.+)",
    )
)
_DOTS = re.compile(r"(?<=[0-9])\s*(?:\\[lc]?dots(?![a-z])|\.\.\.+)\s*$")


def thousands(text: str) -> str:
    text = re.sub(r"\s*\{\s*,\s*\}\s*", ",", text)
    if " " in text:
        text = _GROUPED.sub(lambda found: found.group().replace(" ", ""), text)
    # A comma between thousands, unless it could part a list's numbers.
    if "," in text and not re.search(r"[(\[]|\\\{|\\text|[a-zA-Z]{2}", _COMMAS.sub("", text)):
        if "," not in (rest := _COMMAS.sub("", text)) and ";" not in rest:
            text = _COMMAS.sub(lambda found: found.group().replace(",", ""), text)
    return text


def e_notation(text: str) -> str:
    return _E_NOTATION.sub(lambda found: f"{found[1].replace(',', '')}E{found[2]}{found[3]}", text)


def repeating(text: str) -> str:
    for pattern in _PERIODS:
        text = pattern.sub(_as_fraction, text)
    return _DOTS.sub("", text) if "." in text else text


def _as_fraction(found: re.Match) -> str:
    """0.1(6) is (16 - 1) / 90."""
    whole, first, period = found[1] or "0", found[2], re.sub("[^0-9]", "", found[3])
    above = int(whole + first + period) - int(whole + first)
    return rf"\frac{{{above}}}{{{'9' * len(period) + '0' * len(first)}}}"


def mixed(text: str) -> str:
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def apart(text: str) -> str:
    """Two numbers beside each other are neither their product nor a mixed number, as which they would be read."""
    if _APART.search(text) and r"\begin" not in text:
        raise Unreadable(f"{text[:80]!r} has two numbers beside each other")
    return text


_RATIO = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?::\s*[0-9]+(?:\.[0-9]+)?\s*){2,}")


def ratio(text: str) -> str:
    """A ratio of three numbers or more in lowest terms; two are a fraction to the parser."""
    if _RATIO.fullmatch(text) is None:
        return text
    parts = [Fraction(part.strip()) for part in text.split(":")]
    scale = lcm(*(part.denominator for part in parts))
    whole = [int(part * scale) for part in parts]
    common = gcd(*whole) or 1
    return f"({','.join(str(part // common) for part in whole)})"
