"""Gradients of the objective: against finite differences in float64, by hand, and where they vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.objective import group_advantages, nll_loss, policy_loss
from cgrpo_jax.ratios import shaped_ratio

COUNTS = {"num_questions": 2, "num_responses": 2, "num_refinements": 1}


def finite_differences(function, x, epsilon=1e-6):
    """Central differences of a scalar function, one entry of `x` at a time."""
    steps = epsilon * jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    both = jax.vmap(lambda step: (function(x + step) - function(x - step)) / (2 * epsilon))
    return jax.jit(both)(steps).reshape(x.shape)


def batch(seed=0):
    """Six rows, of which two are refined, with ratios on both sides of both clips."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (6, 5)) - 0.5
    return {
        "logp": jnp.asarray(np.minimum(old + rng.normal(0, 0.5, (6, 5)), -1e-3)),
        "old": jnp.asarray(old),
        "ref": jnp.asarray(old + rng.normal(0, 0.5, (6, 5))),
        "entropy": jnp.asarray(rng.uniform(0, 2, (6, 5))),
        "advantage": jnp.array([1.0, -0.7, -1.3, 0.4, 0.6, -0.2]),
        "mask": jnp.arange(5) < jnp.array([5, 3, 4, 1, 5, 2])[:, None],
        "refined": jnp.array([False, True, False, False, True, False]),
    }


@pytest.mark.parametrize(
    ("aggregate", "clip_initial", "clip_refined"),
    [
        ("constant", True, True),
        ("constant", True, False),
        ("paper", False, True),
        ("token_mean", True, True),
        ("sequence_mean", False, False),
    ],
)
def test_gradient_is_that_of_the_value(aggregate, clip_initial, clip_refined):
    with jax.enable_x64(True):
        b = batch()
        assert b["logp"].dtype == jnp.float64

        def loss(logp_and_entropy):
            logp, entropy = logp_and_entropy
            return policy_loss(
                logp,
                b["old"],
                b["advantage"],
                b["mask"],
                b["refined"],
                clip_initial=clip_initial,
                clip_refined=clip_refined,
                aggregate=aggregate,
                max_length=7,
                ref_logp_BT=b["ref"],
                kl_coef=0.1,
                entropy_BT=entropy,
                entropy_coef=0.01,
                **COUNTS,
            )

        x = jnp.stack([b["logp"], b["entropy"]])
        gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(x)
        # The batch does reach the clips: both of the initial rows', and the one that a refined row can reach.
        for name, clip in (("initial", clip_initial), ("refined", clip_refined)):
            assert (stats[f"{name}/clip_low"] > 0) == clip
        assert (stats["initial/clip_high"] > 0) == clip_initial
        numeric = finite_differences(lambda x: loss(x)[0], x)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(np.asarray(gradient)[:, ~np.asarray(b["mask"])], 0)


def value_and_gradient(x, **keywords):
    """The loss of rows without a ratio's effect, r = 1, and its gradient by the first argument, in float64."""
    with jax.enable_x64(True):
        return jax.jit(jax.value_and_grad(lambda x: policy_loss(x, **keywords)[0]))(x)


@pytest.mark.parametrize(
    ("kl", "value", "gradient"),
    [  # log pi - log pi_ref = log 2 and -log 4; of k3 1 - pi_ref / pi
        ("k1", np.log(2) - np.log(4), [1, 1]),
        ("k2", (np.log(2) ** 2 + np.log(4) ** 2) / 2, [np.log(2), -np.log(4)]),
        ("k3", (0.5 + np.log(2) - 1) + (4 - np.log(4) - 1), [0.5, -3]),
    ],
)
def test_kl_by_hand(kl, value, gradient):
    with jax.enable_x64(True):
        logp, ref = np.log([[0.5, 0.2, 0.9]]), np.log([[0.25, 0.8, 0.1]])
        rows = {"old_logp_BT": logp, "advantage_B": np.zeros(1), "mask_BT": np.array([[1, 1, 0]])}
        more = {"refined_B": np.zeros(1, bool), "max_length": 4, "ref_logp_BT": ref, "kl_coef": 0.1, "kl": kl}
        found, slope = value_and_gradient(logp, **rows, **more)
    np.testing.assert_allclose(found, 0.1 * value / 4, rtol=1e-13)
    np.testing.assert_allclose(slope, [[*(0.1 * np.array(gradient) / 4), 0]], rtol=1e-13)


def test_entropy_by_hand():
    # Its bonus lowers the loss by coef w H: 0.5 / (1 row * 4) a token, of 0.6 and 0.2; the third is masked.
    with jax.enable_x64(True):
        logp, entropy = np.log([[0.5, 0.2, 0.9]]), np.array([[0.6, 0.2, 9.0]])
        rows = (logp, np.zeros(1), np.array([[1, 1, 0]]), np.zeros(1, bool))

        def loss(entropy):
            return policy_loss(logp, *rows, max_length=4, entropy_BT=entropy, entropy_coef=0.5)[0]

        value, gradient = jax.value_and_grad(loss)(entropy)
    np.testing.assert_allclose(value, -0.5 * 0.8 / 4, rtol=1e-13)
    np.testing.assert_allclose(gradient, [[-0.125, -0.125, 0]], rtol=1e-13)


