r"""Bounds on what SymPy writes out: powers, factorials and numbers of combinations of whole numbers.

SymPy computes `10^{99999999999}` digit by digit wherever its value may be asked for: in a comparison with an interval
or with a formula, in a determinant, in a sum. Within a worker it raises where that would have more than `BITS`. What
asks for no digits is as it was: an expression that is not evaluated, and its value to some digits.

Run inside workers: SymPy is imported where it is needed.
"""

import functools
from collections.abc import Callable
from typing import Any

BITS = 1 << 19  # of a number that is written out
LARGEST_FACTORIAL = 20_000
EXPONENT_BITS = 512  # of a whole exponent: with more, even the first digits of a power take seconds


class ImmenseError(OverflowError):
    """A number is too large to be written out."""


def install() -> None:
    """Bounds what SymPy writes out, in this process.

    Example:
      >>> install()
      >>> sympy.Integer(10) ** 3
      1000
      >>> sympy.Integer(10) ** 10**9
      ImmenseError: a number has too many digits
    """
    import sympy
    from sympy.core import evalf, numbers

    if hasattr(numbers.Integer._eval_power, "__wrapped__"):
        return
    numbers.Integer._eval_power = _unless(_is_immense, numbers.Integer._eval_power)
    numbers.Rational._eval_power = _unless(_is_immense, numbers.Rational._eval_power)
    _bound(sympy.factorial, _is_immense_factorial)
    _bound(sympy.binomial, _is_immense_choice)
    evalf.evalf_table[sympy.Pow] = _unless(_has_immense_exponent, evalf.evalf_table[sympy.Pow])


def _bound(function: Any, condition: Callable[..., bool]) -> None:
    """Bounds what a function of SymPy evaluates."""
    function.eval = classmethod(_unless(condition, function.eval.__func__))


def _unless(condition: Callable[..., bool], evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """An evaluation that raises where a condition holds: left as it is, sums would try to evaluate it for ever."""

    @functools.wraps(evaluate)
    def bounded(*arguments: Any) -> Any:
        if condition(*arguments):
            raise ImmenseError("a number has too many digits")
        return evaluate(*arguments)

    return bounded


def _is_immense(base: Any, exponent: Any) -> bool:
    """Has a power of a rational number too many bits?"""
    if not exponent.is_Rational:
        return False
    size = max(abs(base.p), base.q).bit_length() - 1
    return size * abs(exponent.p) > BITS * exponent.q


def _has_immense_exponent(power: Any, *_: Any) -> bool:
    return power.exp.is_Integer and power.exp.p.bit_length() > EXPONENT_BITS


def _is_immense_factorial(_: Any, number: Any) -> bool:
    return getattr(number, "is_Integer", False) and number.p > LARGEST_FACTORIAL


def _is_immense_choice(_: Any, number: Any, chosen: Any) -> bool:
    """Has a binomial coefficient too many factors?"""
    if not getattr(chosen, "is_Integer", False) or chosen.p <= LARGEST_FACTORIAL:
        return False
    return not getattr(number, "is_Integer", False) or number.p - chosen.p > LARGEST_FACTORIAL
