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


def test_a_grade_quotes_valid_unicode_alone():
    grade = answers.Grade(0.0, "4\ud83d", "ValueError: \ud800 (line 1)")
    assert (grade.extracted, grade.reason) == ("4?", "ValueError: ? (line 1)")
    assert answers.Grade(1.0, None, "").extracted is None
