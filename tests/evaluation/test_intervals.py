"""Wilson's interval against numbers by hand, the bootstrap against what it must tend to."""

import math

import numpy as np
import pytest

from cgrpo_jax.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    "successes, number, low, high",
    [
        # z = 1.959964, z^2 = 3.841459. At 0 of n the upper end is z^2 / (n + z^2), at n of n the lower n / (n + z^2).
        (0, 10, 0.0, 3.841459 / 13.841459),
        (10, 10, 10 / 13.841459, 1.0),
        # p = 0.8: (0.8 + 0.1920729 -+ 1.959964 sqrt(0.016 + 0.0096036)) / 1.3841459
        (8, 10, (0.9920729 - 0.3136166) / 1.3841459, (0.9920729 + 0.3136166) / 1.3841459),
        (100, 200, 0.4313609, 0.5686391),
    ],
)
def test_wilson_by_hand(successes, number, low, high):
    assert wilson(successes, number) == pytest.approx((low, high), abs=1e-6)


def test_wilson_of_another_level():
    # z of 0.6826895 is 1: (0.5 -+ sqrt(0.25 / 100 + 1 / 40000)) / 1.01 about 0.505 / 1.01
    half = math.sqrt(0.25 / 100 + 1 / 40000) / 1.01
    assert wilson(50, 100, level=0.682689492) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-8)


@pytest.mark.parametrize("successes, number", [(-1, 4), (5, 4), (0, 0)])
def test_wilson_of_impossible_counts(successes, number):
    with pytest.raises(ValueError, match="impossible"):
        wilson(successes, number)


def test_the_bootstrap_of_many_questions_is_the_normal_interval():
    values_Q = np.arange(400) % 2.0
    low_M, high_M = bootstrap([np.stack([values_Q, 3 * values_Q])], seed=1)
    half = 1.96 * 0.5 / math.sqrt(400)
    np.testing.assert_allclose([low_M[0], high_M[0]], [0.5 - half, 0.5 + half], atol=0.006)
    np.testing.assert_allclose([low_M[1], high_M[1]], [3 * low_M[0], 3 * high_M[0]])  # the same questions drawn


def test_the_bootstrap_of_groups_weighs_each_alike():
    few, many = np.array([[0.0, 1.0]]), np.ones((1, 5000))
    low_M, high_M = bootstrap([few, many], seed=0)
    assert (low_M[0], high_M[0]) == (0.5, 1.0)  # the two questions of the one move the mean by half of theirs
    (low,), (high,) = bootstrap([many], seed=0)
    assert low == high == 1


def test_the_bootstrap_has_a_seed():
    values = [np.random.default_rng(0).random((1, 30))]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_the_bootstrap_draws_the_same_however_many_at_once(monkeypatch):
    values = [np.random.default_rng(0).random((2, 30))]
    whole = bootstrap(values, seed=3, num_resamples=100)
    monkeypatch.setattr("cgrpo_jax.evaluation.intervals._AT_ONCE", 30 * 7)
    np.testing.assert_array_equal(whole, bootstrap(values, seed=3, num_resamples=100))


def test_the_bootstrap_of_nothing():
    for groups in ([], [np.zeros((1, 0))]):
        with pytest.raises(ValueError, match="at least one group, and a question in each"):
            bootstrap(groups, seed=0)
