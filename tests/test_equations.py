import time

import pytest

from cgrpo_jax.equations import StepError, first_false_equation


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
        "",
    ],
)
def test_true_or_unreadable_equations_pass(text):
    assert first_false_equation(text) is None


def test_long_unreadable_text_takes_linear_time():
    """Each would take minutes if any part were quadratic, or if a power were worked out."""
    start = time.perf_counter()
    for text in ("(", "1+", "9", "1,234,", "1 ", "-", "=", "9^", "(1+", "1=", "1/3+", "$", "\\", "1%", "x 5", "9*"):
        assert first_false_equation(text * (50_000 // len(text))) is None
    assert time.perf_counter() - start < 60
