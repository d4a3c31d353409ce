r"""Sums, products and integrals that SymPy would work on for ever: in closed form, written out, or refused.

SymPy adds the terms of a sum one by one where it knows no closed form, and looks for digits by hundreds of derivatives.
What is read is settled before it is compared: a sum of a polynomial, of a rational function or of powers `c r^k`
becomes its closed form, however many terms it has; another is written out if it is short; what is left has no value
that can be compared, and is equal only to what is written as it is.

Run inside workers: SymPy is imported where it is needed.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

from cgrpo_jax.rewards.formulas import bounds, equality

MOST_TERMS = 2500  # that are added or multiplied one by one, those of nested sums together
MOST_IRRATIONAL = 200  # likewise, of terms that are no rational functions
FEW_TERMS = 100  # so many are left to SymPy where a letter is left in them
MOST_NODES, MOST_BASE_NODES = 120, 20  # of a term with a closed form, and of a base of its powers
LARGEST_DEGREE, LARGEST_POLE = 40, 6  # of a polynomial, and of a denominator, with a closed form
LARGEST_EXPONENT, LARGEST_OF_LETTER = 300, 3000  # of a power in what is added, multiplied or integrated
LARGEST_OF_RATIO = 2100  # of a power of a ratio that is no rational number: SymPy cancels its closed form
MOST_RATIONAL = 10_000  # of rational numbers, joined two by two
LARGEST_BOUND = 10**6  # of an integral that is not of a polynomial


def settled(value: Any) -> Any:
    r"""An expression without sums and products that nobody can write out.

    Example:
      >>> k = sympy.Symbol("k")
      >>> settled(sympy.Sum(k, (k, 1, 10**40))) == 10**40 * (10**40 + 1) // 2
      True

    Raises:
      ImmenseError: there is a long sum or product without a closed form, or an integral over too much.
    """
    import sympy

    if not isinstance(value, sympy.Basic | sympy.MatrixBase):
        return value
    if not value.has(sympy.Sum, sympy.Product, sympy.Integral):
        return value
    value = value.xreplace({one: closed for one in _outermost(value) if (closed := _of_linear_power(one)) is not None})
    found = _outermost(value)
    for one in found:
        for power in one.atoms(sympy.Pow):
            largest = LARGEST_OF_LETTER if power.base.is_Symbol else LARGEST_EXPONENT
            if power.base.free_symbols and _is_large(power.exp, largest):
                raise bounds.ImmenseError("a power within a sum or an integral is too large")
    return value.xreplace({one: _settled(one, (), frozenset()) for one in found})


def same_as_written(first: Any, second: Any) -> bool:
    """Are two expressions that nobody can write out the same, up to the names of their indices?

    Example:
      >>> same_as_written(sympy.Sum(x**k, (k, 0, 10**9)), sympy.Sum(x**j, (j, 0, 10**9)))
      True
    """
    try:
        return bool(first == second or first.as_dummy() == second.as_dummy())
    except (ArithmeticError, TypeError, ValueError, AttributeError):
        return False


def _outermost(value: Any) -> list[Any]:
    """Sums, products and integrals that stand in no other."""
    import sympy

    found, walk = [], sympy.preorder_traversal(value)
    for node in walk:
        if isinstance(node, sympy.Sum | sympy.Product | sympy.Integral):
            found.append(node)
            walk.skip()
    return found


def _settled(value: Any, around: tuple[Any, ...], integrated: frozenset[Any]) -> Any:
    """A sum, product or integral within others, whose limits are `around` it, from the innermost on.

    The letters `integrated` are those of integrals, which have no terms.
    """
    import sympy

    own: tuple[Any, ...] = value.limits
    limits = (*own, *around)
    if isinstance(value, sympy.Integral):
        integrated |= {limit[0] for limit in own}
    function: Any = value.function
    function = function.xreplace({one: _settled(one, limits, integrated) for one in _outermost(function)})
    if isinstance(value, sympy.Integral):
        return _integral(value.func(function, *value.limits))
    value = value.func(function, *value.limits)
    if any(end.is_infinite for limit in value.limits for end in limit[1:]) and not _may_be_known(value):
        raise bounds.ImmenseError("an infinite sum or product has no closed form")
    counts = _counts(limits, integrated)
    if None in counts and any(_is_large(power.exp, LARGEST_DEGREE) for power in function.atoms(sympy.Pow)):
        raise bounds.ImmenseError("a power within a sum of any number of terms is too large")
    count = math.prod(number for number in counts if number is not None)
    is_open = None in counts or bool(value.free_symbols) or function.has(*_unevaluated())
    if count <= FEW_TERMS and is_open:
        return value
    rest = value.limits
    while isinstance(value, sympy.Sum) and rest:
        closed = _in_powers(function, rest[0], {limit[0] for limit in (*rest, *around)})
        if closed is None:
            break
        function, rest = closed, rest[1:]
    if not rest:
        return function
    if around and count <= MOST_TERMS:
        return value.func(function, *rest)
    if isinstance(value, sympy.Sum) and not is_open and len(rest) == 1:
        if (added := _added(function, rest[0])) is not None:
            return added
    most = MOST_TERMS if function.is_rational_function() else MOST_IRRATIONAL
    if count > most or is_open:
        raise bounds.ImmenseError("a sum or product has too many terms")
    return (sympy.Add if isinstance(value, sympy.Sum) else sympy.Mul)(*_terms(function, rest))


def _unevaluated() -> tuple[type, ...]:
    import sympy

    return sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative


def _may_be_known(value: Any) -> bool:
    """May an infinite sum or product have a closed form that SymPy knows: of powers, factorials and their quotients?"""
    import sympy

    index: set[Any] = {limit[0] for limit in value.limits}
    function: Any = value.function
    if isinstance(value, sympy.Product):
        return function.is_rational_function(*index)
    kinds = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Symbol, sympy.factorial, sympy.binomial, sympy.exp, *_unevaluated())
    node: Any
    for node in sympy.preorder_traversal(function):
        if node.free_symbols & index:
            if not isinstance(node, kinds):
                return False
            if node.is_Pow and node.base.free_symbols & index and node.exp.free_symbols & index:
                return False
    return True


def _terms(function: Any, limits: tuple[Any, ...]) -> Iterator[Any]:
    """Terms, one by one."""
    import sympy

    if not limits:
        yield function
        return
    *inner, (index, first, last) = limits
    if _known(last) < _known(first) - 1:
        raise bounds.ImmenseError("a sum or product runs backwards")
    for number in range(_known(first), _known(last) + 1):
        known = {index: sympy.Integer(number)}
        yield from _terms(function.xreplace(known), tuple(_with(limit, known) for limit in inner))


def _with(limit: Any, known: dict[Any, Any]) -> tuple[Any, ...]:
    """A limit whose bounds have known values in the place of letters."""
    return (limit[0], *(bound.xreplace(known) for bound in limit[1:]))


def _counts(limits: tuple[Any, ...], integrated: frozenset[Any]) -> list[int | None]:
    """How many terms each limit of sums has at most; None where that depends on a free letter, or is infinite."""
    counts: list[int | None] = []
    lower: dict[Any, Any] = {}
    upper: dict[Any, Any] = {}
    for limit in reversed(limits):  # what stands around comes first
        if len(limit) != 3:
            counts.append(None)
            continue
        ends = [_with(limit, known)[1:] for known in (lower, upper)]
        lower[limit[0]], upper[limit[0]] = ends[0][0], ends[1][1]
        if limit[0] in integrated:
            continue
        if any(bound.free_symbols or bound.is_infinite for pair in ends for bound in pair):
            counts.append(None)
        else:
            counts.append(max(max(abs(_known(last) - _known(first)) + 1, 1) for first, last in ends))
    return counts


def _known(number: Any) -> int:
    if (whole := _whole(number)) is None:
        raise bounds.ImmenseError("a bound is too large to be written out")
    return whole


def _is_large(number: Any, largest: int) -> bool:
    """Is a number larger than `largest` in absolute value, or too large to be known?"""
    return not (number.free_symbols or number.is_infinite) and abs(_known(number)) > largest


def _whole(number: Any) -> int | None:
    """The whole part of a number, None if it has none that can be written out."""
    exact = equality.exact_value(number)
    if exact is None and number.is_number:
        digits = number.evalf(15, maxn=50)
        exact = equality.exact_value(digits) if digits.is_Float else None
    return None if exact is None else math.floor(exact)


def _closed(function: Any, limit: Any) -> Any:
    """A sum's closed form: of polynomials by Faulhaber's formula, of rational functions by Gosper's; else None."""
    import sympy
    from sympy.concrete import gosper

    index, *ends = limit
    if len(ends) != 2 or any(end.is_infinite for end in ends) or not function.is_rational_function(index):
        return None
    if sum(1 for _ in sympy.preorder_traversal(function)) > MOST_NODES:
        return None
    first, last = (end if end.free_symbols else sympy.Integer(_known(end)) for end in ends)
    joined: Any = sympy.together(function)
    above, below = (sympy.Poly(part, index) for part in joined.as_numer_denom())
    if above.degree() > LARGEST_DEGREE or below.degree() > LARGEST_DEGREE:
        return None
    if not below.degree():
        sums = [
            factor * (sympy.bernoulli(power + 1, last + 1) - sympy.bernoulli(power + 1, first)) / (power + 1)
            for power, factor in enumerate(above.all_coeffs()[::-1])
        ]
        return sympy.Add(*(sympy.expand(one / below.as_expr()) for one in sums))
    # Where the denominator vanishes, a term has no value, which a closed form does not show.
    if function.free_symbols != {index} or first.free_symbols or last.free_symbols or below.degree() > LARGEST_POLE:
        return None
    if any(first <= root <= last for root in sympy.ground_roots(below) if root.is_Integer):
        raise bounds.ImmenseError("a term of a sum has no value")
    return gosper.gosper_sum(function, (index, first, last))


