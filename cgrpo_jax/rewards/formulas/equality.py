r"""Equality of numbers and formulas, where math-verify's own is too coarse, too strict or too slow.

  - Two exact numbers are equal if they are the same number, however close they may be.
  - A decimal is compared to 6 decimals, or to 6 digits where it is below a thousandth.
  - Two formulas are equal if they are where their letters stand for positive numbers: `1/\sqrt{n}` is `\sqrt{1/n}`.

Run inside workers: SymPy is imported where it is needed.
"""

import fractions
import functools
import math
from typing import Any

from cgrpo_jax.rewards.formulas import bounds, decimals

_INTEGER_BITS = 1 << 23  # of a whole number, whose parts need no common divisor
_DIGITS, _MORE_DIGITS = 60, 320
_LARGEST_FLOAT = 10**6  # in a formula: as an exact number it may be an exponent
_MOST_NODES = 300  # of a formula whose values are compared
# SymPy's, at what has no value or no order.
_ERRORS = (ArithmeticError, TypeError, ValueError, AttributeError, NotImplementedError)
_POINTS = ("7/5", "31/9", "2/7", "113/10", "29/30", "5/11")  # what letters stand for


def install() -> None:
    """Lets math-verify compare numbers, also those within sets, tuples and matrices, by this module."""
    from math_verify import grader

    if getattr(grader.sympy_numeric_eq, "__module__", "") == __name__:
        return
    numeric, symbolic = grader.sympy_numeric_eq, grader.sympy_symbolic_eq

    def numeric_equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
        decided = compare(a, b)
        return numeric(a, b, float_rounding, numeric_precision) if decided is None else decided

    def symbolic_equal(a: Any, b: Any) -> bool:
        decided = compare(a, b)
        return symbolic(a, b) if decided is None else decided

    numeric_equal.__module__ = symbolic_equal.__module__ = __name__
    grader.sympy_numeric_eq, grader.sympy_symbolic_eq = numeric_equal, symbolic_equal


def with_real_roots(value: Any) -> Any:
    r"""An expression in which odd roots of negative numbers are real: `\sqrt[3]{-8}` is -2.

    Example:
      >>> with_real_roots(sympy.cbrt(-8))
      -2
    """
    import sympy

    if not isinstance(value, sympy.Basic) or value.has(sympy.I):
        return value

    def is_odd_root(one: Any) -> bool:
        if not (one.is_Pow and one.exp.is_Rational and one.exp.q % 2 and one.exp.q > 1):
            return False
        return one.base.is_number and one.base.is_negative is True

    if not any(map(is_odd_root, value.atoms(sympy.Pow))):
        return value
    return value.replace(is_odd_root, lambda one: sympy.Pow(-one.base, one.exp) * (-1) ** one.exp.p)


def same(gold: Any, own: Any) -> bool:
    """Are two expressions equal? What can't be decided is not."""
    return gold == own or compare(gold, own) is True


def compare(gold: Any, own: Any) -> bool | None:
    """Are two expressions equal? None where it takes math-verify: matrices, sets, functions without a value.

    Example:
      >>> compare(sympy.Rational(1, 3), sympy.Float("0.333333")), compare(sympy.sqrt(8), 2 * sympy.sqrt(2))
      (True, True)
    """
    try:
        return _compare(gold, own)
    except _ERRORS:
        return None


def _compare(gold: Any, own: Any) -> bool | None:
    import sympy

    if not isinstance(gold, sympy.Expr) or not isinstance(own, sympy.Expr) or gold.is_Matrix or own.is_Matrix:
        return None
    gold, own = _worked_out(gold), _worked_out(own)
    if gold.is_infinite or own.is_infinite or gold is sympy.nan or own is sympy.nan:
        return None
    letters = gold.free_symbols | own.free_symbols
    if letters:
        return _compare_formulas(gold, own, letters)
    share, other = _without_percent(gold), _without_percent(own)
    if share is None and other is None:
        return _compare_numbers(gold, own)
    # 50 % is 50 as well as a half.
    plain = gold if share is None else share, own if other is None else other
    if (share is None) == (other is None) or all((exact_value(value) or 0) >= 1 for value in plain):
        if _compare_numbers(*plain):
            return True
    return _compare_numbers(gold, own)


