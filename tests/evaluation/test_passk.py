"""pass@k against hand counts, enumeration and its definition as an average over subsets."""

import itertools
import math

import numpy as np
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.passk import pass_at_k


def test_by_hand():
    # C(3, 2) / C(4, 2) = 3/6 of the pairs hold no right sample if 1 of 4 is right; all pairs do if none is.
    assert pass_at_k([1], 4, 2) == 0.5
    assert pass_at_k([1, 0], 4, 2) == 0.25
    # One right of 256: a subset of 64 holds it with probability 64/256.
    assert pass_at_k([1], 256, 64) == 0.25
    # Three wrong samples can't fill a subset of 4.
    assert pass_at_k([2], 5, 4) == 1.0


@pytest.mark.parametrize("n", [1, 4, 6])
def test_is_the_average_over_all_subsets(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert math.isclose(pass_at_k([correct], n, k), expected, rel_tol=1e-15)


def test_k_of_one_is_the_mean_and_k_of_n_is_whether_any():
    counts = [0, 3, 256, 17]
    assert math.isclose(pass_at_k(counts, 256, 1), sum(counts) / 256 / 4, rel_tol=1e-15)
    assert pass_at_k(counts, 256, 256) == 0.75


def test_256_samples_agree_with_the_product_form():
    # 1 - prod_{i = n-c+1 .. n} (1 - k / i), the form of the paper's listing.
    for correct, k in itertools.product([1, 2, 100, 128, 200], [1, 8, 128, 200]):
        wrong = 256 - correct
        expected = 1.0 if wrong < k else 1 - np.prod(1 - k / np.arange(wrong + 1, 257))
        np.testing.assert_allclose(pass_at_k([correct], 256, k), expected, rtol=1e-12)


def test_takes_numpy_counts():
    assert pass_at_k(np.array([1, 0], np.int32), np.int64(4), 2) == 0.25


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range(k):
    with pytest.raises(UserError, match=f"pass@{k} can't be estimated from 4 samples; use 1 <= k <= 4"):
        pass_at_k([1], 4, k)


def test_impossible_counts():
    with pytest.raises(ValueError, match="5 correct samples of 4 are impossible"):
        pass_at_k([1, 5], 4, 2)
    with pytest.raises(ValueError, match="no questions"):
        pass_at_k([], 4, 2)
