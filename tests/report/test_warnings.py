import pytest

from cgrpo_jax.report import warnings

CALM = {"skipped_updates": 0, "entropy": 0.5, "frac_reward_zero_std": 0.3, "grade/failures": 0, "critic/valid": 0.9}


def titles(*changes):
    rows = [CALM] * 8 + [CALM | change for change in changes]
    return [one.title for one in warnings.find(rows)]


def test_a_calm_run_has_none():
    assert titles({}) == [] and warnings.find([]) == []


@pytest.mark.parametrize(
    ("title", "change"),
    [
        ("updates were skipped", {"skipped_updates": 1}),
        ("the grader failed", {"grade/timeouts": 2}),
        ("entropy jumps", {"entropy": 1.6}),
        ("critiques that nobody wrote", {"critic/unanswered": 1}),
        ("trained texts speak of the critique", {"refine/mentions_critique": 0.2}),
        ("many responses are cut off", {"completions/clipped_ratio": 0.3}),
        ("sampler and trainer disagree", {"sampling/sampling_logp_difference/mean": 0.06}),
    ],
)
def test_what_deserves_a_look_is_said(title, change):
    assert titles(change) == [title]


def test_rates_are_of_the_last_iterations():
    assert titles(*[{"critic/valid": 0.1}] * 10) == ["the critic is hardly ever right"]
    assert titles(*[{"critic/valid": 0.1}] * 2) == []
    assert titles(*[{"entropy": 0.01}] * 3) == ["entropy is nearly gone"]


def test_questions_that_teach_nothing_are_said():
    said = lambda dead, **row: [one.title for one in warnings.find([CALM | row] * 10, dead)]  # noqa: E731
    assert said([0.5] * 10) == said([]) == said([None] * 10) == []
    assert said([None, 0.9]) == ["most questions teach nothing"]
    assert said([0.9] * 10, frac_all_right=0.8) == ["most questions are too easy by now"]


def test_a_metric_that_was_not_finite_says_nothing():
    assert titles({"skipped_updates": None, "entropy": None}) == []
