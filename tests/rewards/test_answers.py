"""Where a response has its final answer, and the answers that are compared without a parser."""

import pytest

from cgrpo_jax.rewards import answers


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{5} \boxed{6", "5"),
        (r"\boxed{1}$, $\boxed{2}$ and $\boxed{3}", "1, 2, 3"),
        ("none", None),
    ],
)
def test_boxed(text, box):
    assert answers.boxed(text) == box


def test_without_thinking():
    assert answers.without_thinking("<think>a</think>b") == "b"
    assert answers.without_thinking("a</think>b") == "b"
    assert answers.without_thinking("b<think>a") == "b"
    assert answers.without_thinking("b") == "b"


@pytest.mark.parametrize("text", [r"so \boxed{12", r"\boxed{1} then \boxed{\frac{1}{2}", "\\boxed{"])
def test_a_text_that_breaks_off_within_its_box(text):
    assert answers.breaks_off(text)
    assert not answers.breaks_off(text + "}}")


def test_what_is_said_to_be_the_answer():
    assert answers.said("The answer is 5. The other is 6.") == "5"
    assert answers.said("**Answer:** 3.5 cm\nThanks") == "3.5 cm"
    assert answers.said("answer is 1\n#### 18") == "18"
    assert answers.said("nothing of it") is None
    assert answers.said("answer:") == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18.0),
        ("$1,200.50", 1200.5),
        (r"\$5", 5.0),
        ("-3", -3.0),
        ("\u22123", -3.0),
        ("50%", 50.0),
        (r"50\%", 50.0),
        ("3/4", 0.75),
        (r"\frac{3}{4}", 0.75),
        (r"-\frac{3}{4}", -0.75),
        ("1.5e3", 1500.0),
        (r"1.5 \times 10^{3}", 1500.0),
        ("2*10^-3", 0.002),
        ("7.", 7.0),
        ("$18$", 18.0),
        ("three", None),
        ("1/0", None),
        ("1e999", None),
        ("3 or 4", None),
        ("2 1/2", 2.5),
        (r"2\frac{1}{2}", 2.5),
        (r"$-2 \dfrac{3}{4}$", -2.75),
        (r"\$3 1/4", 3.25),
        ("12 1/2%", 12.5),
        ("21/2", 10.5),
        ("2 5/2", None),
        ("2 1/0", None),
        ("2 1/2 hours", None),
        ("1 2 1/2", None),
        ("2, 1/2", None),
        ("2\n1/2", None),
        ("1,23", None),
        ("", None),
    ],
)
def test_numbers_as_gold_answers(text, value):
    assert answers.read_number(text) == (None if value is None else pytest.approx(value, rel=1e-12))


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(b)", "B"), (r"\text{(J)}", "J"), ("C. Paris", "C"), ("K", None), ("A triangle", None), ("", None)],
)
def test_letters_as_gold_answers(text, letter):
    assert answers.read_choice(text) == letter


def test_a_grade_quotes_valid_unicode_alone():
    grade = answers.Grade(0.0, "4\ud83d", "ValueError: \ud800 (line 1)")
    assert (grade.extracted, grade.reason) == ("4?", "ValueError: ? (line 1)")
    assert answers.Grade(1.0, None, "").extracted is None
