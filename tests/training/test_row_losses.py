"""RCO and DPO: values and gradients by hand in float64, what RCO starts as, and where it has nothing to say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training.row_losses import dpo_loss, means, measured, rco_loss, rco_targets

BETA = 0.1
UTILITIES = [1.0, 0.5, 0.5, 0.0]
LENGTHS = np.array([5, 2, 3, 4])


def batch(seed=0):
    """Four rows of up to five targets, with log-probabilities of a model and of a reference that is near it."""
    rng = np.random.default_rng(seed)
    ref = -rng.exponential(1.0, (4, 5)) - 0.1
    mask = np.arange(5) < LENGTHS[:, None]
    return jnp.asarray(ref + rng.normal(0, 0.3, (4, 5))), jnp.asarray(ref), jnp.asarray(mask)


def differences(function, x, epsilon=1e-6):
    """Central differences of a scalar function."""
    x, found = np.asarray(x), np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[place] = epsilon
        found[place] = (function(jnp.asarray(x + step)) - function(jnp.asarray(x - step))) / (2 * epsilon)
    return found


def test_the_targets_by_hand():
    """exp(10), exp(5) twice, exp(0): their mean is 5581.1, log Z 8.6272."""
    (v,) = rco_targets([UTILITIES], beta=BETA)
    log_z = np.log((np.exp(10) + 2 * np.exp(5) + 1) / 4)
    np.testing.assert_allclose(v, np.array([10, 5, 5, 0]) - log_z, rtol=1e-12)
    np.testing.assert_allclose(np.exp(v).mean(), 1, rtol=1e-12)  # so p exp(v) sums to what p does, of these four


@pytest.mark.parametrize("utility", [0.0, 0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("number", [1, 3, 4, 7])
def test_equal_utilities_have_targets_of_exactly_0(utility, number):
    (v,) = rco_targets([[utility] * number], beta=BETA)
    assert (v == 0).all()


def test_a_large_utility_overflows_nothing():
    (v,) = rco_targets([[1.0, 0.0]], beta=1e-4)  # exp(10,000)
    np.testing.assert_allclose(v, [np.log(2), np.log(2) - 10_000])


def rco(logp, ref, v, mask, rows=None, num_rows=4):
    rows = np.ones(4, bool) if rows is None else rows
    return rco_loss(logp, ref, jnp.asarray(v), jnp.asarray(rows), mask, num_rows=num_rows)


def test_rco_by_hand():
    """The example of the docstring: of rows that are 1 and 0 nats above the reference, 1 and -2 are left."""
    with jax.enable_x64(True):
        logp, ref = jnp.array([[-1.0, -2], [-4, 0]]), jnp.array([[-2.0, -2], [-4, 0]])
        mask, every = jnp.array([[True, True], [True, False]]), jnp.array([True, True])
        loss, stats = rco_loss(logp, ref, jnp.array([0.0, 2]), every, mask, num_rows=2)
        assert float(loss) == 5 / 4
        assert numbers(stats) == {
            "rco/log_ratio_sum": 1.0,
            "rco/residual_sum": 3.0,
        }


def test_rco_of_four_unequal_critiques():
    """Value and gradient of a group of four, row by row in plain NumPy, and against differences of the value."""
    with jax.enable_x64(True):
        logp, ref, mask = batch()
        (v,) = rco_targets([UTILITIES], beta=BETA)
        value, gradient = jax.value_and_grad(lambda x: rco(x, ref, v, mask)[0])(logp)
        assert value.dtype == jnp.float64
        left = [float(np.sum(np.asarray(logp - ref)[b, :n])) - v[b] for b, n in enumerate(LENGTHS)]
        np.testing.assert_allclose(value, sum(one**2 for one in left) / 8, rtol=1e-14)
        np.testing.assert_allclose(gradient, np.where(mask, np.array(left)[:, None] / 4, 0), rtol=1e-14)
        np.testing.assert_allclose(gradient, differences(lambda x: rco(x, ref, v, mask)[0], logp), atol=1e-7)


def test_rco_of_four_equal_critiques_starts_at_exactly_0():
    """Loss and gradient, so that no step is taken: they say nothing of which critique is better."""
    with jax.enable_x64(True):
        _, ref, mask = batch()
        (v,) = rco_targets([[0.7] * 4], beta=BETA)
        value, gradient = jax.value_and_grad(lambda x: rco(x, ref, v, mask)[0])(ref)
        assert float(value) == 0 and not np.asarray(gradient).any()


def test_rco_starts_as_reinforce():
    """Where the model is the reference its gradient is that of - 1/N sum_i v_i log p(c_i), v = CU/beta - log Z."""
    with jax.enable_x64(True):
        _, ref, mask = batch()
        (v,) = rco_targets([UTILITIES], beta=BETA)
        reinforce = lambda x: -jnp.mean(v * jnp.sum(jnp.where(mask, x, 0), axis=1))  # noqa: E731
        gradient = jax.grad(lambda x: rco(x, ref, v, mask)[0])(ref)
        np.testing.assert_allclose(gradient, jax.grad(reinforce)(ref), rtol=1e-14)
        assert np.abs(gradient).max() > 1


def test_other_rows_add_nothing():
    """Whatever they hold, infinities among it: a batch has rows of other losses, and slots that are empty."""
    logp, ref, mask = batch()
    of_two = np.array([True, False, True, False])
    (v,) = rco_targets([UTILITIES], beta=BETA)
    spoilt = [jnp.where(of_two[:, None], x, 1e30) for x in (logp, ref)]
    for rows in (batch()[:2], spoilt):
        loss, stats = rco(*rows, v, mask, of_two, num_rows=2)
        kept = [x[of_two] for x in (logp, ref, jnp.asarray(v), mask)]
        alone, same = rco_loss(kept[0], kept[1], kept[2], np.ones(2, bool), kept[3], num_rows=2)
        np.testing.assert_allclose(loss, alone, rtol=1e-6)
        np.testing.assert_allclose(stats["rco/residual_sum"], same["rco/residual_sum"], rtol=1e-6)


def dpo(logp, ref, mask, pair=(1, 2, -1, -2), weight=(1.0, 0.5, 1.0, 0.5), num_pairs=2):
    pair, weight = jnp.asarray(pair), jnp.asarray(weight)
    return dpo_loss(logp, ref, weight, pair, mask, beta=BETA, num_pairs=num_pairs)


def test_dpo_by_hand():
    """The example of the docstring."""
    pair, one = jnp.array([1, -1]), jnp.ones((2, 1), bool)
    loss, stats = dpo_loss(
        jnp.array([[-1.0], [-3]]), jnp.array([[-2.0], [-2]]), jnp.ones(2), pair, one, beta=0.5, num_pairs=1
    )
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1)), rtol=1e-6)
    assert numbers(stats) == {
        "rewards/chosen_sum": 0.5,
        "rewards/rejected_sum": -0.5,
        "rewards/accuracies_sum": 1.0,
    }


def test_dpo_of_two_pairs():
    with jax.enable_x64(True):
        logp, ref, mask = batch()
        value, gradient = jax.value_and_grad(lambda x: dpo(x, ref, mask)[0])(logp)
        d = np.array([np.sum(np.asarray(logp - ref)[b, :n]) for b, n in enumerate(LENGTHS)])
        margins = BETA * np.array([d[0] - d[2], d[1] - d[3]])
        np.testing.assert_allclose(value, (np.log1p(np.exp(-margins)) * [1, 0.5]).sum() / 2, rtol=1e-14)
        push = BETA * np.array([1, 0.5]) / (1 + np.exp(margins)) / 2  # of the chosen one, against the rejected one
        expected = np.where(mask, np.array([-push[0], -push[1], push[0], push[1]])[:, None], 0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-13)
        np.testing.assert_allclose(gradient, differences(lambda x: dpo(x, ref, mask)[0], logp), atol=1e-9)


def test_dpo_starts_at_log_2():
    _, ref, mask = batch()
    loss, stats = dpo(ref, ref, mask, weight=(1.0,) * 4)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert not any(float(value) for value in stats.values())


def test_microbatches_add_up():
    logp, ref, mask = batch()
    whole, stats = dpo(logp, ref, mask)
    parts = []
    for at, weight in ((np.array([0, 2]), 1.0), (np.array([1, 3]), 0.5)):
        parts.append(dpo(logp[at], ref[at], mask[at], (1, -1), (weight, weight)))
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-6)
    for name, value in stats.items():
        np.testing.assert_allclose(sum(one[name] for _, one in parts), value, rtol=1e-5)


# --- of scored rows -----------------------------------------------------------------------------------------------


def rows_of(kind, pairs=(0, 0, 0, 0), advantages=(1.0, 1.0, 1.0, 1.0)):
    return [
        TrainRow(np.zeros(1, np.int32), np.zeros(n, np.int32), np.zeros(n, np.float32), advantage, loss=kind, pair=pair)
        for n, pair, advantage in zip(LENGTHS, pairs, advantages, strict=True)
    ]


def scored():
    logp, ref, mask = (np.asarray(x) for x in batch())
    return mask, *([x[b, :n] for b, n in enumerate(LENGTHS)] for x in (logp, ref))


def numbers(stats):
    return {name: float(value) for name, value in stats.items()}


def test_what_is_measured_is_the_loss():
    mask, logps, refs = scored()
    (v,) = rco_targets([UTILITIES], beta=BETA)
    logp, ref, _ = batch()
    found = measured(rows_of(LossKind.RCO, advantages=v), logps, refs, beta=BETA)
    loss, stats = rco(logp, ref, v, mask)
    assert found == pytest.approx({"loss": float(loss)} | means(numbers(stats), rows_of(LossKind.RCO)), rel=1e-5)
    pairs = (1, 2, -1, -2)
    found = measured(rows_of(LossKind.DPO, pairs), logps, refs, beta=BETA)
    loss, stats = dpo(logp, ref, mask, weight=(1.0,) * 4)
    assert found == pytest.approx({"loss": float(loss)} | means(numbers(stats), rows_of(LossKind.DPO, pairs)), rel=1e-5)
    assert found["rewards/margins"] == pytest.approx(found["rewards/chosen"] - found["rewards/rejected"])


def test_a_measured_likelihood_is_of_the_targets_that_count():
    _, logps, _ = scored()
    rows = rows_of(LossKind.NLL)
    rows[0] = rows[0].replace(counted=np.array([True, False, False, True, True]))
    total = logps[0][[0, 3, 4]].sum() + sum(logp.sum() for logp in logps[1:])
    assert measured(rows, logps, None, beta=BETA) == pytest.approx({"loss": -total / (3 + 2 + 3 + 4)})
