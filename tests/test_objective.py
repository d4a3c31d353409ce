"""Values of the objective against numbers worked out by hand; the arithmetic stands beside each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.objective import (
    AGGREGATES,
    KL_ESTIMATORS,
    kl_k3,
    nll_loss,
    policy_loss,
    token_weights,
)

with_and_without_jit = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])


def close(actual, expected, rtol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-7)


def loss_of(logp, old_logp, advantage, mask, refined, **keywords):
    """`policy_loss` of plain lists, as Python numbers; compiled, since one program is quicker than forty operations."""
    arrays = [np.array(x, np.float32) for x in (logp, old_logp, advantage, mask)]
    given = {
        name: np.array(keywords.pop(name), np.float32) for name in ("ref_logp_BT", "entropy_BT") if name in keywords
    }
    loss, stats = jax.jit(partial(policy_loss, **keywords))(*arrays, np.array(refined, bool), **given)
    return float(loss), {name: float(value) for name, value in stats.items()}


# Ratios, clipping, aggregation.

HALF, THREE_HALVES = np.log(0.5), np.log(1.5)  # log-probability differences that make the ratios 0.5 and 1.5


@with_and_without_jit
@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        # A = 1: min(1.5, 1.2) + min(0.5, 0.8) = 1.7. A = -2: min(-3, -2.4) + min(-1, -1.6) = -4.6.
        # The sum is -2.9, over 2 rows * 4 tokens.
        ({}, 2.9 / 8),
        # Bounds 0.9 and 1.3: 1.3 + 0.5 - 3 - 1.8 = -3.
        ({"clip_low": 0.1, "clip_high": 0.3}, 3 / 8),
        # No clip: 1.5 + 0.5 - 3 - 1 = -2.
        ({"clip_initial": False}, 2 / 8),
        # The other kind's flag has no say.
        ({"clip_refined": True}, 2.9 / 8),
    ],
)
def test_initial_rows(transform, keywords, expected):
    logp = jnp.array([[-1 + THREE_HALVES, -2 + HALF], [-3 + THREE_HALVES, -4 + HALF]])
    old_logp = jnp.array([[-1.0, -2.0], [-3.0, -4.0]])

    def loss(logp, old_logp):
        ones = jnp.ones((2, 2))
        return policy_loss(logp, old_logp, jnp.array([1.0, -2.0]), ones, jnp.zeros(2, bool), max_length=4, **keywords)

    value, stats = transform(loss)(logp, old_logp)
    close(value, expected)
    clipped = 0 if keywords == {"clip_initial": False} else 1
    close(stats["initial/tokens"], 4)
    close(stats["initial/ratio_sum"], 1.5 + 0.5 + 1.5 + 0.5)
    close(stats["initial/clip_low"], clipped)  # ratio 0.5 with A = -2
    close(stats["initial/clip_high"], clipped)  # ratio 1.5 with A = 1
    close(stats["logp_difference_sum"], 2 * (0.405465 + 0.693147))
    close(stats["refined/tokens"], 0)


@with_and_without_jit
@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        # pi = 0.1, 0.9 with gamma = 0.1: rho = 0.1/0.2 = 0.5 and 0.9/1.0 = 0.9.
        # A = 1: 0.5 + 0.9 = 1.4 (1.2 is out of reach). A = -1: min(-0.5, -0.8) + min(-0.9, -0.9) = -1.7. Sum -0.3.
        ({"clip_refined": True}, 0.3 / 8),
        # gamma = 0.3: rho = 0.25 and 0.75. A = 1: 1. A = -1: -0.8 twice. Sum -0.6.
        ({"clip_refined": True, "gamma": 0.3}, 0.6 / 8),
        # clip_low = 0.6: 0.4 clips nothing. 1.4 - 1.4.
        ({"clip_refined": True, "clip_low": 0.6}, 0.0),
        # clip_high = -0.2: an upper bound of 0.8, with the lower one. A = 1: 0.5 + 0.8. A = -1: -0.8 - 0.9. Sum -0.4.
        ({"clip_refined": True, "clip_high": -0.2}, 0.4 / 8),
        ({"clip_refined": True, "clip_initial": False}, 0.3 / 8),
        # No clip, as it is by default.
        ({}, 0.0),
        ({"gamma": 0.3, "clip_initial": True}, 0.0),
    ],
)
def test_refined_rows(transform, keywords, expected):
    logp = jnp.log(jnp.array([[0.1, 0.9], [0.1, 0.9]]))

    def loss(logp):
        advantage, ones = jnp.array([1.0, -1.0]), jnp.ones((2, 2))
        return policy_loss(logp, -7 * ones, advantage, ones, jnp.ones(2, bool), max_length=4, **keywords)

    value, stats = transform(loss)(logp)
    close(value, expected)
    close(stats["refined/tokens"], 4)
    close(stats["refined/prob_sum"], 2.0)
    close(stats["initial/tokens"], 0)
    if len(keywords) < 2:
        close(stats["refined/ratio_sum"], 2.8)
        close(stats["refined/clip_low"], len(keywords))  # rho 0.5 with A = -1
        close(stats["refined/clip_high"], 0)


def test_shaped_ratio_has_no_old_policy():
    logp = [[-1.0, -2.0], [-0.5, -3.0]]
    arguments = ([1.0, 0.5], [[1, 1], [1, 1]], [True, False])
    base = loss_of(logp, [[0.0, 0.0], [-1.0, -1.0]], *arguments, max_length=2)
    assert loss_of(logp, [[-9.0, 1e30], [-1.0, -1.0]], *arguments, max_length=2) == base
    assert loss_of(logp, [[0.0, 0.0], [-1.0, -2.0]], *arguments, max_length=2)[0] != base[0]


# Two initial rows of 2 and 1 tokens, one refined row of 3: Q = 1, n = 2, k = 1.
LENGTHS_MASK = [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
COUNTS = {"num_questions": 1, "num_responses": 2, "num_refinements": 1}
WEIGHTS = {
    "constant": [1 / 15, 1 / 15, 1 / 15],  # 3 rows of at most 5 tokens
    "paper": [1 / 2, 1 / 2, 1],  # 1/(Q n), 1/(Q k)
    "token_mean": [1 / 6, 1 / 6, 1 / 6],
    "sequence_mean": [1 / (3 * 2), 1 / (3 * 1), 1 / (3 * 3)],
}
# With r = 1, A = 1, -1, 2 and pi = gamma in the refined row, whose rho is 1/2, the terms of the rows are 1, -1 and 1.
LOSSES = {
    "constant": -(2 - 1 + 3) / 15,
    "paper": -((2 - 1) / 2 + 3 / 1),
    "token_mean": -(2 - 1 + 3) / 6,
    "sequence_mean": -(2 / 2 - 1 / 1 + 3 / 3) / 3,
}


@pytest.mark.parametrize("dtype", [bool, float])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_token_weights(aggregate, dtype):
    refined = jnp.array([False, False, True])
    mask = jnp.array(LENGTHS_MASK, dtype)
    weight = token_weights(mask, refined, aggregate=aggregate, max_length=5, **COUNTS)
    close(weight, np.array(WEIGHTS[aggregate])[:, None] * np.array(LENGTHS_MASK))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_loss_by_aggregation(aggregate):
    logp = np.full((3, 3), np.log(0.1))
    refined = [False, False, True]
    loss, _ = loss_of(logp, logp, [1, -1, 2], LENGTHS_MASK, refined, aggregate=aggregate, max_length=5, **COUNTS)
    close(loss, LOSSES[aggregate])


def test_paper_counts_every_question():
    mask, refined = jnp.ones((3, 1)), jnp.array([False, True, True])
    weight = token_weights(
        mask, refined, aggregate="paper", max_length=9, num_questions=4, num_responses=7, num_refinements=2
    )
    close(weight[:, 0], [1 / 28, 1 / 8, 1 / 8])


def test_constant_gives_a_refined_row_a_seventh_of_its_weight_in_the_paper():
    mask, refined = jnp.ones((8, 1)), jnp.arange(8) == 7
    counts = {"num_questions": 1, "num_responses": 7, "num_refinements": 1}
    constant = token_weights(mask, refined, aggregate="constant", max_length=4)[:, 0]
    paper = token_weights(mask, refined, aggregate="paper", max_length=4, **counts)[:, 0]
    close((paper[7] / paper[0]) / (constant[7] / constant[0]), 7)


def test_paper_without_refinements():
    mask, refined = jnp.ones((2, 1)), jnp.zeros(2, bool)
    counts = {"num_questions": 1, "num_responses": 2, "num_refinements": 0}
    close(token_weights(mask, refined, aggregate="paper", max_length=4, **counts)[:, 0], [0.5, 0.5])


def test_the_divisor_is_max_length_not_the_width_of_the_array():
    def loss(**keywords):
        return loss_of([[-1.0, -1.0]], [[-1.0, -1.0]], [1.0], [[1, 1]], [False], **keywords)[0]

    close(loss(max_length=2), -1.0)
    close(loss(max_length=8), -0.25)
    close(loss(max_length=8, num_rows=5), -0.05)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_microbatches_add_up(aggregate):
    rng = np.random.default_rng(0)
    logp, old, ref = -rng.exponential(1.0, (3, 6, 5))
    entropy, advantage = rng.uniform(0, 2, (6, 5)), rng.normal(size=6)
    mask = np.arange(5) < np.array([5, 3, 0, 1, 4, 2])[:, None]
    refined = np.array([0, 1, 0, 0, 1, 0], bool)

    def part(rows):
        return loss_of(
            logp[rows],
            old[rows],
            advantage[rows],
            mask[rows],
            refined[rows],
            aggregate=aggregate,
            max_length=8,
            num_rows=6,
            num_tokens=15,
            num_questions=2,
            num_responses=2,
            num_refinements=1,
            ref_logp_BT=ref[rows],
            kl_coef=0.1,
            entropy_BT=entropy[rows],
            entropy_coef=0.01,
        )

    whole, first, second = part(slice(0, 6)), part(slice(0, 2)), part(slice(2, 6))
    close(first[0] + second[0], whole[0], rtol=1e-5)
    assert whole[1].keys() == first[1].keys()
    for name, value in whole[1].items():
        close(first[1][name] + second[1][name], value, rtol=1e-5)


# KL, entropy, negative log-likelihood.


@with_and_without_jit
def test_kl_k3(transform):
    # d = log(0.25/0.5) = -log 2: 0.5 + 0.693147 - 1. d = log 2: 2 - 0.693147 - 1. d = 0: 0.
    logp, ref_logp = jnp.log(jnp.array([0.5, 0.25, 0.3])), jnp.log(jnp.array([0.25, 0.5, 0.3]))
    close(transform(kl_k3)(logp, ref_logp), [0.193147, 0.306853, 0.0], rtol=1e-5)


@pytest.mark.parametrize(
    # log pi - log pi_ref is log 2 at the first token and -log 4 at the second.
    ("kl", "kl_sum"),
    [
        ("k1", -0.693147),
        ("k2", (0.693147**2 + 1.386294**2) / 2),
        ("k3", (0.5 + 0.693147 - 1) + (4 - 1.386294 - 1)),
    ],
)
def test_kl_term(kl, kl_sum):
    # 0.1 times the sum, over 1 row * 2 tokens, is added to a loss without advantage.
    logp, ref = np.log([[0.5, 0.2]]), jnp.log(jnp.array([[0.25, 0.8]]))
    for refined in (False, True):
        loss, stats = loss_of(logp, logp, [0], [[1, 1]], [refined], max_length=2, ref_logp_BT=ref, kl_coef=0.1, kl=kl)
        close(loss, 0.1 * kl_sum / 2)
        close(stats["kl_sum"], kl_sum)
    assert set(KL_ESTIMATORS) == {"k1", "k2", "k3"}


def test_entropy_term():
    # Initial row: 0.6 + 0.2; refined row: 0.4 (its second token is masked). -0.5 * 1.2 / (2 rows * 3 tokens).
    logp, entropy = [[-1, -1], [-1, -1]], jnp.array([[0.6, 0.2], [0.4, 9.0]])
    mask, refined = [[1, 1], [1, 0]], [False, True]
    loss, stats = loss_of(logp, logp, [0, 0], mask, refined, max_length=3, entropy_BT=entropy, entropy_coef=0.5)
    close(loss, -0.1)
    close(stats["initial/entropy_sum"], 0.8)
    close(stats["refined/entropy_sum"], 0.4)


@with_and_without_jit
def test_nll_loss(transform):
    def loss(logp):
        return nll_loss(logp, jnp.array([1.0, 0.5]), jnp.array([[1, 1], [1, 0]]), num_tokens=3)

    close(transform(loss)(jnp.array([[-1.0, -2.0], [-4.0, 1e30]])), (1 + 2 + 0.5 * 4) / 3)


# What must not matter.


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_masked_entries_change_nothing(aggregate):
    rng = np.random.default_rng(1)
    mask = jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
    refined = jnp.array([False, True, True])
    clean = [jnp.asarray(x, jnp.float32) for x in (*-rng.exponential(1.0, (3, 3, 3)), rng.uniform(0, 1, (3, 3)))]

    def loss(logp, old, ref, entropy):
        return policy_loss(
            logp,
            old,
            jnp.array([1.0, -1.0, 0.5]),
            mask,
            refined,
            aggregate=aggregate,
            max_length=4,
            ref_logp_BT=ref,
            kl_coef=0.1,
            entropy_BT=entropy,
            entropy_coef=0.1,
            **COUNTS,
        )

    differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    expected = differentiated(*clean)
    for junk in (1e30, -1e30):
        # logp alone, then with the opposite sign in the rest, so that differences are as large as they can be.
        for signs in ((1, 0, 0, 0), (1, -1, -1, -1), (1, 1, 1, 1)):
            dirty = [jnp.where(mask, x, sign * junk) for x, sign in zip(clean, signs, strict=True)]
            jax.tree.map(np.testing.assert_array_equal, differentiated(*dirty), expected)


def test_padding_changes_nothing():
    rng = np.random.default_rng(2)
    logp, old = -rng.exponential(1.0, (2, 3, 4))
    mask, advantage, refined = np.ones((3, 4)), np.array([1.0, -0.5, 0.25]), np.array([False, False, True])
    base = loss_of(logp, old, advantage, mask, refined, max_length=6, num_rows=3)
    wide = [np.pad(x, ((0, 2), (0, 3)), constant_values=c) for x, c in ((logp, 50.0), (old, -50.0), (mask, 0))]
    padded = loss_of(
        wide[0], wide[1], np.pad(advantage, (0, 2)), wide[2], np.pad(refined, (0, 2)), max_length=6, num_rows=3
    )
    close(padded[0], base[0])
    for name, value in base[1].items():
        close(padded[1][name], value)


# Mistakes.


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_a_token_that_the_old_policy_can_hardly_have_sampled_has_a_finite_gradient(advantage, clip):
    def loss(logp):
        return policy_loss(
            logp, jnp.array([[-200.0, -1.0]]), jnp.array([advantage]), jnp.ones((1, 2)), jnp.array([False]),
            max_length=2, clip_initial=clip,
        )[0]  # fmt: skip

    gradient = jax.grad(loss)(jnp.array([[-1.0, -1.0]]))
    np.testing.assert_allclose(gradient, [[0.0, -advantage / 2]], atol=1e-6)


def test_unknown_aggregate_names_the_choices():
    message = "aggregate='mean' is unknown; use one of constant, paper, token_mean, sequence_mean"
    with pytest.raises(UserError, match=message):
        loss_of([[-1]], [[-1]], [1], [[1]], [False], aggregate="mean", max_length=1)


@pytest.mark.parametrize("what", ["initial_ratio", "refined_ratio", "kl", "tis_level"])
def test_an_unknown_name_is_refused_with_the_choices(what):
    with pytest.raises(UserError, match=f"{what}='mean' is unknown; use one of .*, "):
        loss_of([[-1]], [[-1]], [1], [[1]], [False], max_length=1, **{what: "mean"})


def test_paper_names_the_missing_counts():
    with pytest.raises(ValueError, match="pass also num_responses, num_refinements"):
        loss_of([[-1]], [[-1]], [1], [[1]], [False], aggregate="paper", max_length=1, num_questions=1)


@pytest.mark.parametrize(
    ("coefficient", "array"),
    [("kl_coef", "ref_logp_BT"), ("entropy_coef", "entropy_BT"), ("tis_cap", "sampler_logp_BT")],
)
def test_a_coefficient_needs_its_array(coefficient, array):
    with pytest.raises(ValueError, match=f"{coefficient}=0.5 needs {array}; pass it or set {coefficient}=0."):
        loss_of([[-1]], [[-1]], [1], [[1]], [False], max_length=1, **{coefficient: 0.5})


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError, match="advantage_B has shape"):
        loss_of([[-1, -1]], [[-1, -1]], [[1]], [[1, 1]], [False], max_length=1)
    with pytest.raises(AssertionError, match="mask_BT has shape"):
        loss_of([[-1, -1]], [[-1, -1]], [1], [[1]], [False], max_length=1)
