"""Reads expressions in free text: tokens, and the exact values of sums and products of numbers.

The length, depth and values of an expression are bounded, and nothing is ever passed to `eval`.
"""

import dataclasses
import re
from collections.abc import Set
from fractions import Fraction

from cgrpo_jax.critiques.step_check.polynomials import NoPolynomialError, Polynomial

_TOKEN = re.compile(
    r"""(?P<number>[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3}){1,9}(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
    |(?P<newline>\n|\\\\(?![A-Za-z]))|(?P<currency>\\?[$\u20ac\u00a3])|(?P<space>[^\S\n]+|\\[,;:!\ ]|~|&(?==))
    |(?P<skipped>\\(?:left|right)(?=\ *[()]))|(?P<fraction>\\[dt]?frac(?![A-Za-z]))
    |(?P<operator>\*\*|[-+*/^=()\u00d7\u00f7\u2212\u2013\u00b7\u22c5]|\\(?:times|div|cdot)(?![A-Za-z]))
    |(?P<times>[xX](?=\ ?\\?\$?[0-9]))|(?P<percent>\\?%)|(?P<word>\\?[^\W\d]\w*(?:['\u2019]\w+)?)|(?P<other>.)""",
    re.VERBOSE,
)
_OPERATORS = {"\u00d7": "*", "\\times": "*", "\\cdot": "*", "\u00b7": "*", "\u22c5": "*", "\u00f7": "/", "\\div": "/"}
_OPERATORS |= {"\u2212": "-", "\u2013": "-", "**": "^"}
MAX_DIGITS = 40  # of a number, its separators included
_MAX_TOKENS, _MAX_DEPTH, _MAX_BITS = 60, 10, 512
# Words that make the arithmetic beside them part of something else: "half of 6 + 4 = 7", "1/5 = 20 percent".
BEFORE = set(
    "of times plus minus over by half twice double triple step part case day week log ln sqrt root sin cos tan gcd lcm "
    "max min mod abs exp choose square squared cube cubed factorial".split()
)
AFTER = set(
    "hundred thousand million billion trillion dozen percent pct cents times plus minus over divided"
    " halves thirds fourths quarters fifths sixths eighths tenths".split()
)
_LATEX_TEXT = {"\\text", "\\textbf", "\\mathrm", "\\quad", "\\qquad"}
NO_UNITS = set(
    "and or is are was if so then to in as at on the each every more less than because that which when but for "
    "from".split()
)
NO_UNITS |= BEFORE | AFTER
_NO_VARIABLES = set("ijeoO")  # the imaginary unit, Euler's number, and what looks like a zero


@dataclasses.dataclass(frozen=True)
class Token:
    """A piece of the text, from character `start` to `end`; its kind is the name of its group in `_TOKEN`.

    A "(" that no expression can close is of kind "other".
    """

    kind: str
    text: str
    start: int
    end: int
    spaced: bool  # a space or currency sign comes before it
    currency: bool = False  # a currency sign does


class UnreadableError(Exception):
    """The tokens are no expression, or one too large to evaluate."""


def to_tokens(text: str) -> list[Token]:
    """Returns the tokens of a text, spaces left out, and an end of line after the last."""
    tokens, spaced, currency = [], False, False
    open_brackets: list[int] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match.group()
        if kind in ("space", "currency"):
            spaced, currency = True, currency or kind == "currency"
            continue
        if kind == "skipped":
            continue
        if kind == "times":
            after_number = tokens and (tokens[-1].kind in ("number", "percent") or tokens[-1].text == ")")
            kind, token = ("operator", "*") if after_number else ("word", token)
        token = _OPERATORS.get(token, token)
        if token == "(":
            open_brackets.append(len(tokens))
            kind = "other"  # until it is closed
        elif token == ")" and open_brackets and len(tokens) - (opened := open_brackets.pop()) <= _MAX_TOKENS:
            tokens[opened] = dataclasses.replace(tokens[opened], kind="operator")
        tokens.append(Token(kind, token, match.start(), match.end(), spaced, currency))
        spaced = currency = False
    tokens.append(Token("newline", "", len(text), len(text), False))
    return tokens


def is_text(token: Token, but: Set[str]) -> bool:
    """Is the word one of a sentence, and not one of those that belong to the arithmetic beside them?"""
    latex = token.text.startswith("\\") and token.text not in _LATEX_TEXT
    word = token.text.lower()
    return len(word) > 1 and word not in but and word.removesuffix("s") not in but and not latex


def is_variable(token: Token) -> bool:
    """Is the token a single letter that can stand for a number?"""
    return token.kind == "word" and len(token.text) == 1 and token.text.isascii() and token.text not in _NO_VARIABLES


def to_number(token: Token) -> Fraction:
    """Returns the value of a number, 1500 for "1,500"; its length should be checked before."""
    return Fraction(token.text.replace("{,}", "").replace(",", ""))


def evaluate(tokens: list[Token], start: int, *, percent: int) -> tuple[Fraction | Polynomial, int]:
    """Returns the value of the longest expression from token `start` on, and the position after it.

    A percentage is divided by `percent`. An expression in a variable, a single letter, is a polynomial.

    Raises:
      UnreadableError: there is no expression, or one that is too large or has no value.
    """
    try:
        return _sum(tokens, start, start + _MAX_TOKENS, 0, percent)
    except (ZeroDivisionError, NoPolynomialError) as error:
        raise UnreadableError from error


