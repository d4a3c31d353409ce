"""Distinct n-grams, pass rates and kept rows by difficulty, by hand."""

import pytest
from rollout_cases import rollout, spell

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.evaluation.diversity import BINS, by_difficulty, distinct_ngrams, pass_rates
from cgrpo_jax.records import Problem, RowIndex, Stage, problem_id


@pytest.mark.parametrize(
    "texts, n, expected",
    [
        ([[1, 2, 3], [1, 2, 4]], 2, (3, 4)),
        ([[1, 1, 1, 1]], 2, (1, 3)),
        ([[1, 2], [1, 2]], 1, (2, 4)),
        ([[1, 2], []], 3, (0, 0)),  # shorter than an n-gram
        ([], 2, (0, 0)),
    ],
)
def test_distinct_ngrams(texts, n, expected):
    assert distinct_ngrams(texts, n=n) == expected


def test_pass_rates_count_graded_responses_alone(tmp_path):
    one, two = Problem(0, "a", "1", source="some"), Problem(1, "b", "1", source="some")
    at = RowIndex(0)
    rows = [rollout(at.replace(response=n), reward=float(n == 0)) for n in range(4)]
    refined = rollout(at.replace(stage=Stage.REFINEMENT), parent=rows[1], reward=1.0)
    ungraded = rollout(RowIndex(1), reward=0.0, ungraded=True)
    other = rollout(RowIndex(1, response=1), reward=0.5)
    made = [*((row, one) for row in [*rows, refined]), (ungraded, two), (other, two)]
    path = tmp_path / "step_00000000.parquet"
    rollouts.write(path, [rollouts.Row(row, problem, "math") for row, problem in made], iteration=0, spell=spell)
    assert pass_rates([path], pass_threshold=1.0) == {problem_id(one): 0.25, problem_id(two): 0.0}
    assert pass_rates([path], pass_threshold=0.5) == {problem_id(one): 0.25, problem_id(two): 1.0}


def test_kept_rows_by_difficulty():
    rates = {"never": 0.0, "quarter": 0.25, "third": 1 / 3, "most": 0.8, "always": 1.0, "not kept": 0.0}
    kept = {"never": 3, "quarter": 2, "third": 1, "most": 4, "always": 5, "other": 7}
    assert by_difficulty(kept, rates) == {
        "0": 3, "to 1/4": 2, "to 1/2": 1, "below 1": 4, "1": 5, "unknown": 7, "hard share": 5 / 15,
    }  # fmt: skip
    assert by_difficulty({}, rates) == {} and by_difficulty({"other": 1}, rates) == {"unknown": 1}
    assert [most for _, most in BINS] == sorted(most for _, most in BINS)
