"""Advantages, and the penalty of lengths, against numbers worked out by hand; the arithmetic stands beside each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.objective import group_advantages, length_penalty, weighted_advantages

with_and_without_jit = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])


def close(actual, expected, rtol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-7)


@with_and_without_jit
def test_advantage_is_reward_minus_group_mean(transform):
    def advantages(reward_B, group_B):
        return group_advantages(reward_B, group_B, num_groups=3)

    # Group 0: mean 1/4. Group 1: mean 1. Group 2: mean 1/2. The rows of a group need not be neighbours.
    reward = jnp.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    group = jnp.array([0, 2, 0, 0, 1, 2, 0, 1])
    close(transform(advantages)(reward, group), [0.75, -0.5, -0.25, -0.25, 0, 0.5, -0.25, 0])


def test_a_refinement_shares_the_baseline_of_the_failed_responses():
    # Seven failures and one refinement that succeeds: mean 1/8.
    close(group_advantages(jnp.array([0.0] * 7 + [1.0]), jnp.zeros(8, int), num_groups=1), [-1 / 8] * 7 + [7 / 8])


@with_and_without_jit
def test_advantage_scaled_by_standard_deviation(transform):
    def advantages(reward_B, group_B):
        return group_advantages(reward_B, group_B, num_groups=3, scale_by_std=True)

    # Group 0: deviations 3/4 and three of -1/4, squares 9/16 + 3/16 = 3/4, over 4 - 1: variance 1/4, deviation 0.5.
    # Group 1: deviations 1/2 and -1/2, squares 1/2, over 2 - 1: deviation sqrt(0.5) = 0.70710678.
    # Group 2: a single row.
    reward = jnp.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    group = jnp.array([0, 0, 0, 0, 1, 1, 2])
    a, b, c = 0.75 / 0.500001, -0.25 / 0.500001, 0.5 / 0.70710778
    close(transform(advantages)(reward, group), [a, b, b, b, c, -c, 0])


def test_the_flag_for_scaling_is_read():
    reward, group = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4, int)
    plain = group_advantages(reward, group, num_groups=1, scale_by_std=False)
    scaled = group_advantages(reward, group, num_groups=1, scale_by_std=True)
    close(scaled[0] / plain[0], 1 / 0.500001)


@pytest.mark.parametrize("scale_by_std", [False, True])
def test_equal_rewards_give_exactly_zero(scale_by_std):
    group = jnp.repeat(jnp.arange(4), jnp.array([1, 3, 7, 8]))
    for reward in (0.0, 1.0, 0.1, 0.7):
        advantage = group_advantages(jnp.full(19, reward), group, num_groups=4, scale_by_std=scale_by_std)
        np.testing.assert_array_equal(advantage, np.zeros(19))


@pytest.mark.parametrize("scale_by_std", [False, True])
def test_rows_outside_the_groups_are_padding(scale_by_std):
    reward = jnp.array([1.0, 0.0, 9.0, -9.0, jnp.nan])
    advantage = group_advantages(reward, jnp.array([0, 0, 1, -1, 5]), num_groups=1, scale_by_std=scale_by_std)
    alone = group_advantages(reward[:2], jnp.array([0, 0]), num_groups=1, scale_by_std=scale_by_std)
    np.testing.assert_array_equal(advantage, [*np.asarray(alone), 0, 0, 0])


@with_and_without_jit
@pytest.mark.parametrize("scale_by_std", [False, True])
def test_the_baseline_of_the_initial_rows_alone(transform, scale_by_std):
    def advantages(reward_B, group_B, baseline_B):
        return group_advantages(reward_B, group_B, num_groups=3, baseline_B=baseline_B, scale_by_std=scale_by_std)

    # Group 0: means of 0, 0 | 1 and of 1, 0 | 0. Deviations 0 and sqrt(1/4 + 1/4). Group 2 has no initial row.
    reward = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    group = jnp.array([0, 0, 0, 1, 1, 1, 2])
    initial = jnp.array([True, False, True, True, True, False, False])
    first, second = (1e6, 1 / (0.70710678 + 1e-6)) if scale_by_std else (1, 1)
    expected = np.array([0, first, 0, second / 2, -second / 2, -second / 2, 0])
    close(transform(advantages)(reward, group, initial), expected)
    equal = transform(advantages)(jnp.full(7, 0.1), group, initial)
    np.testing.assert_array_equal(equal, np.zeros(7))


@with_and_without_jit
def test_a_penalty_is_added_where_rewards_differ_without_it(transform):
    def advantages(reward_B, group_B, penalty_B):
        return group_advantages(reward_B, group_B, num_groups=2, penalty_B=penalty_B)

    # Group 0: 0.5 and 0, of mean 1/4. In group 1 all are right; the last row is padding.
    penalty = jnp.array([-0.5, 0.0, -0.5, 0.0, -9.0])
    found = transform(advantages)(jnp.array([1.0, 0, 1, 1, 5]), jnp.array([0, 0, 1, 1, -1]), penalty)
    np.testing.assert_array_equal(found, [0.25, -0.25, 0, 0, 0])


@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_length_penalty(kind):
    # Of 20 tokens the last 8 cost: 12 nothing, 14 a quarter, 20 and more all.
    close(length_penalty(kind([0, 12, 14, 20, 25]), max_length=20, buffer=8), [0, 0, -0.25, -1, -1])


def test_baseline_deviation_and_penalty_in_float64():
    # 1, 0, 0 and a refinement of 1: means 1/2 and, of the first three, 1/3; squares of deviations 1 and 2/3.
    with jax.enable_x64(True):
        reward, group = np.array([1.0, 0.0, 0.0, 1.0]), np.zeros(4, int)
        initial = np.array([True, True, True, False])

        def found(**keywords):
            return np.asarray(group_advantages(reward, group, num_groups=1, **keywords))

        half, third = 0.5 / (np.sqrt(1 / 3) + 1e-6), np.array([2, -1, -1, 2]) / 3
        for actual, expected in (
            (found(), [0.5, -0.5, -0.5, 0.5]),
            (found(scale_by_std=True), [half, -half, -half, half]),
            (found(baseline_B=initial), third),
            (found(baseline_B=initial, scale_by_std=True), third / (np.sqrt(1 / 3) + 1e-6)),
            (found(penalty_B=np.array([-0.4, 0, 0, 0])), [0.2, -0.4, -0.4, 0.6]),
        ):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-13)
        penalty = length_penalty(np.array([12, 14, 20]), max_length=20, buffer=8)
        np.testing.assert_array_equal(penalty, [0, -0.25, -1])


def test_advantages_refuse_a_column_of_rewards():
    with pytest.raises(AssertionError, match="reward_B has shape"):
        group_advantages(jnp.ones((2, 1)), jnp.zeros(2, int), num_groups=1)


# --- several rewards ----------------------------------------------------------------------------------------------


@with_and_without_jit
def test_several_rewards_are_one_weighted_sum(transform):
    def advantages(reward_KB, group_B):
        return weighted_advantages(reward_KB, group_B, weights=(1.0, 0.5), num_groups=2)

    # Sums 1, 2 | 0, 0.5 (its second reward is null: 0), 1. Means 1.5 and 0.5.
    reward = jnp.array([[1.0, 0.0, 0.0, 0.5, 1.0], [0.0, 4.0, 0.0, jnp.nan, 0.0]])
    close(transform(advantages)(reward, jnp.array([0, 0, 1, 1, 1])), [-0.5, 0.5, -0.5, 0, 0.5])


@with_and_without_jit
def test_each_reward_over_its_own_deviation(transform):
    def advantages(reward_KB, group_B):
        return weighted_advantages(reward_KB, group_B, weights=(1.0, 0.5), normalize_each=True, num_groups=2)

    # Group 0: deviations of 1, 0 over sqrt(1/2), of 0, 4 over sqrt(8): 0.5 / 0.7071 and -2 / 2.8284, each 0.7071.
    # Group 1: of 0, 0, 3: -1, -1, 2 over sqrt(3); its second reward is null in the last row, and 2, 2 in the others.
    reward = jnp.array([[1.0, 0.0, 0.0, 0.0, 3.0], [0.0, 4.0, 2.0, 2.0, jnp.nan]])
    found = transform(advantages)(reward, jnp.array([0, 0, 1, 1, 1]))
    a, b = 0.70710678 * (1 - 0.5), 1 / 1.7320508
    close(found, [a, -a, -b, -b, 2 * b], rtol=1e-5)


@pytest.mark.parametrize("each", [False, True])
def test_of_several_equal_rewards_none_teaches(each):
    reward = jnp.stack([jnp.full(7, 0.1), jnp.full(7, 0.7)])
    group = jnp.array([0, 0, 0, 1, 1, 1, 1])
    found = weighted_advantages(reward, group, weights=(1.0, 0.3), normalize_each=each, num_groups=2)
    np.testing.assert_array_equal(found, np.zeros(7))


def test_one_reward_is_what_it_was():
    rng = np.random.default_rng(0)
    reward, group = jnp.asarray(rng.uniform(0, 1, 9), jnp.float32), jnp.array([0, 0, 0, 0, 1, 1, 1, 1, -1])
    alone = group_advantages(reward, group, num_groups=2)
    np.testing.assert_array_equal(weighted_advantages(reward[None], group, weights=(1.0,), num_groups=2), alone)
