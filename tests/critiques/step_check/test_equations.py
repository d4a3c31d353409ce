import time

import pytest
import time_growth

from cgrpo_jax.critiques.step_check.equations import StepError, first_false_equation


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("7*8=56 6+6=13", StepError(2, "6+6=13", "13", "12")),
        ("1) 5 + 6 = 12", StepError(1, "5 + 6 = 12", "12", "11")),
        ("(so 5 + 6 = 12)", StepError(1, "5 + 6 = 12", "12", "11")),
        ("- 5 + 6 = 12", StepError(1, "5 + 6 = 12", "12", "11")),
        ("13 = 6 + 6", StepError(1, "13 = 6 + 6", "13", "12")),
        ("$1,200 \u2212 $200 = $900.", StepError(1, "1,200 \u2212 $200 = $900", "900", "1000")),
        ("6 \u00d7 7 \u00f7 2 = 20", StepError(1, "6 \u00d7 7 \u00f7 2 = 20", "20", "21")),
        ("2 x 3 = 7", StepError(1, "2 x 3 = 7", "7", "6")),
        (r"\$5 \times 3 = \$16", StepError(1, r"5 \times 3 = \$16", "16", "15")),
        ("10/3 = 3.34", StepError(1, "10/3 = 3.34", "3.34", "3.33")),
        ("7/2 = 3", StepError(1, "7/2 = 3", "3", "3.5")),
        ("2+3 = 1+4 = 6", StepError(2, "1+4 = 6", "6", "5")),
        ("9 <<3*3=9>>9 then 2*(3+4)^2 = 97", StepError(2, "2*(3+4)^2 = 97", "97", "98")),
        ("1/4 = 26%", StepError(1, "1/4 = 26%", "26%", "0.25")),
        ("3 - -2 = 1", StepError(1, "3 - -2 = 1", "1", "5")),
        (r"\frac{3 + 5}{2} = 5", StepError(1, r"\frac{3 + 5}{2} = 5", "5", "4")),
        (r"2^{3} \cdot \left(1 + 1\right) = 9", StepError(1, r"2^{3} \cdot \left(1 + 1\right) = 9", "9", "16")),
        (r"5 \times 4 &= 20 \\ 3 + 3 &= 7", StepError(2, "3 + 3 &= 7", "7", "6")),
        (r"2 \cdot 1{,}500 = 3{,}001", StepError(1, r"2 \cdot 1{,}500 = 3{,}001", "3{,}001", "3000")),
        ("2(3+4) = 15", StepError(1, "2(3+4) = 15", "15", "14")),
        ("20% of $50 = $11", StepError(1, "20% of $50 = $11", "11", "10")),
        ("3/4 of 20 = 16", StepError(1, "3/4 of 20 = 16", "16", "15")),
        ("15% * 200 = 31", StepError(1, "15% * 200 = 31", "31", "30")),
        ("48 clips / 2 = 23 clips", StepError(1, "48 clips / 2 = 23", "23", "24")),
        ("5 apples + 3 apples = 9 apples", StepError(1, "5 apples + 3 apples = 9", "9", "8")),
        ("$12/hour * 5 hours = $61", StepError(1, "12/hour * 5 hours = $61", "61", "60")),
        ("That's a total of 9 + 6 = 17 liters", StepError(1, "9 + 6 = 17", "17", "15")),
        ("100, because that\u2019s 80 x 1.25 = 101", StepError(1, "80 x 1.25 = 101", "101", "100")),
        ("2/3 = 0.65", StepError(1, "2/3 = 0.65", "0.65", "0.67")),
        ("So $2(x+3) = 2x+5$.", StepError(1, "2(x+3) = 2x+5", "2x+5", "2x + 6")),
        ("1+1 = 2. (y+1)^2 = y^2+2y+2", StepError(2, "(y+1)^2 = y^2+2y+2", "y^2+2y+2", "y^2 + 2y + 1")),
        ("x + 7 - x = 8", StepError(1, "x + 7 - x = 8", "8", "7")),
        (
            r"\frac{x+1}{2} = \frac{x}{2} + 1",
            StepError(1, r"\frac{x+1}{2} = \frac{x}{2} + 1", r"\frac{x}{2} + 1", "(1/2)x + 1/2"),
        ),
        # What depends on the variable is not counted as a step.
        ("2x + 3 = 7, 2x = 4 = 2 + 3", StepError(1, "4 = 2 + 3", "4", "5")),
    ],
)
def test_first_false_equation(text, error):
    assert first_false_equation(text) == error


