"""Finds the first false equation in stepwise arithmetic and simple algebra that a model wrote as free text.

One pass over the tokens of the text, so the time is linear in it, whatever it holds.
"""

import dataclasses
import re
from fractions import Fraction

from cgrpo_jax.critiques.step_check.expressions import (
    AFTER,
    BEFORE,
    MAX_DIGITS,
    NO_UNITS,
    UnreadableError,
    evaluate,
    is_text,
    is_variable,
    to_number,
    to_tokens,
)
from cgrpo_jax.critiques.step_check.polynomials import NoPolynomialError, Polynomial

_CONNECTIVES = set("so then thus hence therefore and that since because get gives have is are also means".split())
_WHOLES = {"total", "sum", "distance", "cost", "profit", "income"}  # "a total of 3 + 4", but not "a third of 3 + 4"
# Beside these words a number may be rounded, or an equation one that is not claimed to hold.
_ROUNDED = re.compile(
    r"round|approx|about|remain|left|nearest|integer|whole|full|complete|floor|ceil|estimat|almost|nearly"
    r"|at (?:least|most)|\bR ?\d",
    re.IGNORECASE,
)
_MAX_LINE = 1000  # characters that are searched for such words
_MAX_EQUATION = 500  # characters of an equation that is quoted
_LOOKS_ROUNDED = re.compile(r"\.(?:[0-9]{3}|[0-9]*(?:33|66|67)$)")
_HEDGED = re.compile(
    r"\b(?:if|no|not|never|suppose|assum\w*|contradict\w*|impossible|cannot|mod|false|wrong|incorrect)\b|n't|\\pmod",
    re.IGNORECASE,
)


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
    integer may not, unless words beside it say so. Equations in one variable hold if they do for every value of it and
    are false if they do for none; any other may be meant to be solved. What can't be read for certain (units that
    change, several variables, functions) is passed over.

    Example:
      >>> first_false_equation("7*8=56 6+6=13")
      StepError(step=2, text='6+6=13', given='13', expected='12')
      >>> first_false_equation(r"So $2(x + 3) = 2x + 5$.")
      StepError(step=1, text='2(x + 3) = 2x + 5', given='2x + 5', expected='2x + 6')
    """
    tokens = to_tokens(text)
    step = 0
    for left, right in _pairs(tokens):
        if not (left.worked or right.worked) or not _units_agree(tokens, left, right) or _is_label(tokens, left):
            continue
        holds = _holds(left, right)
        if holds is None:
            continue
        step += 1
        if holds:
            continue
        first, last = tokens[left.start], tokens[right.end - 1]
        written = text[first.start : last.end]
        if len(written) > _MAX_EQUATION or not _claimed(tokens, left, right, _line(text, first.start, last.end)):
            continue
        given, value = (right, left.values[0]) if left.worked else (left, right.values[0])
        number = text[tokens[given.start].start : tokens[given.end - 1].end]
        return StepError(step, " ".join(written.split()), " ".join(number.split()), _show(value, given.decimals))
    return None


def _line(text, start, end):
    """What is near an equation on its line."""
    earliest = max(0, start - _MAX_LINE)
    start = max(earliest, text.rfind("\n", earliest, start) + 1)
    return text[start : end + 200].partition("\n")[0][-_MAX_LINE:]


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of an equation, tokens `start` to `end`; `values` are its readings (25% is 25 or 0.25), likeliest first.

    A side in a variable has one reading, a polynomial.
    """

    start: int
    end: int
    values: tuple[Fraction | Polynomial, ...]
    worked: bool  # an expression, not only a number or variable
    decimals: int  # digits that a bare number shows after its point
    units: frozenset[str]  # words and signs besides its numbers
    added: bool  # it holds a sum
    rounded: bool  # a number in it looks as if it had been rounded: 0.67, 3.142

    def shows(self, value) -> bool:
        """Is this side the value, rounded or cut at the digits it shows?"""
        if not self.decimals:
            return value in self.values
        numbers = [own for own in self.values if not isinstance(own, Polynomial)]
        for own in numbers:
            unit = Fraction(1, 10**self.decimals) * (own / numbers[0] if own else 1)  # a hundredth where own is
            if abs(own - value) <= unit / 2 or own * value >= 0 and 0 <= abs(value) - abs(own) < unit:
                return True
        return False


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
        if position > 1 and tokens[position - 2].kind == "number" and is_text(before, NO_UNITS):
            return False  # "1 hour 20 minutes"
        if position > 1 and tokens[position - 2].kind == "number" and _mixed_number(tokens, position):
            return False  # "12 * 1 and 1/4"
        whole = before.text == "of" and position > 1 and tokens[position - 2].text.lower() in _WHOLES
        # "sqrt (3 + 6)" goes on from its word, "so $(x + 6)" does not.
        begins = token.kind in ("number", "fraction") or is_variable(token) or token.text == "(" and token.currency
        return begins and token.spaced and (whole or is_text(before, BEFORE))
    if is_variable(token):
        return _is_border(before)
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
        mixed = tokens[position + 1].text == "(" or _mixed_number(tokens, position + 1)
        return token.spaced and is_text(token, AFTER) and not (token.text == "and" and mixed)  # "7/3 = 2 and 1/3"
    if token.kind == "fraction":
        return False
    if token.kind == "number":  # "18 000" is one number
        return token.spaced and not _mixed_number(tokens, position) and not re.fullmatch("[0-9]{3}", token.text)
    if token.text == ",":
        return tokens[position + 1].kind != "number" or tokens[position + 1].spaced
    return token.text != "(" or token.spaced


