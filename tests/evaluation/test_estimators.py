"""pass@k and maj@k against hand counts, enumeration and their definitions; intervals against numbers by hand."""

import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.estimators import (
    bootstrap,
    bootstrap_ratios,
    by_votes,
    group_sizes,
    is_number,
    maj_at_k,
    normal_form,
    pass_at_k,
    wilson,
)


def test_pass_at_k_by_hand():
    # C(3, 2) / C(4, 2) = 3/6 of the pairs hold no right sample if 1 of 4 is right; all pairs do if none is.
    assert pass_at_k([1], 4, 2) == 0.5
    assert pass_at_k([1, 0], 4, 2) == 0.25
    # One right of 256: a subset of 64 holds it with probability 64/256.
    assert pass_at_k([1], 256, 64) == 0.25
    # Three wrong samples can't fill a subset of 4.
    assert pass_at_k([2], 5, 4) == 1.0


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_is_the_average_over_all_subsets(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert math.isclose(pass_at_k([correct], n, k), expected, rel_tol=1e-15)


def test_pass_at_k_of_one_is_the_mean_and_k_of_n_is_whether_any():
    counts = [0, 3, 256, 17]
    assert math.isclose(pass_at_k(counts, 256, 1), sum(counts) / 256 / 4, rel_tol=1e-15)
    assert pass_at_k(counts, 256, 256) == 0.75


def test_pass_at_256_samples_agree_with_the_product_form():
    # 1 - prod_{i = n-c+1 .. n} (1 - k / i), the form of the paper's listing.
    for correct, k in itertools.product([1, 2, 100, 128, 200], [1, 8, 128, 200]):
        wrong = 256 - correct
        expected = 1.0 if wrong < k else 1 - np.prod(1 - k / np.arange(wrong + 1, 257))
        np.testing.assert_allclose(pass_at_k([correct], 256, k), expected, rtol=1e-12)


def test_pass_at_k_takes_numpy_counts():
    assert pass_at_k(np.array([1, 0], np.int32), np.int64(4), 2) == 0.25


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_out_of_range(k):
    with pytest.raises(UserError, match=f"pass@{k} can't be estimated from 4 samples; use 1 <= k <= 4"):
        pass_at_k([1], 4, k)


def test_pass_at_k_of_impossible_counts():
    with pytest.raises(ValueError, match="5 correct samples of 4 are impossible"):
        pass_at_k([1, 5], 4, 2)
    with pytest.raises(ValueError, match="no questions"):
        pass_at_k([], 4, 2)


# --- maj@k, by a vote over all ordered subsets ------------------------------------------------------------------------


def test_maj_at_k_by_hand():
    # Of the pairs of [r, r, w] one is right, two are ties in which the right one is seen first half the time.
    assert maj_at_k(2, [1], num_samples=3, k=2) == pytest.approx(2 / 3)
    assert maj_at_k(2, [1], num_samples=3, k=3) == 1
    assert maj_at_k(1, [2], num_samples=3, k=3) == 0
    # One right of 256 that no other answer outvotes: every subset that holds it is right.
    assert maj_at_k(1, [], num_samples=256, k=64) == pytest.approx(0.25)
    # All 256 are taken: the vote is the vote, and a tie of three counts a third.
    assert maj_at_k(128, [128], num_samples=256, k=256) == pytest.approx(0.5)
    assert maj_at_k(129, [127], num_samples=256, k=256) == 1
    assert maj_at_k(80, [80, 80], num_samples=256, k=256) == pytest.approx(1 / 3)
    assert maj_at_k(0, [3], num_samples=256, k=200) == 0


def voted(votes, right, k):
    """The mean over all ordered subsets: most votes win, of equally many the one seen first."""
    outcomes = []
    for order in itertools.permutations(votes, k):
        counts = Counter(vote for vote in order if vote is not None)  # most_common keeps the order of first sight
        outcomes.append(bool(counts) and counts.most_common(1)[0][0] == right)
    return sum(outcomes) / len(outcomes)


@pytest.mark.parametrize(
    "votes",
    [
        [0, 0, 0, 1, 1, 2],
        [0, 1, 2, 3, 4, None],
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, None, None],
        [0, 1, 1, 2, 2, None],
        [None, None, None, 0, 1, 1],
        [1, 1, 2, None],
    ],
)
def test_maj_at_k_is_the_vote_over_all_ordered_subsets(votes):
    sizes = group_sizes(votes, [vote == 0 for vote in votes])
    for k in range(1, len(votes) + 1):
        assert maj_at_k(*sizes, num_samples=len(votes), k=k) == pytest.approx(voted(votes, 0, k), abs=1e-12)


@pytest.mark.parametrize("right, wrong", [(100, [60, 50, 46]), (3, [1] * 253), (120, [120, 16]), (1, [255])])
def test_maj_at_k_of_256_samples(right, wrong):
    assert maj_at_k(right, wrong, num_samples=256, k=1) == pytest.approx(right / 256)
    values = [maj_at_k(right, wrong, num_samples=256, k=k) for k in (2, 16, 64, 256)]
    assert all(0 <= value <= 1 for value in values)
    # A pair is decided by the right answer if both are, or if it is seen first of two that differ: as one sample.
    assert values[0] == pytest.approx(right / 256)


def test_maj_at_k_of_two_answers_are_a_binomial_tail():
    # Odd k, two answers, no sample without a vote: hypergeometric.
    expected = sum(math.comb(150, m) * math.comb(106, 65 - m) for m in range(33, 66)) / math.comb(256, 65)
    assert maj_at_k(150, [106], num_samples=256, k=65) == pytest.approx(expected, rel=1e-12)


def test_maj_at_k_of_the_largest_number_of_samples():
    assert maj_at_k(512, [512], num_samples=1024, k=512) == pytest.approx(0.5)


