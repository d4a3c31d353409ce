r"""Sums, products and integrals that SymPy would work on for ever: in closed form, written out, or refused.

SymPy adds the terms of a sum one by one where it knows no closed form, and looks for digits by hundreds of derivatives.
What is read is settled before it is compared: a sum of a polynomial or of a rational function becomes its closed form,
however many terms it has; another is written out if it is short; what is left has no value that can be compared.

Run inside workers: SymPy is imported where it is needed.
"""

import math
from collections.abc import Iterator
from typing import Any

from cgrpo_jax.rewards.formulas import bounds, equality

MOST_TERMS = 2500  # that are added or multiplied one by one, those of nested sums together
MOST_IRRATIONAL = 200  # likewise, of terms that are no rational functions
FEW_TERMS = 100  # so many are left to SymPy where a letter is left in them
MOST_NODES = 120  # of a term with a closed form
LARGEST_DEGREE, LARGEST_POLE = 40, 6  # of a polynomial, and of a denominator, with a closed form
LARGEST_EXPONENT, LARGEST_OF_LETTER = 300, 3000  # of a power in what is added, multiplied or integrated
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
    found = _outermost(value)
    for one in found:
        for power in one.atoms(sympy.Pow):
            largest = LARGEST_OF_LETTER if power.base.is_Symbol else LARGEST_EXPONENT
            if power.base.free_symbols and _is_large(power.exp, largest):
                raise bounds.ImmenseError("a power within a sum or an integral is too large")
    return value.xreplace({one: _settled(one, ()) for one in found})


def _outermost(value: Any) -> list[Any]:
    """Sums, products and integrals that stand in no other."""
    import sympy

    found, walk = [], sympy.preorder_traversal(value)
    for node in walk:
        if isinstance(node, sympy.Sum | sympy.Product | sympy.Integral):
            found.append(node)
            walk.skip()
    return found


def _settled(value: Any, around: tuple[Any, ...]) -> Any:
    """A sum, product or integral within others, whose limits are `around` it, from the innermost on."""
    import sympy

    limits = (*value.limits, *around)
    function = value.function.xreplace({one: _settled(one, limits) for one in _outermost(value.function)})
    if isinstance(value, sympy.Integral):
        return _integral(value.func(function, *value.limits))
    value = value.func(function, *value.limits)
    if any(end.is_infinite for limit in value.limits for end in limit[1:]) and not _may_be_known(value):
        raise bounds.ImmenseError("an infinite sum or product has no closed form")
    counts = _counts(limits)
    if None in counts and any(_is_large(power.exp, LARGEST_DEGREE) for power in function.atoms(sympy.Pow)):
        raise bounds.ImmenseError("a power within a sum of any number of terms is too large")
    count = math.prod(number for number in counts if number is not None)
    is_open = None in counts or bool(value.free_symbols) or function.has(*_unevaluated())
    if count <= FEW_TERMS and is_open:
        return value
    rest = value.limits
    while isinstance(value, sympy.Sum) and rest and (closed := _closed(function, rest[0])) is not None:
        function, rest = closed, rest[1:]
    if not rest:
        return function
    if around and count <= MOST_TERMS:
        return value.func(function, *rest)
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


def _counts(limits: tuple[Any, ...]) -> list[int | None]:
    """How many terms each limit has at most; None where that depends on a free letter, or is infinite."""
    counts: list[int | None] = []
    lower: dict[Any, Any] = {}
    upper: dict[Any, Any] = {}
    for limit in reversed(limits):  # what stands around comes first
        if len(limit) != 3:
            counts.append(None)
            continue
        ends = [_with(limit, known)[1:] for known in (lower, upper)]
        lower[limit[0]], upper[limit[0]] = ends[0][0], ends[1][1]
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


def _integral(value: Any) -> Any:
    """An integral: over much only of a polynomial."""
    letters = [limit[0] for limit in value.limits]
    if not any(_is_large(end, LARGEST_BOUND) for limit in value.limits for end in limit[1:]):
        return value
    if not value.function.is_polynomial(*letters):
        raise bounds.ImmenseError("an integral is over too much")
    return value.doit()
