"""Ratios against numbers worked out by hand, and their gradients by hand and against finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.objective import policy_loss
from cgrpo_jax.ratios import (
    INITIAL_RATIOS,
    LARGEST_LOG_RATIO,
    REFINED_RATIOS,
    SAMPLER_WEIGHTS,
    Bounds,
    clipped_surrogate,
    sequence_ratio,
    shaped_ratio,
)

ALL = [(False, name) for name in INITIAL_RATIOS] + [(True, name) for name in REFINED_RATIOS]
of_each = pytest.mark.parametrize(("refined", "name"), ALL, ids=lambda value: str(value))


def log(*rows):
    return np.log(np.array(rows, np.float64))


def loss_and_gradient(logp, old_logp, advantage, *, refined=False, mask=None, **keywords):
    """The objective (not the loss) of rows of one kind, and its gradient by `logp`, in float64."""
    logp, old_logp = np.asarray(logp, np.float64), np.asarray(old_logp, np.float64)
    mask = np.ones(logp.shape, bool) if mask is None else np.asarray(mask, bool)
    refined_B = np.full(len(logp), refined)

    def objective(x):
        # One row of one token counts as 1: sums are compared with sums.
        keywords_ = {"aggregate": "constant", "max_length": 1, "num_rows": 1} | keywords
        return -policy_loss(x, old_logp, np.asarray(advantage, np.float64), mask, refined_B, **keywords_)[0]

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(objective))(logp)
        return float(value), np.asarray(gradient)


# --- by hand ------------------------------------------------------------------------------------------------------


def test_shaped_ratio():
    np.testing.assert_allclose(shaped_ratio(jnp.log(jnp.array([0.1, 0.9, 0.4])), 0.1), [0.5, 0.9, 0.8], rtol=1e-6)
    np.testing.assert_allclose(shaped_ratio(jnp.array([0.0, -200.0]), 0.1), [1 / 1.1, 0.0], atol=1e-7)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_clipped_surrogate(transform):
    def surrogate(ratio, advantage):
        return clipped_surrogate(ratio, advantage, clip_low=0.2, clip_high=0.2)

    ratio, advantage = jnp.array([1.5, 1.5, 0.5, 0.5, 1.1]), jnp.array([1.0, -1.0, 1.0, -1.0, 2.0])
    np.testing.assert_allclose(transform(surrogate)(ratio, advantage), [1.2, -1.5, 0.5, -0.8, 2.2], rtol=1e-6)


@pytest.mark.parametrize(("clip", "gradient"), [(False, -0.25), (True, 0.0)])
def test_a_wrong_refinement_is_penalised_unless_its_ratio_is_clipped(clip, gradient):
    """A = -1, gamma = 0.1, pi = 0.1: gamma pi / (pi + gamma)^2 = 0.01 / 0.04. Clipped, rho = 0.5 is below 0.8."""
    value, found = loss_and_gradient(log([0.1]), log([1.0]), [-1.0], refined=True, clip_refined=clip)
    assert value == pytest.approx(-0.8 if clip else -0.5, rel=1e-12)
    np.testing.assert_allclose(found, [[gradient]], rtol=1e-12)


def test_a_right_refinement_is_the_same_clipped_or_not():
    pi = log([0.01, 0.1, 0.5, 0.99])
    plain, clipped = (loss_and_gradient(pi, 0 * pi, [1.0], refined=True, clip_refined=clip) for clip in (False, True))
    assert plain[0] == clipped[0]
    np.testing.assert_array_equal(plain[1], clipped[1])


def test_importance_of_a_refinement_is_that_of_the_policy_before_the_update():
    # r = 0.3/0.2 = 1.5 and 0.1/0.2 = 0.5: the value A r, the gradient A r too. Clipped, 1.5 counts as 1.2.
    arguments = log([0.3, 0.1]), log([0.2, 0.2]), [2.0]
    value, gradient = loss_and_gradient(*arguments, refined=True, refined_ratio="importance")
    assert value == pytest.approx(2 * (1.5 + 0.5), rel=1e-12)
    np.testing.assert_allclose(gradient, [[3.0, 1.0]], rtol=1e-12)
    value, gradient = loss_and_gradient(*arguments, refined=True, refined_ratio="importance", clip_refined=True)
    assert value == pytest.approx(2 * (1.2 + 0.5), rel=1e-12)
    np.testing.assert_allclose(gradient, [[0.0, 1.0]], rtol=1e-12)


def test_plain_probability_of_a_refinement():
    # A pi, whose gradient by log pi is A pi; pi_old is 1, whatever the sampler said.
    value, gradient = loss_and_gradient(log([0.3, 0.1]), log([0.2, 0.7]), [-2.0], refined=True, refined_ratio="plain")
    assert value == pytest.approx(-2 * 0.4, rel=1e-12)
    np.testing.assert_allclose(gradient, [[-0.6, -0.2]], rtol=1e-12)


def test_log_probability_of_a_refinement():
    # A log pi, whose gradient is A at every token, likely or not.
    value, gradient = loss_and_gradient(log([0.5, 0.25]), log([0.2, 0.7]), [3.0], refined=True, refined_ratio="logp")
    assert value == pytest.approx(-3 * np.log(8), rel=1e-12)
    np.testing.assert_allclose(gradient, [[3.0, 3.0]], rtol=1e-12)


def test_one_ratio_for_a_whole_response():
    # r = 2, 0.5, 4 and a masked token: s = 4^(1/3). Each token is s A; by each log pi: 3 tokens * s A / 3.
    old = log([0.1, 0.4, 0.2, 0.9])
    logp = old + log([2, 0.5, 4, 1000])
    mask = [[1, 1, 1, 0]]
    s = 4 ** (1 / 3)
    np.testing.assert_allclose(sequence_ratio(logp, old, np.array(mask))[0], [s] * 4, rtol=1e-6)
    value, gradient = loss_and_gradient(logp, old, [-1.0], mask=mask, initial_ratio="sequence")
    assert value == pytest.approx(-3 * s, rel=1e-12)
    np.testing.assert_allclose(gradient, [[-s, -s, -s, 0]], rtol=1e-12)
    # A = 1: s is above 1.2, and none of the row's tokens has a gradient, though one ratio is below 1.
    value, gradient = loss_and_gradient(logp, old, [1.0], mask=mask, initial_ratio="sequence")
    assert value == pytest.approx(3 * 1.2, rel=1e-12)
    np.testing.assert_array_equal(gradient, 0)
    # With a mean a row, this is GSPO's Eq. 5: 1/G sum_i min(s_i A_i, clip(s_i) A_i).
    both = np.concatenate([logp, old]), np.concatenate([old, old])
    mean = {"aggregate": "sequence_mean", "max_length": 4, "num_rows": 2}
    mask = [[1, 1, 1, 0], [1, 1, 1, 1]]
    value, _ = loss_and_gradient(*both, [-1.0, 0.5], mask=mask, initial_ratio="sequence", **mean)
    assert value == pytest.approx((-s + 0.5) / 2, rel=1e-12)


def test_cispo_caps_the_weight_and_keeps_every_gradient():
    # r = 3 counts as 1 + 1 = 2, r = 0.1 as itself, whatever the sign of A: the gradient is A times that.
    old = log([0.2, 0.5])
    logp = old + log([3, 0.1])
    for advantage in (1.0, -2.0):
        value, gradient = loss_and_gradient(logp, old, [advantage], initial_ratio="cispo", clip_high=1.0)
        assert value == pytest.approx(advantage * (2 * np.log(0.6) + 0.1 * np.log(0.05)), rel=1e-12)
        np.testing.assert_allclose(gradient, [[2 * advantage, 0.1 * advantage]], rtol=1e-12)


def test_what_cispo_counts_as_clipped_is_what_its_cap_lowers():
    # r = 3 is beyond 2 whatever the advantage's sign; 0.1 keeps its weight.
    old = log([0.2, 0.5])
    for advantage in (1.0, -2.0):
        keywords = dict(initial_ratio="cispo", clip_high=1.0, clip_low=0.2, max_length=1)
        _, stats = policy_loss(
            old + log([3, 0.1]), old, np.array([advantage]), np.ones((1, 2)), np.zeros(1, bool), **keywords
        )
        assert (stats["initial/clip_low"], stats["initial/clip_high"]) == (0, 1)


# --- sampler against trainer ----------------------------------------------------------------------------------------


def test_without_a_cap_nothing_is_weighed():
    logp, old, advantage, mask = rows()
    plain = loss_and_gradient(logp, old, advantage, mask=mask)
    given = loss_and_gradient(logp, old, advantage, mask=mask, sampler_logp_BT=old - 1)
    assert plain[0] == given[0] != 0
    np.testing.assert_array_equal(plain[1], given[1])


@pytest.mark.parametrize("level", SAMPLER_WEIGHTS)
def test_where_sampler_and_trainer_agree_no_weight_changes_anything(level):
    logp, old, advantage, mask = rows()
    for name in INITIAL_RATIOS:
        plain = loss_and_gradient(logp, old, advantage, mask=mask, initial_ratio=name)
        same = loss_and_gradient(
            logp, old, advantage, mask=mask, initial_ratio=name, sampler_logp_BT=old, tis_cap=1.0, tis_level=level
        )
        assert plain[0] == same[0]
        np.testing.assert_array_equal(plain[1], same[1])


def test_a_token_is_weighed_by_what_the_sampler_did_otherwise_up_to_the_cap():
    # pi_trainer,old / pi_sampler = 0.5, 1.5 and 4, of which 2 is the most; r = 1, A = 3: 3 * (0.5 + 1.5 + 2).
    old = log([0.1, 0.3, 0.4])
    more = {"sampler_logp_BT": old - log([0.5, 1.5, 4]), "tis_cap": 2.0}
    value, gradient = loss_and_gradient(old, old, [3.0], **more)
    assert value == pytest.approx(3 * 4, rel=1e-12)
    np.testing.assert_allclose(gradient, [[1.5, 4.5, 6]], rtol=1e-12)
    # A ratio of 1.5 counts as 1.2 before it is weighed; the weight itself is not clipped.
    value, _ = loss_and_gradient(old + np.log(1.5), old, [3.0], **more)
    assert value == pytest.approx(3 * 1.2 * 4, rel=1e-12)


def test_a_response_beyond_the_cap_trains_nothing():
    # Of whole rows 0.5 * 3 = 1.5 and 2 * 1.5 = 3; 2 is the most, and a masked token of 100 does not count.
    old = log([0.1, 0.3, 0.4], [0.1, 0.3, 0.4])
    sampler = old - log([0.5, 3, 100], [2, 1.5, 1])
    mask = [[1, 1, 0], [1, 1, 1]]
    value, gradient = loss_and_gradient(
        old, old, [1.0, 1.0], mask=mask, sampler_logp_BT=sampler, tis_cap=2.0, tis_level="sequence_mask"
    )
    assert value == pytest.approx(1.5 * 2, rel=1e-12)
    np.testing.assert_allclose(gradient, [[1.5, 1.5, 0], [0, 0, 0]], rtol=1e-12)


def test_a_refinement_is_not_weighed():
    """It was sampled after the critique: the sampler's log-probabilities are of another question."""
    logp, old, advantage, mask = rows()
    for name in REFINED_RATIOS:
        keywords = {"refined": True, "refined_ratio": name, "mask": mask}
        plain = loss_and_gradient(logp, old, advantage, **keywords)
        other = loss_and_gradient(logp, old, advantage, sampler_logp_BT=old - 1, tis_cap=2.0, **keywords)
        assert plain[0] == other[0]
        np.testing.assert_array_equal(plain[1], other[1])


