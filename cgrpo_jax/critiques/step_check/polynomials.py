"""Polynomials in one variable with exact coefficients: as much algebra as can be decided for certain."""

import dataclasses
from fractions import Fraction

MAX_DEGREE = 12


class NoPolynomialError(ArithmeticError):
    """The result is no polynomial in one variable, or one of too high a degree."""


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """The polynomial `sum_i coefficients[i] * variable ** i`.

    Example:
      >>> x = Polynomial("x", (Fraction(0), Fraction(1)))
      >>> str(2 * (x + 3))
      '2x + 6'

    Attributes:
      variable: its name.
      coefficients: from the constant term on; the last is not 0 unless it is the only one.
    """

    variable: str
    coefficients: tuple[Fraction, ...]

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def _of(self, coefficients):
        length = len(coefficients)
        while length > 1 and not coefficients[length - 1]:
            length -= 1
        if length - 1 > MAX_DEGREE:
            raise NoPolynomialError
        return Polynomial(self.variable, tuple(coefficients[:length]))

    def _like(self, other):
        if not isinstance(other, Polynomial):
            return self._of([Fraction(other)])
        if other.variable != self.variable:
            raise NoPolynomialError
        return other

    def __add__(self, other):
        a, b = self.coefficients, self._like(other).coefficients
        length = max(len(a), len(b))
        padded = [(*one, *[Fraction(0)] * (length - len(one))) for one in (a, b)]
        return self._of([left + right for left, right in zip(*padded, strict=True)])

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -1 * self._like(other)

    def __rsub__(self, other):
        return self._like(other) - self

    def __mul__(self, other):
        a, b = self.coefficients, self._like(other).coefficients
        product = [Fraction(0)] * (len(a) + len(b) - 1)
        for i, left in enumerate(a):
            for j, right in enumerate(b):
                product[i + j] += left * right
        return self._of(product)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other):
        divisor = self._like(other)
        if divisor.degree:
            raise NoPolynomialError
        return self * (1 / divisor.coefficients[0])

    def __rtruediv__(self, other):
        return self._like(other) / self

    def __pow__(self, exponent):
        if not 0 <= exponent <= MAX_DEGREE:
            raise NoPolynomialError
        power = self._of([Fraction(1)])
        for _ in range(exponent):
            power = power * self
        return power

    def __str__(self):
        terms = []
        for exponent, coefficient in reversed(list(enumerate(self.coefficients))):
            if not coefficient and self.degree:
                continue
            size = str(abs(coefficient))
            if exponent:
                size = "" if size == "1" else f"({size})" if "/" in size else size
                size += self.variable + (f"^{exponent}" if exponent > 1 else "")
            sign = "-" if coefficient < 0 else "+"
            terms.append(f" {sign} {size}" if terms else sign.strip("+") + size)
        return "".join(terms)
