"""Responses, gold answers and verdicts of the kinds without a parser, each judged by hand; and their time."""

import json
import pathlib

import pytest
import time_growth

from cgrpo_jax.rewards import comparisons

CASES = pathlib.Path(__file__).parent / "cases"


def read(kind):
    lines = (CASES / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", comparisons.COMPARE)
def test_every_verdict_is_right(kind):
    wrong = []
    for case in read(kind):
        assert case["kind"] == kind and case["why"] and comparisons.READABLE[kind](case["gold"]), case
        found = comparisons.COMPARE[kind](case["response"], case["gold"])
        if found[0] != case["verdict"]:
            wrong.append((case, found))
    assert not wrong


@pytest.mark.parametrize("kind", comparisons.COMPARE)
def test_the_cases_are_distinct_and_have_both_verdicts(kind):
    cases = read(kind)
    assert len({(case["response"], case["gold"]) for case in cases}) == len(cases) >= 20
    assert {case["verdict"] for case in cases} == {0, 1}


@pytest.mark.parametrize("kind", comparisons.COMPARE)
@pytest.mark.parametrize(
    "piece",
    [
        "#### ",
        "answer is ",
        "the answer is most likely ",
        "\\boxed{1},",
        "\\boxed{",
        "\\text{ {} ",
        "\\frac{1}{",
        "1 234 ",
        "1,234.",
        "10^{",
        "- ",
        "= 5 * ",
        "(B) ",
        "B, ",
        "A and B are correct, ",
        '{"answer": "C" ',
        "if the answer is B ",
        "\u9009C",
        "\n",
        "((",
        "Answer:",
    ],
)
def test_time_is_linear_in_the_response(kind, piece):
    gold = "B" if kind == "choice" else "7"
    assert time_growth.is_linear(lambda text: comparisons.COMPARE[kind](text, gold), piece)