@pytest.mark.parametrize(
    "text",
    [
        "7*8=56 6+6=12 Answer: 56 12",
        "0.1 + 0.2 = 0.3, 10/3 = 3.33, 2/3 = 0.7, -2^2 = -4, 2^3^2 = 512, 2**10=1024",
        "x + 3 = 5. 2x + 3 = 7. x - 3 + 5 = 9. f(2) + 3 = 10. 2(3+4) = 14. 5 + 5 = 2x. 2 + 3 = 4 + y",
        "- 5 + 6 = 11\n-5 + 6 = 1\n* 2 + 2 = 4",
        "20% of 50 + 5 = 15, half of 10 + 2 = 7, 1/5 = 20 percent, 3000 + 1000 = 4 thousand, Step 1 - 5 + 6 = 11",
        "1/4 = 25%, 10% + 20% = 30%, 5 1/2 + 3 = 8 1/2, 25 / 1/3 = 75, 10,5 + 1 = 11,5",
        r"\frac{1}{2} + 3 = 3.5, \sqrt{16} + 3 = 7, 2^{3} = 8, 3 = 2 \pi",
        "3 + 4 >= 9, 3 + 4 != 8, 3 + 4 == 8, 1/0 = 5, 9^999999999 = 1, 9**9**9**9 = 1, 5 + = 6, ( = )",
        "1 000 + 5 = 1005",
        "2/3 = 0.66, 2/3 = 0.67, 18/7 = 2.5, 0.667 * 3 = 2, 0.33 * 3 = 1",
        "7/2 = 3 full boxes\n13 / 4 = 3 remainder 1\n10/3 = 3 (rounded down)\n10/3 is about 10/3 = 3",
        r"\frac{1}{2} = 0.5, 7/2 = 3\frac{1}{2}, \frac{x}{2} + \frac{x}{2} = x, 2(3)(4) = 24",
        "7/3 = 2 and 1/3, 7/3 = 2 and (1/3), 12 x 1 and 1/4 = 15, 600 x 30 = 18 000",
        "1 hour + 30 minutes = 90 minutes, 1 hour 20 minutes = 60 + 20 minutes = 80 minutes, 5 feet 3 inches = 63",
        "50 cents * 10 = 5 dollars, 100 cents * 3 = $3, 3 dozen + 2 = 38, 5 x 1/2 = 10 halves, 5m + 300cm = 8m",
        "3 weeks * 7 days = 21 days, 2 hours = 2 hours * 60 minutes, 40 hours per week * 2 = 80 hours",
        "200 + 10% = 220, 20% of 50 + 5 = 30, 1/2 of 10 + 2 = 6, 50% + 50% = 1, 100% - 20% = 80%",
        "Round 10 = 5 + 6, Weeks 1-2 = 96 - 70, 3/3 - 2/3 = 1/3 of $150",
        "log 5 + 3 = 4, sqrt (9 + 16) = 5, 7 % 3 = 1, 5! = 120, 4! + 1 = 25",
        "x = 5. x = x + 1. 2x + 3 = 7. (x+2)^2 = x^2 + 4. y = 2x = 2x + 3y. 2(x+3) = 2x+6. 5 - x = -x + 5",
        "f(x+1) = f(x) + 2. |x + 3| = x + 2. 2x + 3 = 2x' + 4. x_1 + 3 = x_1 + 4. n! = n(n-1)!. 2/x = 4/2x",
        "2^x = 2^x + 1, (x)(x) = y, Question 2(3 + 4) = 10",
        "2x + 3 = 2x + 5 has no solution\nif x + 1 = x + 2\nx + 7 = x + 2 (mod 5)\ni^2 + 3 = 2\n(1+i)(1-i) = 2",
        r"\sin x + 1 = \sin x + 2, x + 7 = x + 2 \pmod{5}, e^{i} + 1 = 0, 6/2(1+2) = 9, 1/2(4+6) = 5",
        "",
    ],
)
def test_true_or_unreadable_equations_pass(text):
    assert first_false_equation(text) is None


NUMBERS = ("(", "1+", "9", "1,234,", "1 ", "-", "=", "9^", "(1+", "1=", "1/3+", "$", "\\", "1%", "x 5", "9*")
LETTERS = ("x+", "x*", "2(", "(x+1)", "x^9*", "x+1=", "9 km ", "9 km*", "5% of ", "\\frac{1", "^{2", "\\left(")


@pytest.mark.parametrize("text", NUMBERS + LETTERS)
def test_long_unreadable_text_takes_linear_time(text):
    """Each would take minutes if any part were quadratic, or if a power were worked out."""
    start = time.perf_counter()
    assert first_false_equation(text * (50_000 // len(text))) is None
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("text", ["x+1=x+2 if ", "1+1=3 about ", "2(", "((1", "(1)", "((1))"])
def test_time_is_linear_where_equations_are_not_claimed(text):
    assert time_growth.is_linear(first_false_equation, text)


def test_brackets_that_are_closed_too_late_belong_to_no_expression():
    assert first_false_equation("2(3 + 4) = 15").expected == "14"
    assert first_false_equation("(2(3 + 4) = 15") == StepError(1, "2(3 + 4) = 15", "15", "14")
    assert first_false_equation("(" + "1 + " * 40 + "1) = 3") is None


def test_what_is_quoted_is_bounded():
    assert first_false_equation("5 " + "a" * 400 + " + 6 " + "a" * 400 + " = 12 " + "a" * 400) is None
    assert first_false_equation("x" * 5000 + " so 5 + 6 = 12 apples") == StepError(1, "5 + 6 = 12", "12", "11")
