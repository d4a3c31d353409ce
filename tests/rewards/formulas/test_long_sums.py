"""Sums with many terms: in closed form, written out or refused, in time that does not depend on their number."""

import fractions

import pytest
import sympy
from sympy import Integral, Product, Sum, oo, sin

from cgrpo_jax.rewards.formulas import bounds, long_sums

k, j, n, x = sympy.symbols("k j n x", real=True)
MANY = sympy.Pow(10, 40, evaluate=False)
N = sympy.Integer(10) ** 40


@pytest.mark.parametrize(
    ("value", "closed"),
    [
        (Sum(k, (k, 1, MANY)), N * (N + 1) / 2),
        (Sum(k, (k, -MANY, MANY)), 0),
        (Sum(k * x, (k, 1, MANY)), x * N * (N + 1) / 2),
        (Sum(k**3 / 2, (k, 1, MANY)), (N * (N + 1) / 2) ** 2 / 2),
        (Sum(1 / (k * (k + 1)), (k, 1, MANY)), N / (N + 1)),
        (Sum(1 / ((2 * k - 1) * (2 * k + 1)), (k, 1, 1012)), sympy.Rational(1012, 2025)),
        (Sum(j, (j, 1, k), (k, 1, MANY)), N * (N + 1) * (N + 2) / 6),
        (Sum(j * k, (j, 1, MANY), (k, 1, MANY)), (N * (N + 1) / 2) ** 2),
        (Sum(1 / k, (k, 1, 400)), sum(sympy.Rational(1, number) for number in range(1, 401))),
        (Sum(sympy.factorial(k), (k, 1, 5)), 153),
        (Integral(x**100, (x, 0, MANY)), N**101 / 101),
        (Integral(x * n, (x, 0, MANY), (n, 0, 2)), N**2),
        (Product(k, (k, 1, 400)), sympy.factorial(400)),
        (
            Sum(1 / (j + k), (j, 1, k), (k, 1, 20)),
            sum(sympy.Rational(1, a + b) for b in range(21) for a in range(1, b + 1)),
        ),
        (Sum(3 / 2**k, (k, 1, 2024)), 3 - sympy.Rational(3, 2**2024)),
        (Sum(2**k - k, (k, 1, 5000)), 2**5001 - 2 - 5000 * 5001 // 2),
        (Sum((-1) ** k, (k, 0, MANY)), 1),
        (Sum(1 / 3 ** (2 * k - 1), (k, -1, 300)), 27 * (1 - sympy.Rational(1, 9**302)) * sympy.Rational(9, 8)),
        (Sum(sympy.exp(k), (k, 1, 999)) * (sympy.E - 1), sympy.exp(1000) - sympy.E),
        (Sum(1 / k, (k, 1, 10_000)), sum(fractions.Fraction(1, number) for number in range(1, 10_001))),
        (Integral((x + 1) ** 1000, (x, 0, 1)), sympy.Rational(2**1001 - 1, 1001)),
        (Integral((1 - x) ** 2024, (x, 0, 1)), sympy.Rational(1, 2025)),
        (Integral(x**100_000, (x, 0, 1)), sympy.Rational(1, 100_001)),
        (
            Integral(Sum(x**k, (k, 1, 10)), (x, 0, 1000)),
            sum(sympy.Rational(1000**number, number) for number in range(2, 12)),
        ),
        (Integral(Sum(sin(x * k), (k, 1, 2)), (x, 0, 1000)), Integral(sin(x) + sin(2 * x), (x, 0, 1000))),
        (sympy.Matrix([Sum(k, (k, 1, MANY)), 1]), sympy.Matrix([N * (N + 1) / 2, 1])),
    ],
)
def test_a_long_sum_has_a_value(value, closed):
    assert sympy.expand(long_sums.settled(value) - closed) == 0 * closed


@pytest.mark.parametrize(
    "value",
    [
        Sum(sin(k), (k, 1, MANY)),
        Sum(1 / k**2, (k, 1, MANY)),
        Sum(2**k, (k, 0, MANY)),
        Sum(x**k, (k, 0, MANY)),
        Sum(sympy.factorial(k), (k, 1, MANY)),
        Sum(sin(k), (k, 1, n), (n, 1, MANY)),
        Sum(1 / (j + k), (j, 1, 100), (k, 1, 100)),
        Sum(1 / (k**2 - 4), (k, 1, MANY)),
        Sum(sin(k), (k, 100, 1)),
        Sum(sin(k), (k, 1, 1000)),
        Sum(sin(k) / k, (k, 1, oo)),
        Sum(k**-k, (k, 1, oo)),
        Product(sympy.cos(1 / k), (k, 1, oo)),
        Sum(k**500, (k, 1, n)),
        Sum(k**100_000, (k, 1, 3)),
        Integral(x**100_000, (x, 0, n)),
        Sum(x**k / k, (k, 1, 2024)),
        Sum(2**k, (k, 100, 1)),
        Product(1 + x**k, (k, 1, 200)),
        Integral(Sum(sin(k * x), (k, 1, 150)), (x, 0, 1000)),
        Sum(k, (k, 1, sympy.Pow(10, MANY, evaluate=False))),
        Sum((k + 1) ** 1000, (k, 1, n)),
        Sum(Product(j, (j, 1, k)), (k, 1, 5000)),
        Sum(Product(j, (j, 1, MANY)), (k, 1, 3)),
        Product((k + 1) / k, (k, 1, MANY)),
        Integral(sin(x**2), (x, 0, MANY)),
        Integral((x**2 + 1) ** 1000, (x, 0, 1)),
        Integral(sin(x), (x, 0, sympy.factorial(10**6, evaluate=False))),
    ],
)
def test_what_nobody_can_write_out_is_refused(value):
    bounds.install()
    with pytest.raises(bounds.ImmenseError):
        long_sums.settled(value)


@pytest.mark.parametrize(
    "value",
    [
        Sum(k, (k, 1, n)),
        Sum(1 / k**2, (k, 1, oo)),
        Sum(x**k, (k, 0, 50)),
        Sum(x * k**2, (k, 1, 10)),
        Sum(1 / (k**2 + 1), (k, 1, oo)),
        Sum(x**k / sympy.factorial(k), (k, 0, oo)),
        Sum(Product(j, (j, 1, k)), (k, 1, 20)),
        Integral(x**200, (x, 0, 1)),
        Integral(sin(x), (x, 0, sympy.pi)),
        sympy.Symbol("y") + 1,
        "no formula",
    ],
)
def test_what_is_short_or_symbolic_is_as_it_was(value):
    assert long_sums.settled(value) == value


def test_a_sum_of_powers_of_a_letter_has_a_closed_form():
    closed = long_sums.settled(Sum(x ** (2 * k + 1), (k, 1, 1000)))
    assert sympy.cancel(closed - (x**2003 - x**3) / (x**2 - 1)) == 0


def test_sums_are_the_same_up_to_the_names_of_their_indices():
    assert long_sums.same_as_written(Sum(x**k / k, (k, 1, MANY)), Sum(x**j / j, (j, 1, MANY)))
    assert not long_sums.same_as_written(Sum(x**k / k, (k, 1, MANY)), Sum(x**k / k, (k, 1, MANY + 1)))
    assert not long_sums.same_as_written(Sum(x**k / k, (k, 1, MANY)), Sum(n**k / k, (k, 1, MANY)))
