"""Finds the first false equation in stepwise arithmetic that a model wrote as free text.

One pass over the tokens of the text. The length, depth and values of an expression are bounded, so the time is linear
in the text whatever it holds, and nothing is ever passed to `eval`.
"""

import dataclasses
import re
from fractions import Fraction

_TOKEN = re.compile(
    r"""(?P<number>[0-9]{1,3}(?:,[0-9]{3}){1,9}(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
    |(?P<newline>\n)|(?P<space>[^\S\n]+|\\?\$)
    |(?P<operator>\*\*|[-+*/^=()\u00d7\u00f7\u2212\u2013\u00b7\u22c5]|\\(?:times|div|cdot)(?![A-Za-z]))
    |(?P<times>[xX](?=\ ?\\?\$?[0-9]))|(?P<percent>\\?%)|(?P<word>\\?[^\W\d]\w*)|(?P<other>.)""",
    re.VERBOSE,
)
_OPERATORS = {"\u00d7": "*", "\\times": "*", "\\cdot": "*", "\u00b7": "*", "\u22c5": "*", "\u00f7": "/", "\\div": "/"}
_OPERATORS |= {"\u2212": "-", "\u2013": "-", "**": "^"}
_MAX_DIGITS, _MAX_TOKENS, _MAX_DEPTH, _MAX_BITS = 40, 60, 10, 512
# Words that make the arithmetic beside them part of something else: "half of 6 + 4 = 7", "1/5 = 20 percent".
_BEFORE = set("of times plus minus over by half twice double triple step part case day week".split())
_AFTER = set("hundred thousand million billion trillion dozen percent pct cents times plus minus over divided".split())
_LATEX_TEXT = {"\\text", "\\textbf", "\\mathrm", "\\quad", "\\qquad"}


@dataclasses.dataclass(frozen=True)
class StepError:
    """An equation that does not hold.

    Attributes:
      step: its number among the equations that can be checked, from 1. Each `=` of a chain counts.
      text: the equation as written, "6+6=13".
      given: the value that was written, "13".
      expected: the value that it should have been, "12".
    """

    step: int
    text: str
    given: str
    expected: str


def first_false_equation(text: str) -> StepError | None:
    """Finds the first equation in free text, such as `3 + 4*2 = 12`, that does not hold; None if all do.

    Sides are evaluated exactly, as fractions. A decimal may be rounded at the digits it shows (`10/3 = 3.33` holds), an
    integer may not. What can't be read for certain (variables, units between the numbers, "20% of 50") is passed over.

    Example:
      >>> first_false_equation("7*8=56 6+6=13")
      StepError(step=2, text='6+6=13', given='13', expected='12')
    """
    tokens = _tokens(text)
    step = 0
    for left, right in _pairs(tokens):
        if not (left.worked or right.worked):
            continue
        step += 1
        slack = max(left.slack, right.slack)
        if any(abs(a - b) <= slack for a in left.values for b in right.values):
            continue
        given, value = (right, left.values[0]) if left.worked else (left, right.values[0])
        written = text[tokens[left.start].start : tokens[right.end - 1].end]
        number = text[tokens[given.start].start : tokens[given.end - 1].end]
        return StepError(step, " ".join(written.split()), " ".join(number.split()), _show(value, given.decimals))
    return None


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int
    spaced: bool  # a space or currency sign stands before it


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of an equation, tokens `start` to `end`; `values` are its readings (25% is 25 or 0.25)."""

    start: int
    end: int
    values: tuple[Fraction, ...]
    worked: bool  # an expression, not only a number
    decimals: int  # digits that a bare number shows after its point

    @property
    def slack(self):
        return Fraction(1, 2 * 10**self.decimals) if self.decimals else Fraction(0)


class _UnreadableError(Exception):
    """The tokens are no expression, or one too large to evaluate."""


def _tokens(text):
    tokens, spaced = [], False
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind == "space":
            spaced = True
            continue
        if kind == "times":
            after_number = tokens and (tokens[-1].kind in ("number", "percent") or tokens[-1].text == ")")
            kind, token = ("operator", "*") if after_number else ("word", token)
        token = _OPERATORS.get(token, token)
        tokens.append(_Token(kind, token, match.start(), match.end(), spaced))
        spaced = False
    tokens.append(_Token("newline", "", len(text), len(text), False))
    return tokens


def _pairs(tokens):
    """Yields the two sides of every `=` whose sides can both be read."""
    position = 0
    while position < len(tokens):
        left = _side(tokens, position) if _may_start(tokens, position) else None
        if left is None:
            position += 1
            continue
        position = left.end
        while tokens[position].text == "=":
            right = _side(tokens, position + 1)
            if right is None:
                position += 1
                break
            if tokens[right.end].text == "=" or _may_end(tokens, right.end):
                yield left, right
            left, position = right, right.end


def _may_start(tokens, position):
    """Is the expression at `position` whole, or does it go on from something that can't be read (`x + 3 = 5`)?"""
    if position == 0:
        return True
    token, before = tokens[position], tokens[position - 1]
    if before.kind == "word":
        latex = before.text.startswith("\\") and before.text not in _LATEX_TEXT
        known = len(before.text) > 1 and before.text.lower() not in _BEFORE and not latex
        return token.kind == "number" and token.spaced and known
    if before.kind in ("number", "percent") or before.text == ")":
        # "7*8=56 6+6=12" is two equations, "5 1/2" a mixed number, "2(3 + 4)" a product.
        return token.kind == "number" and token.spaced and not _mixed_number(tokens, position)
    if before.kind == "operator":
        return before.text in ("(", "=") or _is_bullet(tokens, position - 1)
    return before.text not in (",", ".") or token.spaced