# --- of each ------------------------------------------------------------------------------------------------------


def rows(seed=0):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (4, 5)) - 0.5
    logp = np.minimum(old + rng.normal(0, 0.5, (4, 5)), -1e-3)
    return logp, old, np.array([1.0, -0.7, 0.4, -1.3]), np.arange(5) < np.array([5, 3, 4, 1])[:, None]


@of_each
def test_the_gradient_is_that_of_the_value(refined, name):
    """Against central differences; of cispo, whose weight is held fixed, against those of A w log pi."""
    logp, old, advantage, mask = rows()
    keywords = {"refined_ratio" if refined else "initial_ratio": name, "refined": refined, "mask": mask}
    _, gradient = loss_and_gradient(logp, old, advantage, **keywords)
    if name == "cispo":
        weight = np.minimum(np.exp(logp - old), 1.2)
        np.testing.assert_allclose(gradient, np.where(mask, weight * advantage[:, None], 0), rtol=1e-9)
        return
    with jax.enable_x64(True):

        def objective(x):
            chosen = (REFINED_RATIOS if refined else INITIAL_RATIOS)[name]
            advantage_BT = np.broadcast_to(advantage[:, None], mask.shape)
            term_BT = chosen(x, old, advantage_BT, mask, Bounds(clip=not refined))[1]
            return jnp.sum(jnp.where(mask, term_BT, 0.0))

        step = 1e-6 * jnp.eye(logp.size).reshape(-1, *logp.shape)
        numeric = jax.vmap(lambda e: (objective(logp + e) - objective(logp - e)) / 2e-6)(step).reshape(logp.shape)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(gradient[~mask], 0)