def _in_powers(function: Any, limit: Any, indices: set[Any]) -> Any:
    """A sum's closed form, if each of its addends is a rational function or `c r^k`; else None."""
    import sympy

    for found in (_closed(function, limit), _geometric(function, limit, indices)):
        if found is not None:
            return found
    if not function.is_Add or sum(1 for _ in sympy.preorder_traversal(function)) > MOST_NODES:
        return None
    parts = [_in_powers(part, limit, indices) for part in function.args]
    return None if None in parts else sympy.Add(*parts)


def _geometric(function: Any, limit: Any, indices: set[Any]) -> Any:
    """A sum's closed form, `c (r^{last+1} - r^first) / (r - 1)` of terms `c r^k`; None if its terms are none."""
    import sympy

    index, *ends = limit
    if len(ends) != 2 or any(end.is_infinite or end.free_symbols for end in ends):
        return None
    ratio = _ratio(function, index)
    if ratio is None:
        return None
    first, last = map(_known, ends)
    if not ratio.is_Rational:  # of others nobody knows at once that they are not 1
        base, exponent = ratio.as_base_exp()
        is_known = base == sympy.E and exponent.is_Integer or ratio.free_symbols and not ratio.free_symbols & indices
        if not is_known or max(abs(first), abs(last)) > LARGEST_OF_RATIO:
            return None
    if last < first - 1:
        raise bounds.ImmenseError("a sum or product runs backwards")
    start = function.xreplace({index: sympy.Integer(first)})
    return start * (last - first + 1 if ratio == 1 else (ratio ** (last - first + 1) - 1) / (ratio - 1))


