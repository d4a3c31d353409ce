"""What SymPy would write out digit by digit raises; what is small enough, or never written out, is as it was."""

import pytest
import sympy

from cgrpo_jax.rewards.formulas import bounds

TEN, MANY = sympy.Integer(10), 200_000


@pytest.fixture(autouse=True)
def _installed():
    bounds.install()


@pytest.mark.parametrize(
    "write",
    [
        lambda: TEN**MANY,
        lambda: TEN**-MANY,
        lambda: (-TEN) ** (MANY + 1),
        lambda: sympy.Rational(3, 2) ** (10 * MANY),
        lambda: sympy.Integer(4) ** sympy.Rational(10 * MANY + 1, 2),
        lambda: sympy.factorial(20_001),
        lambda: sympy.binomial(50_000, 25_000),
        lambda: sympy.Pow(TEN, MANY, evaluate=False) + 1,
        lambda: sympy.Pow(TEN, 10**200, evaluate=False).evalf(5),
    ],
)
def test_an_immense_number_is_not_written_out(write):
    with pytest.raises(bounds.ImmenseError, match="too many digits"):
        write()


def test_what_is_no_larger_is_as_it_was():
    assert TEN**1000 == 10**1000 and TEN**-2 == sympy.Rational(1, 100)
    assert sympy.factorial(20) == 2432902008176640000
    assert sympy.binomial(1_000_000, 2) == sympy.binomial(1_000_000, 999_998) == 499999500000
    assert sympy.Integer(1) ** 10**9 == 1 and sympy.Integer(-1) ** (10**9 + 1) == -1
    assert sympy.sqrt(8) == 2 * sympy.sqrt(2) and sympy.Symbol("x") ** 10**9 != 1


def test_what_is_not_evaluated_has_a_value_to_some_digits():
    power = sympy.Pow(TEN, 10**9, evaluate=False)
    assert power == sympy.Pow(TEN, 10**9, evaluate=False)
    assert str(power.evalf(5)) == "1.0000e+1000000000"


def test_it_is_installed_once():
    before = sympy.Integer._eval_power, sympy.factorial.eval
    bounds.install()
    assert (sympy.Integer._eval_power, sympy.factorial.eval) == before
