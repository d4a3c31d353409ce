from fractions import Fraction

import pytest

from cgrpo_jax.critiques.step_check.polynomials import MAX_DEGREE, NoPolynomialError, Polynomial

X = Polynomial("x", (Fraction(0), Fraction(1)))


@pytest.mark.parametrize(
    ("polynomial", "text"),
    [
        (X, "x"),
        (-X + 5, "-x + 5"),
        (2 * (X + 3), "2x + 6"),
        (X**2 * 2 - X / 2 - Fraction(3, 4), "2x^2 - (1/2)x - 3/4"),
        ((X + 1) * (X - 1), "x^2 - 1"),
        (1 - X - (1 - X), "0"),
        (Fraction(6) / (X - X + 2), "3"),
        ((X + 1) ** 0, "1"),
    ],
)
def test_arithmetic(polynomial, text):
    assert str(polynomial) == text


def test_equal_polynomials_are_equal():
    assert (X + 2) ** 3 == X**3 + 6 * X**2 + 12 * X + 8
    assert (X - X).degree == 0 and (X * X).degree == 2


@pytest.mark.parametrize(
    "operation",
    [
        lambda: X / X,
        lambda: 1 / X,
        lambda: X**-1,
        lambda: X ** (MAX_DEGREE + 1),
        lambda: X**MAX_DEGREE * X,
        lambda: X + Polynomial("y", X.coefficients),
    ],
)
def test_what_is_no_polynomial_is_an_error(operation):
    with pytest.raises(NoPolynomialError):
        operation()


def test_division_by_zero_is_python_s_error():
    with pytest.raises(ZeroDivisionError):
        X / 0