@pytest.mark.parametrize("samples, k", [(4, 0), (4, 5), (1025, 2)])
def test_maj_at_k_out_of_range(samples, k):
    with pytest.raises(UserError, match=f"maj@{k} can't be computed from {samples} samples"):
        maj_at_k(1, [1], num_samples=samples, k=k)


@pytest.mark.parametrize("right, wrong", [(3, [2]), (-1, []), (1, [0])])
def test_maj_at_k_of_impossible_votes(right, wrong):
    with pytest.raises(ValueError, match="impossible"):
        maj_at_k(right, wrong, num_samples=4, k=2)


@pytest.mark.parametrize(
    "kind, one, other",
    [
        ("numeric", "$1,200.00", "1200"),
        ("numeric", "\u22125", "-5.0"),
        ("numeric", "1.234,50", "1234.5"),
        ("numeric", "1/2", "0.5"),
        ("numeric", "10^{6}", "1 000 000"),
        ("math", "0.50", ".5"),
        ("math", "-0", "0"),
        ("exact", "a  b\n", "a b"),
        ("choice", "b", "B"),
        ("trace", "56  12", "56 12"),
    ],
)
def test_equal_answers_have_one_normal_form(kind, one, other):
    assert normal_form(one, kind) == normal_form(other, kind)


@pytest.mark.parametrize(
    "kind, one, other",
    [
        ("numeric", "1200", "1201"),
        ("numeric", "0,5", "5"),
        ("math", "x^2", "x^3"),
        ("exact", "1.0", "1"),
        ("exact", "a", "A"),
        ("math", "nan", "inf"),
        ("math", "1e400", "1e401"),
    ],
)
def test_other_answers_have_another(kind, one, other):
    assert normal_form(one, kind) != normal_form(other, kind)


def test_which_forms_are_numbers():
    assert is_number(normal_form("$1,200", "math")) and is_number("0.5") and not is_number("\\frac{1}{2}")
    assert not is_number("nan")


def test_forms_by_votes():
    assert by_votes(["b", "a", "c", "a", "b"]) == ["b", "a", "c"]


def test_group_sizes():
    assert group_sizes([0, 1, None, 1, 2, 0], [True, False, False, False, False, True]) == (2, [2, 1])


# --- intervals: Wilson by hand, the bootstrap against what it must tend to --------------------------------------------


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


@pytest.mark.parametrize("level", [0.6826, 0.95, 0.99])
@pytest.mark.parametrize("number", [1, 2, 7, 300, 14042])
def test_wilson_is_its_formula(number, level):
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    for successes in {0, 1, number // 3, number - 1, number}:
        share = successes / number
        middle = share + z * z / (2 * number)
        half = z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
        low, high = ((middle + sign * half) / (1 + z * z / number) for sign in (-1, 1))
        found = wilson(successes, number, level=level)
        assert found == pytest.approx((low, high), abs=1e-12)
        # At the ends exactly 0 and 1, whatever the formula is rounded to.
        assert (found[0] == 0) == (successes == 0) and (found[1] == 1) == (successes == number)


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
    monkeypatch.setattr("cgrpo_jax.evaluation.estimators._AT_ONCE", 30 * 7)
    np.testing.assert_array_equal(whole, bootstrap(values, seed=3, num_resamples=100))


def test_the_bootstrap_of_nothing():
    for groups in ([], [np.zeros((1, 0))]):
        with pytest.raises(ValueError, match="at least one group, and a question in each"):
            bootstrap(groups, seed=0)


def test_the_bootstrap_of_ratios_is_that_of_means_where_all_questions_have_as_many():
    part_MQ = np.random.default_rng(3).integers(0, 5, (2, 40)).astype(float)
    low, high = bootstrap_ratios(part_MQ, np.full((2, 40), 4.0), seed=5)
    low_of_mean, high_of_mean = bootstrap([part_MQ / 4], seed=5, num_resamples=20_000)
    np.testing.assert_allclose([low, high], [low_of_mean, high_of_mean], atol=0.02)


def test_the_bootstrap_of_ratios_draws_what_is_of_a_question_together():
    """Eight answers to each of twelve questions that are all alike tell no more than twelve answers."""
    right = np.array([[1.0] * 6 + [0.0] * 6])
    one = bootstrap_ratios(right, np.ones((1, 12)), seed=0)
    eight = bootstrap_ratios(8 * right, np.full((1, 12), 8.0), seed=0)
    np.testing.assert_array_equal(one, eight)
    low, high = wilson(48, 96)
    assert high - low < eight[1][0] - eight[0][0]


def test_the_bootstrap_of_ratios_weighs_questions_by_what_they_have():
    # Two draws of two questions: both the first (1 of 1), both the second (0 of 3), or one each (1 of 4).
    low, high = bootstrap_ratios(np.array([[1.0, 0.0]]), np.array([[1.0, 3.0]]), seed=0, level=0.4)
    assert (low[0], high[0]) == (0.25, 0.25)


def test_the_bootstrap_of_ratios_leaves_draws_of_nothing_out():
    part, whole = np.array([[1.0, 1.0, 0.0]]), np.array([[1.0, 2.0, 0.0]])
    low, high = bootstrap_ratios(part, whole, seed=0)
    assert (low[0], high[0]) == (0.5, 1.0)


@pytest.mark.parametrize("all_right", [False, True])
def test_the_bootstrap_of_ratios_where_none_or_all_succeed_is_wilsons_of_the_questions(all_right):
    whole = np.array([[4.0, 0.0, 2.0, 7.0]])
    low, high = bootstrap_ratios(whole * all_right, whole, seed=0)
    assert (low[0], high[0]) == wilson(3 * all_right, 3)
