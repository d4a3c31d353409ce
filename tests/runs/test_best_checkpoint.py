"""Which checkpoint is the best, by hand."""

import math

import pytest

from cgrpo_jax.runs import best_checkpoint

NAN = math.nan


@pytest.mark.parametrize(
    ("wanted", "found", "step"),
    [
        ("pass@1", [0.1, 0.5, 0.3], 2),
        ("pass@1", [0.1, 0.5, 0.5, 0.5], 2),  # of equal ones the earliest
        ("pass@1", [0.5, 0.5], 0),
        ("-pass@1", [0.5, 0.1, 0.1, 0.3], 2),
        ("pass@1", [NAN, NAN], None),
        ("pass@1", [NAN, 0.1, NAN], 2),
        ("-pass@1", [0.0, NAN, -math.inf], 4),
        ("pass@1", [0.3, None, 0.1], 0),  # one was left out
        ("pass@1", [], None),
    ],
)
def test_the_best_by_hand(wanted, found, step):
    best = None
    for number, value in enumerate(found):
        result = None if value is None else {"pass@1": value, "mean_length": 3.0}
        best = best_checkpoint.better(best, wanted, result, step=2 * number)
    if step is None:
        assert best is None
    else:
        assert best == {"step": step, "metric": wanted, "value": found[step // 2]}


def test_another_metric_begins_again():
    best = best_checkpoint.better(None, "pass@1", {"pass@1": 0.9}, step=2)
    assert best_checkpoint.better(best, "pass@8", {"pass@1": 0.1}, step=4) is None
    assert best_checkpoint.better(best, "-pass@1", {"pass@1": 0.99}, step=4)["step"] == 4


@pytest.mark.parametrize("ks", [(1,), (1, 4), (8,), (4, 1, 4)])
def test_the_names_are_those_of_an_evaluation(ks):
    names = best_checkpoint.metrics(ks, 8)
    sampled = [f"pass@{k}" for k in dict.fromkeys(ks) if k > 1]
    assert names == ("pass@1", *sampled, *(["mean@8"] if sampled else []), "mean_length", "truncated", "ungraded")
