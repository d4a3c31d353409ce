"""The rules of `normalize`, each by the examples that stand beside it."""

import time

import pytest

from cgrpo_jax.rewards.formulas import normalize

EXAMPLES = [(rule, given, made) for rule in normalize.RULES for given, made in rule.examples]


@pytest.mark.parametrize(
    ("rule", "given", "made"), EXAMPLES, ids=[f"{rule.name}: {given}" for rule, given, _ in EXAMPLES]
)
def test_a_rule_makes_of_its_examples_what_the_table_says(rule, given, made):
    assert rule.apply(given) == made
    assert given == made or not rule.needs or any(part in given for part in rule.needs)


def test_every_rule_has_a_name_of_its_own_and_an_example():
    assert len({rule.name for rule in normalize.RULES}) == len(normalize.RULES)
    assert all(rule.examples for rule in normalize.RULES)


@pytest.mark.parametrize(
    "answer",
    ["42", "-7", r"\frac{1}{2}", "x^2+1", "(1,2)", r"3\sqrt{13}", "p - q", "2xy", "1,2", r"\pi", "y = 2x + 3", "[0,1)"],
)
def test_what_the_parser_reads_right_stays(answer):
    assert normalize.normalize(answer) == answer


@pytest.mark.parametrize("answer", ["2 3", "12 34", "x = 2 3"])
def test_numbers_side_by_side_are_unreadable(answer):
    with pytest.raises(normalize.Unreadable, match="two numbers beside each other"):
        normalize.normalize(answer)


@pytest.mark.parametrize(
    "part", ["{", "(", "\\frac", "1", "1 ", "\\text{", "sqrt(", "\u221a", "0.", "^\\circ", "m ", "\\sin ", "]"]
)
def test_time_is_about_linear(part):
    def seconds(number):
        began = time.process_time()
        with_end = part * number + "x"
        for _ in range(3):
            try:
                normalize.normalize.__wrapped__(with_end)
            except normalize.Unreadable:
                pass
        return time.process_time() - began

    seconds(10)
    assert seconds(400 // len(part) * 2) < 0.5  # an answer has 1000 characters at most
