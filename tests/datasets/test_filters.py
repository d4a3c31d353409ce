"""Which questions a run trains on."""

import json

import pytest
import refusals
from filters_cases import run_files

from cgrpo_jax.datasets import filters
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem, problem_id

PROBLEMS = [Problem(i, f"q{i}", "a", source="mine") for i in range(5)]
RATES = {problem_id(PROBLEMS[i]): rate for i, rate in ((0, 0.0), (1, 0.25), (2, 0.75), (3, 1.0))}


def test_long_prompts():
    problems = [Problem(i, "q", "a") for i in range(3)]
    kept, skipped = filters.skip_or_fail_long(problems, [5, 9, 6], limit=6, on_long="skip")
    assert ([problem.index for problem in kept], skipped) == ([0, 2], 1)
    said = "of 3 prompts have more than max_prompt_length 6 tokens, the longest, of problem 1, 9; raise it"
    with pytest.raises(UserError, match=f"2 {said}, or set prompts.on_long_question to skip"):
        filters.skip_or_fail_long(problems, [5, 9, 7], limit=6, on_long="error")
    with pytest.raises(UserError, match=rf"3 {said}\."):
        filters.skip_or_fail_long(problems, [7, 9, 8], limit=6, on_long="skip")
    with pytest.raises(UserError, match="choose skip or error"):
        filters.skip_or_fail_long(problems, [1, 1, 1], limit=6, on_long="cut")


# --- pass rates ---------------------------------------------------------------------------------------------------


def test_an_id_is_of_source_and_question():
    same = Problem(9, "q0", "another", source="mine", grader="exact")
    assert problem_id(same) == problem_id(PROBLEMS[0]) and len(problem_id(same)) == 16
    others = [problem_id(p) for p in (*PROBLEMS, PROBLEMS[0].replace(source="other"), PROBLEMS[0].replace(source=""))]
    assert len(set(others)) == 7


@pytest.mark.parametrize(
    "minimum, maximum, kept, hard, easy",
    [
        (0.0, 1.0, [1, 2, 4], 1, 1),
        (-1, 1.0, [0, 1, 2, 4], 0, 1),
        (0.0, 0.5, [1, 4], 1, 2),
        (-1, 2, [0, 1, 2, 3, 4], 0, 0),
    ],
)
def test_questions_always_or_never_solved_are_left_out(minimum, maximum, kept, hard, easy):
    found, left = filters.by_pass_rate(PROBLEMS, RATES, minimum=minimum, maximum=maximum)
    assert [problem.index for problem in found] == kept
    assert left == filters.Left(too_hard=hard, too_easy=easy, unknown=1, total=5)


def test_nothing_left():
    with pytest.raises(UserError, match="none of 1 questions has a pass rate above data.min_pass_rate 0 and below"):
        filters.by_pass_rate(PROBLEMS[:1], RATES, minimum=0, maximum=1)


def test_reads_rates_and_takes_the_mean_of_several(tmp_path):
    path = tmp_path / "rates.jsonl"
    rows = [{"source": "s", "id": "a", "pass_rate": 1}, {"id": "b", "pass_rate": 0.5}, {"id": "a", "pass_rate": 0.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert filters.read_pass_rates(path) == {"a": 0.75, "b": 0.5}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"pass_rate": 1}, "line 1: column 'id' is missing"),
        ({"id": "a"}, "line 1: column 'pass_rate' is None; it must be a number from 0 to 1"),
        ({"id": "a", "pass_rate": 1.5}, "column 'pass_rate' is 1.5"),
        ({"id": "a", "pass_rate": True}, "column 'pass_rate' is True"),
        ({"id": "a", "pass_rate": float("nan")}, "column 'pass_rate' is nan"),
        (None, "has no rows"),
    ],
)
def test_bad_rates(tmp_path, row, message):
    path = tmp_path / "rates.jsonl"
    path.write_text("" if row is None else json.dumps(row))
    with pytest.raises(UserError, match=message):
        filters.read_pass_rates(path)


# --- in a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "none of 6 questions has a pass rate above data.min_pass_rate 0 and below data.max_pass_rate 1"),
        ({"data.min_pass_rate": 1.0}, "data.min_pass_rate 1 is not below data.max_pass_rate 1"),
        ({"data.pass_rates": "nowhere.jsonl"}, "data file 'nowhere.jsonl' does not exist"),
        ({"data.mixture": "adds"}, "data.mixture: 'adds' is not NAME:WEIGHT"),
        ({"data.mixture": "muls:1", "data.min_pass_rate": -1.0}, "data.mixture names muls, the training questions are"),
    ],
)
def test_refused(tmp_path, capsys, changes, message):
    changes = run_files(tmp_path, [0] * 6) | {"data.num_train": 0} | changes
    assert message in refusals.refused(capsys, tmp_path / "run", changes)
    assert not (tmp_path / "run").exists()