def _sum(tokens, at, stop, depth, percent):
    """sum = product (("+" | "-") product)*; returns its value and the position after it."""
    total, at = _product(tokens, at, stop, depth, percent)
    while tokens[at].text in ("+", "-"):
        sign = 1 if tokens[at].text == "+" else -1
        value, at = _product(tokens, at + 1, stop, depth, percent)
        total = _bounded(total + sign * value)
    return total, at


def _product(tokens, at, stop, depth, percent):
    """product = power (("*" | "/" | "of" | nothing) power)*."""
    start = at
    total, at = _power(tokens, at, stop, depth, percent)
    divide = False
    while True:
        implied = _is_implied(tokens, at, start)
        if divide and (implied or tokens[at].text == "/"):
            raise UnreadableError  # "25 / 1/3 = 75": people mean 25 / (1/3)
        if not implied and tokens[at].text not in ("*", "/") and not _is_share(tokens, at, start):
            return total, at
        divide = tokens[at].text == "/"
        value, at = _power(tokens, at + (not implied), stop, depth, percent)
        total = _bounded(total / value if divide else total * value)


def _is_implied(tokens, at, start):
    """Is the product of what is before and after `at` written without a sign, as in 2(3 + 4) and 2x?"""
    token, before = tokens[at], tokens[at - 1]
    if token.spaced or before.kind != "number" and before.text != ")":
        return False
    if token.text == "(":
        return at < 2 or tokens[at - 2].kind != "word" or before.currency  # "Question 2(3 + 4)", but "so $2(3 + 4)$"
    return before.kind == "number" and is_variable(token)


def _is_share(tokens, at, start):
    """Is there an "of" after a percentage or fraction?"""
    before = tokens[at - 1]
    fraction = before.text == "}" or before.kind == "number" and at - 2 > start and tokens[at - 2].text == "/"
    return tokens[at].text == "of" and (before.kind == "percent" or fraction)


def _power(tokens, at, stop, depth, percent):
    """power = "-" power | atom ["^" (power | "{" sum "}")], so that -2^2 = -4 and 2^3^2 = 2^9."""
    if at >= stop or at >= len(tokens) or depth > _MAX_DEPTH:
        raise UnreadableError
    if tokens[at].text == "-":
        value, at = _power(tokens, at + 1, stop, depth + 1, percent)
        return -value, at
    base, at = _atom(tokens, at, stop, depth, percent)
    if tokens[at].text != "^":
        return base, at
    read = _group if tokens[at + 1].text == "{" else _power
    exponent, at = read(tokens, at + 1, stop, depth + 1, percent)
    if isinstance(exponent, Polynomial) or exponent.denominator != 1:
        raise UnreadableError
    if not isinstance(base, Polynomial):
        bits = base.numerator.bit_length() + base.denominator.bit_length()
        if abs(exponent) * bits > _MAX_BITS:
            raise UnreadableError
    return _bounded(base ** int(exponent)), at


def _group(tokens, at, stop, depth, percent):
    """group = "{" sum "}"."""
    if tokens[at].text != "{":
        raise UnreadableError
    value, at = _sum(tokens, at + 1, stop, depth + 1, percent)
    if tokens[at].text != "}":
        raise UnreadableError
    return value, at + 1


def _atom(tokens, at, stop, depth, percent):
    """atom = number ["%"] [unit] | variable | "(" sum ")" | "\\frac" group group."""
    token = tokens[at]
    if token.text == "(":
        if token.kind == "other":
            raise UnreadableError
        value, at = _sum(tokens, at + 1, stop, depth + 1, percent)
        if tokens[at].text != ")":
            raise UnreadableError
        return value, at + 1
    if token.kind == "fraction":
        over, at = _group(tokens, at + 1, stop, depth + 1, percent)
        under, at = _group(tokens, at, stop, depth + 1, percent)
        return _bounded(over / under), at
    if is_variable(token) and (tokens[at + 1].text != "(" or tokens[at + 1].spaced):  # not f(x)
        return Polynomial(token.text, (Fraction(0), Fraction(1))), at + 1
    # "007" and the second part of "1 000" are no operands of a sum.
    if token.kind != "number" or len(token.text) > MAX_DIGITS or re.match("0[0-9]", token.text):
        raise UnreadableError
    if tokens[at + 1].kind == "percent":
        return to_number(token) / percent, at + 2
    return to_number(token), _after_unit(tokens, at + 1)


def _after_unit(tokens, at):
    """The position after the unit of a number, such as "km" or "miles per hour", if an expression goes on there."""
    end = at
    if tokens[end].kind == "word" and is_text(tokens[end], NO_UNITS) and tokens[end].text.isalpha():
        end += 1
    if tokens[end].text in ("/", "per") and tokens[end + 1].kind == "word" and len(tokens[end + 1].text) > 1:
        end += 2
    return end if end > at and tokens[end].text in ("+", "-", "*", "/", "=", ")") else at


def _bounded(value):
    for part in value.coefficients if isinstance(value, Polynomial) else (value,):
        if max(part.numerator.bit_length(), part.denominator.bit_length()) > _MAX_BITS:
            raise UnreadableError
    return value