def _ratio(function: Any, index: Any) -> Any:
    """The ratio of a term to the one before it, None if it depends on the index or is too long."""
    import sympy

    ratio: Any = sympy.Integer(1)
    for factor in sympy.Mul.make_args(function):
        (base, exponent), outer = factor.as_base_exp(), 1
        if base.is_Pow and base.has(index) and exponent.is_Integer:
            (base, exponent), outer = base.as_base_exp(), exponent
        if base.has(index) or not exponent.is_polynomial(index):
            return None
        step = exponent.diff(index) * outer
        if not step.is_Integer or abs(step) > LARGEST_DEGREE or base.is_zero:
            return None
        if step and sum(1 for _ in sympy.preorder_traversal(base)) > MOST_BASE_NODES:
            return None
        ratio *= base**step
    return ratio


def _added(function: Any, limit: Any) -> Any:
    """The sum of a rational function's values, joined two by two; None if they are no fractions, or too large."""
    import sympy

    index, first, last = limit[0], *map(_known, limit[1:])
    if last < first or last - first >= MOST_RATIONAL or not function.is_rational_function(index):
        return None
    joined: Any = sympy.together(function)
    parts = [sympy.Poly(part, index) for part in joined.as_numer_denom()]
    if any(not coefficient.is_Integer for part in parts for coefficient in part.all_coeffs()):
        return None
    factors = [[int(coefficient) for coefficient in part.all_coeffs()] for part in parts]
    size = max(abs(first), abs(last), 2).bit_length() * max(part.degree() for part in parts)
    size += max(number.bit_length() for part in factors for number in part)
    if size * (last - first + 1) > bounds.BITS:
        return None
    terms = [tuple(_at(part, number) for part in factors) for number in range(first, last + 1)]
    if not all(below for _, below in terms):
        raise bounds.ImmenseError("a term of a sum has no value")
    while len(terms) > 1:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        sums = [(a * d + c * b, b * d) for (a, b), (c, d) in pairs]
        terms = sums + terms[len(sums) * 2 :]
    return sympy.Rational(*terms[0])


