"""A table of responses, gold answers and verdicts, each judged by hand, and why."""

import collections
import json
import pathlib

import pytest

from cgrpo_jax.rewards import grader

CASES = [
    json.loads(line)
    for line in pathlib.Path(__file__).with_name("grader_cases.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_the_table_is_large_and_has_both_verdicts_of_each_kind():
    assert len(CASES) >= 300
    assert len({(case["kind"], case["response"], case["gold"]) for case in CASES}) == len(CASES)
    numbers = collections.Counter((case["kind"], case["verdict"]) for case in CASES)
    assert min(numbers[kind, verdict] for kind in ("math", "choice", "numeric", "exact") for verdict in (0, 1)) >= 7
    assert all(case["why"] for case in CASES)


@pytest.mark.parametrize("kind", ["math", "choice", "numeric", "exact"])
def test_every_verdict_is_right(kind):
    cases = [case for case in CASES if case["kind"] == kind]
    grader.check_gold(kind, [case["gold"] for case in cases], timeout=30.0)
    grades = grader.grade(kind, *([case[key] for case in cases] for key in ("response", "gold")), timeout=30.0)
    wrong = [(case, grade) for case, grade in zip(cases, grades, strict=True) if grade.score != case["verdict"]]
    assert not wrong