@of_each
def test_no_advantage_no_gradient(refined, name):
    logp, old, _, mask = rows()
    keywords = {"refined_ratio" if refined else "initial_ratio": name, "refined": refined, "mask": mask}
    value, gradient = loss_and_gradient(logp, old, np.zeros(4), **keywords)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@of_each
def test_what_is_masked_or_of_another_kind_changes_nothing(refined, name):
    logp, old, advantage, mask = rows()
    keywords = {"refined_ratio" if refined else "initial_ratio": name, "refined": refined}
    value, gradient = loss_and_gradient(logp, old, advantage, mask=mask, **keywords)
    for junk in (1e30, -1e30):
        dirty = np.where(mask, logp, junk), np.where(mask, old, -junk), advantage
        again, its_gradient = loss_and_gradient(*dirty, mask=mask, **keywords)
        assert again == value
        np.testing.assert_array_equal(its_gradient, gradient)
    # A row alone is what it is among others: no ratio looks beyond its row.
    alone = [loss_and_gradient(logp[[i]], old[[i]], advantage[[i]], mask=mask[[i]], **keywords) for i in range(4)]
    assert sum(one for one, _ in alone) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(np.concatenate([one for _, one in alone]), gradient, rtol=1e-12)


@of_each
def test_tokens_that_the_old_policy_can_hardly_have_sampled_stay_finite(refined, name):
    keywords = {"refined_ratio" if refined else "initial_ratio": name, "refined": refined}
    for advantage in (1.0, -1.0):
        value, gradient = loss_and_gradient([[-1.0, -1.0]], [[-1e4, -1.0]], [advantage], **keywords)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert np.abs(gradient).max() <= np.exp(LARGEST_LOG_RATIO)
