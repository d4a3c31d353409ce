"""What takes longer than a unit test may, of tests/rewards/test_grader.py."""

import time

import patience
import pytest
from grader_cases import calls

from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rewards import known_grades

# SymPy would need the factorial's 10^(10^10) digits: this hangs whatever the machine.
HANGS = r"\boxed{10^{10^{10}}!}"


def test_timeout_kills_the_worker_and_the_next_row_is_graded():
    with grader_lib.Grader("math", num_workers=1, timeout=0.5) as grader:
        hung, fine = grader.grade([HANGS, r"\boxed{7}"], ["7", "7"])
    assert hung == grader_lib.Grade(0.0, None, "timed out after 0.5 s", timed_out=True)
    assert fine.score == 1.0


def test_a_row_that_hangs_costs_its_batch_no_other_row(monkeypatch):
    with grader_lib.Grader("math", num_workers=2, timeout=1.0) as grader:
        sizes = calls(grader, monkeypatch)
        grades = grader.grade([r"\boxed{7}", HANGS, r"\boxed{8}", r"7 it is: \boxed{7}"], ["7"] * 4)
    assert sizes == [4, 1, 1, 1, 1]
    assert [grade.score for grade in grades] == [1.0, 0.0, 0.0, 1.0]
    assert [grade.timed_out for grade in grades] == [False, True, False, False]


def test_a_grade_is_remembered_and_a_timeout_is_not(monkeypatch):
    monkeypatch.setattr(known_grades, "_REMEMBERED", 2)
    with grader_lib.Grader("math", num_workers=1, timeout=0.5) as grader:
        sizes = calls(grader, monkeypatch)
        first = grader.grade(["\\boxed{7}", HANGS], ["7", "8"])
        assert grader.grade(["\\boxed{7}"], ["7"]) == first[:1] and sizes == [1, 1]
        assert grader.grade(["\\boxed{7}"], ["8"])[0].score == 0.0 and sizes == [1, 1, 1]
        grader.grade([HANGS], ["8"])
        assert sizes == [1, 1, 1, 1]
        grader.grade(["\\boxed{9}"], ["9"])  # the third that is known, so the first is forgotten
        grader.grade(["\\boxed{7}"], ["7"])
        assert sizes == [1] * 6


ADVERSARIAL = {
    "a huge exponent": r"\boxed{9^{9^{9^{9}}}}",
    "a huge factorial": HANGS,
    "nested powers": r"\boxed{" + "2^{" * 200 + "2" + "}" * 201,
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 80 + "2" + "}" * 81,
    "open braces": r"\boxed{" * 14_000,
    "a deep sum": r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "}",
    "dollars": "$" * 20_000 + " 8",
    "an integral": r"\boxed{\int_0^1 x^{x^{x^{x}}} \sin(x^{x}) dx}",
    "a huge binomial": r"\boxed{\binom{10^{9}}{5 \cdot 10^{8}}}",
    "a long sum": r"\boxed{\sum_{k=1}^{10^{9}} \frac{1}{k^{k}}}",
}


@pytest.mark.parametrize("text", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_adversarial_latex_takes_bounded_time_and_is_no_pass(text):
    with grader_lib.Grader("math", num_workers=1, timeout=2.0) as grader:
        grader.grade(["\\boxed{1}"], ["1"])  # the worker has started
        began = time.monotonic()
        bad, good = grader.grade([text, r"so \boxed{7}"], ["7", "7"])
        assert time.monotonic() - began < patience.seconds(
            30
        )  # twice the limit, a new worker's start, and room for a busy machine
    assert bad.score == 0.0 and bad.reason and good.score == 1.0
    assert bad.timed_out == bad.reason.startswith("timed out")