def _worked_out(value: Any) -> Any:
    """A sum, product or power of whole numbers as one number: what SymPy asks of a nested fraction doubles by level."""
    import sympy

    if value.is_Atom or value.has(sympy.Float, sympy.UnevaluatedExpr):
        return value
    exact = exact_value(value)
    return value if exact is None else sympy.Rational(exact.numerator, exact.denominator)


# --- numbers --------------------------------------------------------------------------------------------------------


def _without_percent(value: Any) -> Any:
    import sympy

    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    return value.args[0] if value.is_Mul and len(value.args) == 2 and value.args[1] == hundredth else None


def _compare_numbers(gold: Any, own: Any) -> bool | None:
    import sympy

    if gold.has(sympy.Float) or own.has(sympy.Float):
        return _compare_decimals(gold, own)
    exact = exact_value(gold), exact_value(own)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    return _compare_irrational(gold, own)


def exact_value(value: Any) -> fractions.Fraction | None:
    """A rational number as one; None if it is none, or too large to be worth it. A decimal is what is written."""
    import sympy

    if value.is_Rational:
        return fractions.Fraction(int(value.p), int(value.q))
    if value.is_Float:
        return fractions.Fraction(str(value)) if value.is_finite and abs(_exponent(value)) < 5000 else None
    if isinstance(value, sympy.UnevaluatedExpr):
        return exact_value(value.args[0])
    if not isinstance(value, sympy.Add | sympy.Mul | sympy.Pow | sympy.factorial | sympy.binomial):
        return None
    parts = []
    for arg in value.args:
        part = exact_value(arg)
        if part is None:
            return None
        parts.append(part)
    return _combined(value, parts)


def _exponent(value: Any) -> int:
    return value._mpf_[2] + value._mpf_[3]


def _combined(value: Any, parts: list[fractions.Fraction]) -> fractions.Fraction | None:
    import sympy

    if isinstance(value, sympy.factorial | sympy.binomial):
        if any(part.denominator != 1 or not 0 <= part <= bounds.LARGEST_FACTORIAL for part in parts):
            return None
        return fractions.Fraction((math.factorial if len(parts) == 1 else math.comb)(*map(int, parts)))
    if value.is_Pow:
        base, exponent = parts
        size = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or not base and exponent < 0:
            return None
        if size * abs(exponent) > (bounds.BITS if base.denominator != 1 or exponent < 0 else _INTEGER_BITS):
            return None
        return base ** int(exponent)
    whole = all(part.denominator == 1 for part in parts)
    bits = sum(max(part.numerator.bit_length(), part.denominator.bit_length()) for part in parts)
    if bits > (_INTEGER_BITS if whole else bounds.BITS):
        return None
    return sum(parts, fractions.Fraction(0)) if value.is_Add else math.prod(parts, start=fractions.Fraction(1))


def _numeric(value: Any, digits: int) -> tuple[Any, Any] | None:
    """Real and imaginary part of a value, to so many digits; None if it has none."""
    import sympy

    try:
        found = value.evalf(digits, maxn=2 * digits)
        real, imaginary = found.as_real_imag()
    except Exception:  # noqa: BLE001  (whatever SymPy raises at what has no value)
        return None
    numbers = real.is_Number and imaginary.is_Number and sympy.Add(real, imaginary).is_finite
    return (real, imaginary) if numbers else None


def _close(first: tuple[Any, Any], second: tuple[Any, Any], digits: int) -> bool:
    import sympy

    scale = max(abs(part) for part in (*first, *second))
    error = sympy.Float(f"1e-{digits}", 15)
    return all(abs(a - b) <= error * scale for a, b in zip(first, second, strict=True))