def _at(coefficients: list[int], number: int) -> int:
    """A polynomial's value, by Horner's rule."""
    return functools.reduce(lambda value, coefficient: value * number + coefficient, coefficients, 0)


def _of_linear_power(value: Any) -> Any:
    """The value of an integral of `c (a x + b)^n` from one number to another, None if it is another."""
    import sympy

    if not isinstance(value, sympy.Integral) or len(value.limits) != 1:
        return None
    limit: Any = value.limits[0]
    function: Any = value.function
    index, *ends = limit
    if len(ends) != 2 or value.free_symbols or any(end.is_infinite for end in ends):
        return None
    factor, power = function.as_independent(index, as_Add=False)
    if not (power.is_Pow and power.exp.is_Integer and power.exp.p > LARGEST_EXPONENT):
        return None
    base, exponent = power.base, power.exp + 1
    slope = base.diff(index) if base.is_polynomial(index) else sympy.Integer(0)
    if not (slope.is_Rational and slope) or _is_large(exponent, LARGEST_BOUND):
        return None
    first, last = (base.xreplace({index: end}) ** exponent for end in ends)
    return factor * (last - first) / (slope * exponent)


def _integral(value: Any) -> Any:
    """An integral: over much only of a polynomial."""
    import sympy

    letters = [limit[0] for limit in value.limits]
    if value.function.has(sympy.Sum):  # of which SymPy takes seconds to find digits
        known = {one: _short(one) for one in _outermost(value.function)}
        value = value.func(value.function.xreplace(known), *value.limits)
        if not value.free_symbols and value.function.is_polynomial(*letters):
            return value.doit()
    if not any(_is_large(end, LARGEST_BOUND) for limit in value.limits for end in limit[1:]):
        return value
    if not value.function.is_polynomial(*letters):
        raise bounds.ImmenseError("an integral is over too much")
    return value.doit()


def _short(value: Any) -> Any:
    """A sum within an integral, written out where the number of its terms is known."""
    import sympy

    if not isinstance(value, sympy.Sum) or value.function.has(*_unevaluated()):
        return value
    counts = _counts(value.limits, frozenset())
    if None in counts:
        return value
    if math.prod(count for count in counts if count is not None) > FEW_TERMS:
        raise bounds.ImmenseError("a sum within an integral has too many terms")
    return sympy.Add(*_terms(value.function, value.limits))
