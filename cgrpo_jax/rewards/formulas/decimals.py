r"""Numbers that need no parser: integers, decimals, `1.5 \times 10^{3}`, `1.5E3` and fractions, compared exactly."""

import re
import struct
from fractions import Fraction
from typing import NamedTuple

_DIGITS = r"(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<value>{_DIGITS})(?:E(?P<exponent>[-+]?[0-9]{{1,4}})"
    rf"|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{{\s*(?P<power>[-+]?\s*[0-9]{{1,4}})\s*\}}|(?P<digit>[0-9]{{1,4}}))"
    rf"|\s*/\s*(?P<divisor>{_DIGITS}))?"
    rf"|\\frac\{{\s*(?P<minus>-?)\s*(?P<above>{_DIGITS})\s*\}}\{{\s*(?P<below>{_DIGITS})\s*\}}"
    rf"|10\s*\^\s*\{{\s*(?P<ten>[-+]?\s*[0-9]{{1,4}})\s*\}})"
)
_NOISE = Fraction(1, 10**12)  # of binary fractions, relative


class Number(NamedTuple):
    """A number and whether it is written as a decimal, so that it may be rounded."""

    value: Fraction
    is_decimal: bool


def number(text: str) -> Number | None:
    r"""The number that a normal answer is, None if it is none or needs the parser.

    Example:
      >>> number("1.5E3"), number(r"\frac{1}{2}"), number("x")
      (Number(Fraction(1500, 1), True), Number(Fraction(1, 2), False), None)
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    parts = found.groupdict(default="")
    below = parts["below"] or parts["divisor"]
    if below and not Fraction(below):
        return None
    power = (parts["exponent"] or parts["power"] or parts["digit"] or parts["ten"]).replace(" ", "") or "0"
    value = Fraction(parts["value"] or parts["above"] or "1") / Fraction(below or "1") * Fraction(10) ** int(power)
    negative = (parts["sign"] == "-") != (parts["minus"] == "-")
    is_decimal = bool(parts["exponent"]) or any("." in parts[name] for name in ("value", "above", "below", "divisor"))
    return Number(-value if negative else value, is_decimal)


def equal(gold: Number, own: Number) -> bool:
    """Are two numbers equal: exactly, or as decimals where one of them is written as one?"""
    return gold.value == own.value or ((gold.is_decimal or own.is_decimal) and same_decimal(gold.value, own.value))


def same_decimal(gold: Fraction, own: Fraction) -> bool:
    """Are two numbers equal, one of which is a decimal?

    To 6 decimals; to 6 digits below a thousandth; and if the gold answer is a binary number of 32 bits, written with
    all its digits, to what rounds to it.

    Example:
      >>> same_decimal(Fraction("0.333333"), Fraction(1, 3)), same_decimal(Fraction("0.33"), Fraction(1, 3))
      (True, False)
    """
    if abs(gold - own) <= _NOISE * abs(gold):
        return True
    if not gold or not own:
        return False
    places = 6
    if abs(gold) < Fraction(1, 1000):
        # Not by floats: they have no such small numbers.
        places = len(str((gold.denominator - 1) // abs(gold.numerator))) + 5
    if round(gold * 10**places) == round(own * 10**places):
        return True
    return _is_single(gold) and _single(own) == _single(gold)


def _single(value: Fraction) -> float | None:
    try:
        return struct.unpack("f", struct.pack("f", float(value)))[0]
    except OverflowError:
        return None


def _is_single(value: Fraction) -> bool:
    """Is a decimal what 32 bits hold, with more digits than they are worth?"""
    single = _single(value)
    if single is None or value.denominator == 1 or float(value) != single:
        return False
    return float(f"{single:.8g}") != single