def _may_end(tokens, position):
    """The same for the token after an expression (`5 = 2x`, `1 = 100 cents`)."""
    token = tokens[position]
    if token.kind == "word":
        latex = token.text.startswith("\\") and token.text not in _LATEX_TEXT
        return token.spaced and len(token.text) > 1 and token.text.lower() not in _AFTER and not latex
    if token.kind == "number":
        return token.spaced and not _mixed_number(tokens, position)
    if token.text == ",":
        return tokens[position + 1].kind != "number" or tokens[position + 1].spaced
    return token.text != "(" or token.spaced


def _mixed_number(tokens, position):
    """Do the tokens here read as the fraction of a mixed number, the 1/2 of "5 1/2"?"""
    over, under = tokens[position + 1], tokens[min(position + 2, len(tokens) - 1)]
    if over.text != "/" or under.kind != "number" or max(len(tokens[position].text), len(under.text)) > _MAX_DIGITS:
        return False
    return Fraction(tokens[position].text.replace(",", "")) < Fraction(under.text.replace(",", ""))


def _is_bullet(tokens, position):
    at_line_start = position == 0 or tokens[position - 1].kind == "newline"
    return at_line_start and tokens[position].text in ("-", "*", "+") and tokens[position + 1].spaced


def _side(tokens, start):
    """The longest expression from token `start`, or None."""
    if tokens[start].kind not in ("number", "operator") or _is_bullet(tokens, start):
        return None
    try:
        value, end = _sum(tokens, start, start + _MAX_TOKENS, 0, 1)
        values = (value,)
        if any(token.kind == "percent" for token in tokens[start:end]):
            values += (_sum(tokens, start, start + _MAX_TOKENS, 0, 100)[0],)
    except (_UnreadableError, ZeroDivisionError):
        return None
    numbers = [token.text for token in tokens[start:end] if token.kind == "number"]
    worked = len(numbers) > 1
    return _Side(start, end, values, worked, 0 if worked else len(numbers[0].partition(".")[2]))


def _sum(tokens, at, stop, depth, percent):
    """sum = product (("+" | "-") product)*; returns its value and the position after it."""
    total, at = _product(tokens, at, stop, depth, percent)
    while tokens[at].text in ("+", "-"):
        sign = 1 if tokens[at].text == "+" else -1
        value, at = _product(tokens, at + 1, stop, depth, percent)
        total = _bounded(total + sign * value)
    return total, at


def _product(tokens, at, stop, depth, percent):
    """product = power (("*" | "/") power)*."""
    total, at = _power(tokens, at, stop, depth, percent)
    divide = False
    while tokens[at].text in ("*", "/"):
        if divide and tokens[at].text == "/":
            raise _UnreadableError  # "25 / 1/3 = 75": people mean 25 / (1/3)
        divide = tokens[at].text == "/"
        value, at = _power(tokens, at + 1, stop, depth, percent)
        total = _bounded(total / value if divide else total * value)
    return total, at


def _power(tokens, at, stop, depth, percent):
    """power = "-" power | atom ["^" power], so that -2^2 = -4 and 2^3^2 = 2^9."""
    if at >= stop or at >= len(tokens) or depth > _MAX_DEPTH:
        raise _UnreadableError
    if tokens[at].text == "-":
        value, at = _power(tokens, at + 1, stop, depth + 1, percent)
        return -value, at
    base, at = _atom(tokens, at, stop, depth, percent)
    if tokens[at].text != "^":
        return base, at
    exponent, at = _power(tokens, at + 1, stop, depth + 1, percent)
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if exponent.denominator != 1 or abs(exponent) * bits > _MAX_BITS:
        raise _UnreadableError
    return base ** int(exponent), at


def _atom(tokens, at, stop, depth, percent):
    """atom = number ["%"] | "(" sum ")"."""
    token = tokens[at]
    if token.text == "(":
        value, at = _sum(tokens, at + 1, stop, depth + 1, percent)
        if tokens[at].text != ")":
            raise _UnreadableError
        return value, at + 1
    digits = token.text.replace(",", "")
    # "007" and the second part of "1 000" are no operands of a sum.
    if token.kind != "number" or len(digits) > _MAX_DIGITS or re.match("0[0-9]", digits):
        raise _UnreadableError
    if tokens[at + 1].kind == "percent":
        return Fraction(digits) / percent, at + 2
    return Fraction(digits), at + 1


def _bounded(value):
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _UnreadableError
    return value


def _show(value, decimals):
    """The value as a person would write it: an integer or a decimal, exact or rounded like its peer."""
    if value.denominator == 1:
        return str(value.numerator)
    for digits in range(1, 7):
        if (value * 10**digits).denominator == 1:
            return f"{value.numerator / value.denominator:.{digits}f}"
    return f"{value.numerator / value.denominator:.{decimals or 2}f}"