@pytest.mark.parametrize(
    ("aggregate", "weights"),
    [  # rows of 2 and 3 tokens and a refinement of 1; 2 questions of 2 responses and 1 refinement
        ("constant", [1 / (3 * 8)] * 3),
        ("paper", [1 / (2 * 2), 1 / (2 * 2), 1 / (2 * 1)]),
        ("token_mean", [1 / 6] * 3),
        ("sequence_mean", [1 / (3 * 2), 1 / (3 * 3), 1 / (3 * 1)]),
    ],
)
def test_weights_by_hand(aggregate, weights):
    """Where r = 1 a token adds w A to the objective and to its gradient; one of log pi A adds w A log pi."""
    advantage, mask = np.array([1.0, -2.0, 3.0]), np.arange(3) < np.array([2, 3, 1])[:, None]
    with jax.enable_x64(True):
        logp = np.log([[0.5, 0.2, 0.9], [0.3, 0.4, 0.1], [0.25, 0.6, 0.7]])
        rows = {"old_logp_BT": logp, "advantage_B": advantage, "mask_BT": mask}
        more = {"refined_B": np.array([False, False, True]), "refined_ratio": "logp", "max_length": 8}
        value, gradient = value_and_gradient(logp, **rows, **more, aggregate=aggregate, **COUNTS)
    w = np.array(weights)[:, None] * mask
    expected = np.sum(w[:2] * advantage[:2, None]) + w[2, 0] * 3 * np.log(0.25)
    np.testing.assert_allclose(value, -expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, -w * advantage[:, None], rtol=1e-13)


def test_nll_gradient():
    with jax.enable_x64(True):
        b = batch()

        def loss(logp):
            return nll_loss(logp, b["advantage"], b["mask"], num_tokens=20)

        numeric = finite_differences(loss, b["logp"])
        np.testing.assert_allclose(jax.grad(loss)(b["logp"]), numeric, rtol=1e-6, atol=1e-9)


def test_no_stop_gradient_in_the_shaped_ratio():
    pi = jnp.array([0.01, 0.1, 0.5, 0.99])
    gradient = jax.grad(lambda logp: shaped_ratio(logp, 0.1).sum())(jnp.log(pi))
    # gamma pi / (pi + gamma)^2: 0.001/0.0121, 0.01/0.04, 0.05/0.36, 0.099/1.1881. With the denominator held fixed it
    # would be rho itself: 0.09, 0.5, 0.83, 0.91.
    np.testing.assert_allclose(gradient, [0.0826446, 0.25, 0.1388889, 0.0833263], rtol=1e-5)


def test_gradient_of_a_refined_row_in_the_loss():
    def loss(logp, old):
        one = jnp.ones((1, 1))
        return policy_loss(logp, old, 2 * jnp.ones(1), one, jnp.ones(1, bool), max_length=5)[0]

    # -A * gamma pi / (pi + gamma)^2 / (1 row * 5 tokens) at pi = gamma: -2 * 0.25 / 5.
    d_logp, d_old = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.log(jnp.full((1, 1), 0.1)), jnp.full((1, 1), -2.0))
    np.testing.assert_allclose(d_logp, [[-0.1]], rtol=1e-6)
    np.testing.assert_array_equal(d_old, [[0.0]])


def test_on_policy_gradient_is_the_policy_gradient():
    # At pi = pi_old both branches of the minimum are equal, and the gradient must still be all of -A / (rows * length).
    logp = jnp.array([[-1.0, -2.0], [-0.5, -3.0]])

    def loss(x):
        return policy_loss(x, logp, jnp.array([1.0, -3.0]), jnp.ones((2, 2)), jnp.zeros(2, bool), max_length=4)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(logp), [[-1 / 8] * 2, [3 / 8] * 2], rtol=1e-6)


def test_a_clipped_token_has_no_gradient():
    # Ratios 1.5 and 0.5. A = 1 silences the first, A = -1 the second; the other two keep r A / (2 rows * 2 tokens).
    logp = jnp.log(jnp.array([[1.5, 0.5], [1.5, 0.5]]))
    zeros = jnp.zeros((2, 2))

    def loss(x):
        return policy_loss(x, zeros, jnp.array([1.0, -1.0]), zeros + 1, jnp.zeros(2, bool), max_length=2)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(logp), [[0, -0.5 / 4], [1.5 / 4, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("aggregate", "scale_by_std"), [("constant", False), ("paper", False), ("sequence_mean", True)]
)
def test_equal_rewards_give_no_gradient(aggregate, scale_by_std):
    b = batch()
    group = jnp.array([0, 0, 0, 1, 1, 1])

    def loss(logp, reward):
        advantage = group_advantages(reward, group, num_groups=2, scale_by_std=scale_by_std)
        return policy_loss(
            logp, b["old"], advantage, b["mask"], b["refined"], aggregate=aggregate, max_length=7, **COUNTS
        )[0]

    gradient = jax.jit(jax.grad(loss))
    for reward in (0.0, 1.0, 0.1):
        np.testing.assert_array_equal(gradient(b["logp"], jnp.full(6, reward)), np.zeros((6, 5)))
    assert np.abs(gradient(b["logp"], jnp.arange(6.0))).max() > 0
