"""The numbers of collected rows by hand, from files."""

import numpy as np
import pytest
from rollout_cases import rollout, spell

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.evaluation import collection_summary
from cgrpo_jax.evaluation.collection import UTILITY
from cgrpo_jax.evaluation.estimators import wilson
from cgrpo_jax.records import Author, Problem, RowIndex, Stage

PROBLEM = Problem(0, "a", "1", source="some")
WRONG, RIGHT = 0.0, 1.0


def response(question, number, reward):
    return rollout(RowIndex(question, response=number), reward=reward or 0.0, ungraded=reward is None)


def critique(of, number, verdict, author=Author.CRITIC, **fields):
    index = of.index.replace(stage=Stage.CRITIQUE, critique=number)
    return rollout(index, "said", author, parent=of, verdict=verdict, **fields)


def refinement(of, number, reward, utility):
    index = of.index.replace(stage=Stage.REFINEMENT, refinement=number)
    row = rollout(index, parent=of, reward=reward or 0.0, ungraded=reward is None)
    return row.replace(rewards=((UTILITY, utility),))


def write(path, texts):
    rows = [rollouts.Row(one, PROBLEM, "" if one.stage == Stage.CRITIQUE else "math") for one in texts]
    rollouts.write(path, rows, iteration=0, spell=spell)


def make(folder):
    """Two files: a question of a wrong and a right response, and one whose responses are wrong and not graded."""
    wrong, right = response(0, 0, WRONG), response(0, 1, RIGHT)
    fixing, blind = critique(wrong, 0, False), critique(wrong, 1, True)
    harmful, silent = critique(right, 0, False), critique(right, 1, None)
    refined = [
        refinement(fixing, 0, RIGHT, 1.0), refinement(fixing, 1, WRONG, 0.5),
        refinement(blind, 0, WRONG, 0.5), refinement(blind, 1, None, None),
        refinement(harmful, 0, WRONG, 0.0), refinement(silent, 0, RIGHT, 0.5),
    ]  # fmt: skip
    write(folder / "step_00000000.parquet", [wrong, right, fixing, blind, harmful, silent, *refined])
    other, ungraded = response(5, 0, WRONG), response(5, 1, None)
    by_rule = critique(other, 0, False, Author.RULE, logp=np.zeros(1, np.float32))
    missing = critique(other, 1, None, ungraded=True)
    write(folder / "step_00000001.parquet", [other, ungraded, by_rule, missing, refinement(by_rule, 0, RIGHT, 1.0)])
    return sorted(folder.iterdir())


@pytest.fixture
def summary(tmp_path):
    return collection_summary.summarize(make(tmp_path), pass_threshold=1.0, seed=0)


def test_counts(summary):
    counts = ("questions", "responses", "critiques", "refinements", "ungraded", "unanswered")
    assert [summary[name] for name in counts] == [2, 4, 6, 7, 2, 1]


def test_shares_by_hand(summary):
    values = {name: one["value"] for name, one in summary.items() if isinstance(one, dict)}
    assert values == pytest.approx(
        {
            "solved": 1 / 2,
            "pass@1": 1 / 4,  # of four responses, one of which has no verdict
            "fix_rate": 2 / 4,  # of 1, 0, 0 and 1; one refinement has no verdict
            "break_rate": 1 / 2,
            "utility": (0.75 + 0.5 + 0.0 + 0.5 + 1.0) / 5,  # a mean of critiques, each the mean of its refinements
            "verdict_accuracy": 1 / 4,  # of those of a model; the endpoint's one did not come
            "false_right": 1 / 2,
            "false_wrong": 1 / 2,
            "malformed": 1 / 4,
        }
    )
    for one in summary.values():
        assert not isinstance(one, dict) or one["low"] is None or 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert (summary["solved"]["low"], summary["solved"]["high"]) == wilson(1, 2)


def test_what_there_is_none_of_is_left_out(tmp_path):
    write(tmp_path / "step_00000000.parquet", [response(0, 0, WRONG)])
    found = collection_summary.summarize(sorted(tmp_path.iterdir()), pass_threshold=1.0, seed=0)
    assert {name for name, one in found.items() if isinstance(one, dict)} == {"solved", "pass@1"}
    assert found["pass@1"] == {"value": 0.0, "low": None, "high": None}
    assert "pass@1  0.000 (of one question: no interval)  of the responses" in collection_summary.table(found)


def test_hints_have_no_verdict_to_be_right(tmp_path):
    with_verdicts, without = (
        collection_summary.summarize(make(tmp_path), pass_threshold=1.0, seed=0, have_verdicts=have)
        for have in (True, False)
    )
    named = {"verdict_accuracy", "false_right", "false_wrong", "malformed"}
    assert with_verdicts.keys() - without.keys() == named and without["utility"] == with_verdicts["utility"]


def test_the_threshold_decides_what_is_right(tmp_path):
    write(tmp_path / "step_00000000.parquet", [response(0, 0, 0.5), response(0, 1, 0.25)])
    for threshold, share in ((0.5, 0.5), (0.25, 1.0), (1.0, 0.0)):
        found = collection_summary.summarize(sorted(tmp_path.iterdir()), pass_threshold=threshold, seed=0)
        assert found["pass@1"]["value"] == share


def test_the_table_names_each_number_and_what_has_no_verdict(summary):
    lines = collection_summary.table(summary).splitlines()
    assert lines[0] == "2 questions, 4 responses, 6 critiques, 7 refinements"
    assert [line.split("  ")[0] for line in lines[2:11]] == [
        "solved", "pass@1", "fix rate", "break rate", "utility", "verdict accuracy", "false right", "false wrong",
        "malformed",
    ]  # fmt: skip
    assert lines[11] == "1 critiques did not come from their endpoint"
    assert lines[12].startswith("2 texts have no verdict, because their grader failed (responses and refinements: 2)")


def test_diversity_of_the_responses_to_a_question(tmp_path):
    """Answers that differ, of a question; runs of four tokens that differ, of all such runs."""
    ids = ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2], [1, 2, 3, 4, 5])
    texts = []
    for number, (some, answer) in enumerate(zip(ids, ("7", "7", None, "8"), strict=True)):
        one = response(0, number, WRONG).replace(extracted=answer)
        texts.append(one.replace(token_ids=np.array(some, np.int32), logp=np.zeros(len(some), np.float32)))
    texts.append(response(1, 0, WRONG).replace(extracted="7"))
    write(tmp_path / "step_00000000.parquet", texts)
    found = collection_summary.summarize(sorted(tmp_path.iterdir()), pass_threshold=1.0, seed=0)
    assert found["distinct_answers"]["value"] == (2 + 1) / (3 + 1)
    assert found["distinct_4grams"]["value"] == 3 / 6
