"""maj@k against hand counts and the vote itself, held over all ordered subsets."""

import itertools
import math
from collections import Counter

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.majority import by_votes, group_sizes, is_number, maj_at_k, normal_form


def test_by_hand():
    # Of the pairs of [r, r, w] one is right, two are ties in which the right one is seen first half the time.
    assert maj_at_k(2, [1], num_samples=3, k=2) == pytest.approx(2 / 3)
    assert maj_at_k(2, [1], num_samples=3, k=3) == 1
    assert maj_at_k(1, [2], num_samples=3, k=3) == 0
    # One right of 256 that nobody outvotes: whoever draws it is right.
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
def test_is_the_vote_over_all_ordered_subsets(votes):
    sizes = group_sizes(votes, [vote == 0 for vote in votes])
    for k in range(1, len(votes) + 1):
        assert maj_at_k(*sizes, num_samples=len(votes), k=k) == pytest.approx(voted(votes, 0, k), abs=1e-12)


@pytest.mark.parametrize("right, wrong", [(100, [60, 50, 46]), (3, [1] * 253), (120, [120, 16]), (1, [255])])
def test_256_samples(right, wrong):
    assert maj_at_k(right, wrong, num_samples=256, k=1) == pytest.approx(right / 256)
    values = [maj_at_k(right, wrong, num_samples=256, k=k) for k in (2, 16, 64, 256)]
    assert all(0 <= value <= 1 for value in values)
    # A pair is decided by the right answer if both are, or if it is seen first of two that differ: as one sample.
    assert values[0] == pytest.approx(right / 256)


def test_two_answers_are_a_binomial_tail():
    # Odd k, two answers, nobody without a vote: hypergeometric.
    expected = sum(math.comb(150, m) * math.comb(106, 65 - m) for m in range(33, 66)) / math.comb(256, 65)
    assert maj_at_k(150, [106], num_samples=256, k=65) == pytest.approx(expected, rel=1e-12)


def test_the_largest_number_of_samples():
    assert maj_at_k(512, [512], num_samples=1024, k=512) == pytest.approx(0.5)


@pytest.mark.parametrize("samples, k", [(4, 0), (4, 5), (1025, 2)])
def test_k_out_of_range(samples, k):
    with pytest.raises(UserError, match=f"maj@{k} can't be computed from {samples} samples"):
        maj_at_k(1, [1], num_samples=samples, k=k)


@pytest.mark.parametrize("right, wrong", [(3, [2]), (-1, []), (1, [0])])
def test_impossible_votes(right, wrong):
    with pytest.raises(ValueError, match="impossible"):
        maj_at_k(right, wrong, num_samples=4, k=2)


@pytest.mark.parametrize(
    "kind, one, other",
    [
        ("numeric", "$1,200.00", "1200"),
        ("numeric", "\u22125", "-5.0"),
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
