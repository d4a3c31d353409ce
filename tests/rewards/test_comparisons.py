"""Responses, gold answers and verdicts of the kinds without a parser, each judged by hand; and their time."""

import json
import pathlib

import pytest

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