def _compare_irrational(gold: Any, own: Any) -> bool | None:
    for digits in (_DIGITS, _MORE_DIGITS):
        first, second = _numeric(gold, digits), _numeric(own, digits)
        if first is None or second is None:
            return None
        if not _close(first, second, digits - 25) and not (_vanishes(first, digits) and _vanishes(second, digits)):
            return False
    try:
        difference = exact_value(gold - own)  # what is irrational may cancel
    except bounds.ImmenseError:
        return True
    return True if difference is None else difference == 0


def _vanishes(value: tuple[Any, Any], digits: int) -> bool:
    """Is a value zero but for what working with so many digits leaves, of which no digit is sure?"""
    return all(part == 0 or part._prec < 20 and _exponent(part) < -3 * digits for part in value)


def _compare_decimals(gold: Any, own: Any) -> bool | None:
    exact = [exact_value(value) for value in (gold, own)]
    for number, value in enumerate((gold, own)):
        if exact[number] is None:
            found = _numeric(value, 40)
            if found is None or found[1] != 0:
                return None
            exact[number] = exact_value(found[0])
    first, second = exact
    if first is None or second is None:
        return False  # one of them is far larger, or smaller, than a decimal can be
    return decimals.same_decimal(first, second)


# --- formulas with letters ------------------------------------------------------------------------------------------


def _compare_formulas(gold: Any, own: Any, letters: set[Any]) -> bool | None:
    """Compares values at a few points; None where a formula has none, or may be equal at these only."""
    import sympy

    if len(letters) > 12 or any(not letter.is_Symbol for letter in letters):
        return None
    kinds = _elementary()
    for expression in (gold, own):
        for count, node in enumerate(sympy.preorder_traversal(expression)):
            if count > _MOST_NODES or not isinstance(node, kinds):
                return None
            if isinstance(node, sympy.Float) and abs(float(node)) > _LARGEST_FLOAT:
                return None
    imaginary = gold.has(sympy.I) or own.has(sympy.I)
    gold, own = _without_floats(gold), _without_floats(own)
    order = sorted(letters, key=str)
    signs = (1, -1) if gold.has(sympy.Abs) or own.has(sympy.Abs) else (1,)
    agreed = 0
    for point in range(len(_POINTS)):
        values = {
            letter: signs[(point + number // 2) % len(signs)] * (sympy.Rational(_POINTS[(point + number) % 6]) + number)
            for number, letter in enumerate(order)
        }
        first, second = _at(gold, values), _at(own, values)
        if first is None or second is None or not imaginary and (first[1] != 0 or second[1] != 0):
            continue
        if not _close(first, second, 25):
            return False if max(abs(part) for part in (*first, *second)) > 1e-30 else None
        agreed += 1
        if agreed == 3:
            return True
    return None


@functools.cache
def _elementary() -> tuple[type, ...]:
    import sympy
    from sympy.functions.elementary import hyperbolic, trigonometric

    functions = (sympy.exp, sympy.log, sympy.Abs, trigonometric.TrigonometricFunction, hyperbolic.HyperbolicFunction)
    inverse = (trigonometric.InverseTrigonometricFunction, hyperbolic.InverseHyperbolicFunction)
    atoms = (sympy.Number, sympy.NumberSymbol, sympy.Symbol, type(sympy.I))
    return (sympy.Add, sympy.Mul, sympy.Pow, sympy.UnevaluatedExpr, *functions, *inverse, *atoms)


def _without_floats(expression: Any) -> Any:
    import sympy

    return expression.xreplace({value: sympy.Rational(str(value)) for value in expression.atoms(sympy.Float)})


def _at(expression: Any, values: dict[Any, Any]) -> tuple[Any, Any] | None:
    try:
        found = expression.evalf(40, subs=values)
        real, imaginary = found.as_real_imag()
    except Exception:  # noqa: BLE001  (whatever SymPy raises at what has no value)
        return None
    if not (real.is_Number and imaginary.is_Number) or not (real.is_finite and imaginary.is_finite):
        return None
    return real, imaginary