def _mixed_number(tokens, position):
    """Do the tokens here read as the fraction of a mixed number, the 1/2 of "5 1/2"?"""
    number, over, under = [*tokens[position : position + 3], tokens[-1], tokens[-1]][:3]
    if number.kind != "number" or over.text != "/" or under.kind != "number":
        return False
    return max(len(number.text), len(under.text)) <= MAX_DIGITS and to_number(number) < to_number(under)


def _is_bullet(tokens, position):
    at_line_start = position == 0 or tokens[position - 1].kind == "newline"
    return at_line_start and tokens[position].text in ("-", "*", "+") and tokens[position + 1].spaced


def _is_border(token):
    """Can nothing before or after this token belong to an expression that ends at it?"""
    return token.kind == "newline" or token.text in ("=", ".", ",", ";", ":")


def _holds(left, right):
    """Does the equation hold; None if that depends on a variable."""
    if any(isinstance(value, Polynomial) for side in (left, right) for value in side.values):
        try:
            (difference,) = {a - b for a in left.values for b in right.values}
        except (NoPolynomialError, ValueError):
            return None
        alone = any(isinstance(side.values[0], Polynomial) and not side.worked for side in (left, right))
        # "x = x + 1" is a definition or an assignment.
        return None if alone or difference.degree else difference.coefficients == (0,)
    return any(map(right.shows, left.values)) or any(map(left.shows, right.values))


def _claimed(tokens, left, right, line):
    """Does the text, of which this is the line, say that the equation holds, and exactly?"""
    a, b = left.values[0], right.values[0]
    if isinstance(a, Polynomial) or isinstance(b, Polynomial):
        after, start = tokens[right.end], left.start
        begins = not start or _is_border(tokens[start - 1]) or is_text(tokens[start - 1], BEFORE)
        ends = _is_border(after) or after.kind == "word" and after.spaced and is_text(after, AFTER)
        return begins and ends and not _HEDGED.search(line)
    if (left.rounded and left.worked or right.rounded and right.worked) and abs(a - b) <= max(abs(a), abs(b)) / 100:
        return False  # "0.67 * 3 = 2"
    return not (abs(a - b) < 1 and _ROUNDED.search(line))


def _units_agree(tokens, left, right):
    """Are units beside the numbers such that these can be compared without them?"""
    if any(token.text == "of" for token in tokens[right.start : right.end]):
        return False  # "3/3 - 2/3 = 1/3 of 150"
    if not left.units and not right.units:
        return True
    if right.worked and left.units != right.units:
        return False  # "2 hours = 2 hours * 60 minutes"
    if any(side.added and len(side.units) > 1 for side in (left, right)):
        return False  # "1 hour + 30 minutes"
    after = set()
    for token in tokens[right.end : right.end + 3]:
        if token.kind != "word":
            break
        after.add(_unit(token))
    if right.worked and after and not after & left.units:
        return False
    if tokens[right.start].currency:
        after.add("$")
    return bool(left.units & (right.units | after))


def _is_label(tokens, left):
    """Is the number on the left the name of something, as in "Round 10 = 5 + 6"?"""
    before = tokens[left.start - 1]
    return left.start > 0 and not left.worked and before.kind == "word" and before.text.lower() not in _CONNECTIVES


def _unit(token):
    return token.text.lower().removesuffix("s").removesuffix("e")


def _side(tokens, start):
    """The longest expression from token `start`, or None."""
    first = tokens[start]
    readable = first.kind in ("number", "operator", "fraction") or is_variable(first)
    if not readable or _is_bullet(tokens, start):
        return None
    try:
        value, end = evaluate(tokens, start, percent=1)
        span = tokens[start:end]
        values = (value,)
        if any(token.kind == "percent" for token in span):
            values = _percent_readings(span, value, evaluate(tokens, start, percent=100)[0])
    except UnreadableError:
        return None
    added = any(token.text in ("+", "-") for token in span[1:])
    words = [token for token in span if token.kind == "word" and not is_variable(token)]
    if added and any(token.text == "of" for token in words):
        return None  # "1/2 of 10 + 2": half of what?
    numbers = [token.text for token in span if token.kind == "number"]
    worked = len(numbers) + sum(map(is_variable, span)) > 1
    units = {_unit(token) for token in words if token.text not in ("of", "per")}
    if units and any(token.currency for token in span):
        units.add("$")
    decimals = 0 if worked or not numbers else len(numbers[0].partition(".")[2])
    rounded = any(map(_LOOKS_ROUNDED.search, numbers))
    return _Side(start, end, values, worked, decimals, frozenset(units), added, rounded)


def _percent_readings(span, plain, hundredths):
    """The values of an expression with percentages, where 20% is 20 and where it is 0.2, likeliest first."""
    marks = [at for at, token in enumerate(span) if token.kind == "percent"]
    if len(marks) == sum(token.kind == "number" for token in span):
        return plain, hundredths
    for at in marks:
        around = (span[at - 2].text if at > 1 else "", span[at + 1].text if at + 1 < len(span) else "")
        if not set(around) & {"*", "/", "of"}:
            raise UnreadableError  # "200 + 10%"
    if any(token.text == "of" for token in span):
        return (hundredths,)
    return hundredths, plain


def _show(value, decimals):
    """The value as a person would write it: an integer or a decimal, exact or rounded like its peer."""
    if isinstance(value, Polynomial):
        return str(value)
    if value.denominator == 1:
        return str(value.numerator)
    for digits in range(1, 7):
        if (value * 10**digits).denominator == 1:
            return f"{value.numerator / value.denominator:.{digits}f}"
    return f"{value.numerator / value.denominator:.{decimals or 2}f}"
