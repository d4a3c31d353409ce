"""Draws against exact distributions: uniforms on a grid must give each token exactly its share of them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.sampling import _inverse_cdf, _Vocabulary, index_array, row_keys, sample, uniforms

GRID = 4096
MIDPOINTS = ((np.arange(GRID) + 0.5) / GRID).astype(np.float32)


draw_logits = jax.jit(sample, static_argnames=("temperature", "top_p", "top_k"))


def draw(prob_V, uniform_B=MIDPOINTS, **keywords):
    """Tokens and log-probabilities of one distribution at many uniforms."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(prob_V, np.float64)).astype(np.float32)
    logits_BV = np.broadcast_to(logits, (len(uniform_B), len(logits)))
    token_B, logp_B = draw_logits(logits_BV, np.asarray(uniform_B, np.float32), **keywords)
    assert token_B.dtype == jnp.int32 and logp_B.dtype == jnp.float32
    return np.asarray(token_B), np.asarray(logp_B)


def shares(num_tokens, seed=0):
    """Random probabilities that are multiples of 1 / GRID, some of them 0, with one likely token."""
    rng = np.random.default_rng(seed)
    count = rng.multinomial(GRID - 1000, rng.dirichlet(np.full(num_tokens, 0.3)))
    count[rng.integers(num_tokens)] += 1000
    return count / GRID


def truncated(prob_V, *, temperature=1.0, top_p=1.0, top_k=0):
    """The distribution by its definition, in float64: temperature, then the k likeliest, then the nucleus."""
    p = np.asarray(prob_V, np.float64) ** (1 / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
        p /= p.sum()
    return p


# The distribution.


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 255, 256, 257, 300, 512, 1000])
def test_each_token_gets_exactly_its_share_of_the_uniforms(num_tokens):
    prob = shares(num_tokens, seed=num_tokens)
    token, logp = draw(prob)
    np.testing.assert_array_equal(np.bincount(token, minlength=num_tokens), prob * GRID)
    np.testing.assert_allclose(logp, np.log(prob[token]), atol=1e-5)
    assert (np.diff(token) >= 0).all()  # an inverse CDF rises with its argument


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 299},
        {"top_k": 5000},
        {"top_p": 0.95},
        {"top_p": 0.5},
        {"top_p": 1e-6},
        {"temperature": 0.6, "top_p": 0.95},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.8},
    ],
    ids=str,
)
def test_truncated_distributions(settings):
    """Away from the edges of the reference CDF every draw is the reference's; and a chi-square over all of them."""
    prob = np.random.default_rng(3).dirichlet(np.full(300, 0.2)) + 1e-9
    prob /= prob.sum()
    expected = truncated(prob, **settings)
    token, logp = draw(prob, **settings)
    edge = np.cumsum(expected)
    clear = np.abs(MIDPOINTS[:, None] - edge).min(axis=1) > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(token[clear], np.searchsorted(edge, MIDPOINTS[clear], side="right"))
    count = np.bincount(token, minlength=300)
    assert not count[expected == 0].any()
    kept = expected > 0
    # Random draws would give about as much as there are tokens; a grid misses each share by less than one count.
    chi_square = np.sum((count - GRID * expected)[kept] ** 2 / np.maximum(GRID * expected[kept], 1))
    assert chi_square < np.sum(1 / np.maximum(GRID * expected[kept], 1)) + 1
    # What is returned is the log-probability before truncation.
    np.testing.assert_allclose(
        logp, np.log(truncated(prob, temperature=settings.get("temperature", 1.0))[token]), rtol=1e-5, atol=1e-5
    )


def test_the_nucleus_is_the_smallest_set_of_enough_mass():
    prob = [0.1, 0.4, 0.2, 0.3]
    for top_p, kept in ((0.05, {1}), (0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (0.91, {0, 1, 2, 3})):
        assert set(draw(prob, top_p=top_p)[0]) == kept
    # After top-k the nucleus is one of what is left: 0.4 of 0.7 is 0.57.
    assert set(draw(prob, top_k=2, top_p=0.5)[0]) == {1}
    assert set(draw(prob, top_k=2, top_p=0.6)[0]) == {1, 3}


def test_temperature_zero_is_argmax_whatever_the_uniform_and_the_truncation():
    prob = shares(300)
    for settings in ({}, {"top_p": 0.3}, {"top_k": 4}):
        token, logp = draw(prob, temperature=0, **settings)
        assert set(token) == {prob.argmax()}
        np.testing.assert_allclose(logp, np.log(prob.max()), rtol=1e-5)
    assert set(draw([0.2, 0.4, 0.4], temperature=0)[0]) == {1}  # the first of equals


def test_scale_of_logits_does_not_matter():
    """Logits of 1e4 and of -1e4 would overflow or vanish in a bare exponential."""
    logits = np.log(shares(40, seed=1) + 1e-3).astype(np.float32)
    rows = np.stack([logits, logits + 1e4, logits - 1e4])
    # 1e4 leaves the logits 3 decimals: compare with those of the same precision.
    exact = np.stack([logits, (logits + np.float32(1e4)) - np.float32(1e4), (logits - np.float32(1e4)) + 1e4])
    for u in (0.3, 0.77):
        token, logp = draw_logits(rows, np.full(3, u, np.float32))
        expected_token, expected_logp = draw_logits(exact, np.full(3, u, np.float32))
        np.testing.assert_array_equal(token, expected_token)
        np.testing.assert_allclose(logp, expected_logp, atol=2e-3)


def test_bfloat16_logits_are_drawn_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 300)), jnp.bfloat16)
    token, logp = draw_logits(logits, np.array([0.4], np.float32))
    same_token, same_logp = draw_logits(logits.astype(np.float32), np.array([0.4], np.float32))
    assert token == same_token and logp == same_logp and logp.dtype == jnp.float32


# Edges.

LAST = np.float32(1 - 2**-24)  # the largest float32 below 1


@pytest.mark.parametrize("num_tokens", [3, 256, 257, 700])
@pytest.mark.parametrize("where", ["start", "end", "both", "only the middle"])
def test_first_and_last_uniform_avoid_tokens_of_no_mass(num_tokens, where):
    prob = np.ones(num_tokens)
    middle = num_tokens // 2
    if where in ("start", "both"):
        prob[:middle] = 0  # with 700 tokens: a whole block and a part of one
    if where in ("end", "both"):
        prob[middle + 1 :] = 0
    if where == "only the middle":
        prob = np.eye(num_tokens)[middle]
    live = np.flatnonzero(prob)
    token, logp = draw(prob / prob.sum(), [0.0, np.finfo(np.float32).tiny, LAST, 1.0])
    assert list(token) == [live[0], live[0], live[-1], live[-1]]
    assert np.isfinite(logp).all()


def test_a_token_of_no_mass_is_never_drawn():
    """Uniforms within a few ulps of every edge: the sums behind them are rounded, and must not open a gap."""
    rng = np.random.default_rng(0)
    invert = jax.jit(functools.partial(_inverse_cdf, _Vocabulary(600, 600)))
    for trial in range(8):
        weight = rng.random(600).astype(np.float32)
        if trial % 2:
            weight *= (10.0 ** rng.integers(-6, 1, 600)).astype(np.float32)
        weight[rng.random(600) < 0.6] = 0
        edge = (np.cumsum(weight.astype(np.float64)) / weight.astype(np.float64).sum()).astype(np.float32)
        near = np.concatenate([edge + np.float32(k * 2**-24) for k in range(-6, 7)])
        near = np.clip(near, 0, LAST)
        token = np.asarray(invert(np.broadcast_to(weight, (len(near), 600)), near))
        assert (weight[token] > 0).all()
        # And what is drawn is right, up to rounding: the uniform lies in the token's interval.
        upper, lower = edge[token], edge[token] - weight[token] / weight.sum()
        assert ((lower - 1e-6 < near) & (near < upper + 1e-6)).all()


def test_rows_are_drawn_independently():
    rng = np.random.default_rng(0)
    logits, u = rng.normal(0, 3, (32, 300)).astype(np.float32), rng.random(32).astype(np.float32)
    token, logp = draw_logits(logits, u, top_p=0.9)
    order = rng.permutation(32)
    shuffled_token, shuffled_logp = draw_logits(logits[order], u[order], top_p=0.9)
    np.testing.assert_array_equal(token[order], shuffled_token)
    np.testing.assert_array_equal(logp[order], shuffled_logp)


# Keys.


def key_data(*, seed=0, iteration=0, indices):
    # At a fixed number of rows, so that one program serves all tests.
    index_B6 = np.resize(index_array(indices), (900, 6))
    data = _key_data(np.uint32(seed), np.uint32(iteration), index_B6)
    return [tuple(x) for x in np.asarray(data)[: len(indices)]]


@jax.jit
def _key_data(seed, iteration, index_B6):
    return jax.random.key_data(row_keys(seed, iteration, index_B6))


def test_every_field_of_an_index_enters_the_key():
    fields = ("question", "response", "critique", "refinement", "stage", "attempt")
    base = RowIndex(question=1, response=1, critique=1, refinement=1, stage=Stage.CRITIQUE, attempt=1)
    changed = [base.replace(**{f: Stage.REFINEMENT if f == "stage" else 2}) for f in fields]
    swapped = base.replace(question=2, response=0)
    keys = key_data(indices=[base, *changed, swapped])
    keys += key_data(seed=1, indices=[base]) + key_data(iteration=1, indices=[base])
    assert len(set(keys)) == len(keys) == 10


def test_keys_of_a_run_do_not_collide():
    indices = [
        RowIndex(question=q, response=n, critique=c, refinement=r, stage=s, attempt=a)
        for q, n, c, r, s, a in itertools.product(range(6), range(4), range(2), range(2), Stage, range(3))
    ]
    keys = [key_data(seed=s, iteration=i, indices=indices) for s in range(3) for i in range(4)]
    assert len({key for run in keys for key in run}) == 12 * len(indices) == 12 * 864


def test_a_key_does_not_depend_on_its_neighbours():
    a, b, c = (RowIndex(question=q, response=5 - q) for q in range(3))
    assert key_data(indices=[a, b, c])[1] == key_data(indices=[b])[0] == key_data(indices=[c, b])[1]


def test_index_array_keeps_the_order_that_keys_are_folded_in():
    """The order is part of the format: another one would change the text of every seed."""
    index = RowIndex(question=1, response=2, critique=3, refinement=4, stage=Stage.REFINEMENT, attempt=5)
    np.testing.assert_array_equal(index_array([index]), [[1, 2, 3, 4, 2, 5]])
    assert index_array([]).shape == (0, 6)


def test_uniforms_are_uniform_over_rows_and_over_positions():
    @jax.jit
    def draws(index_B6):
        return jax.vmap(lambda t: uniforms(row_keys(0, 0, index_B6), t), out_axes=1)(jnp.arange(256))

    u = np.asarray(draws(index_array([RowIndex(question=q) for q in range(64)])))
    assert u.shape == (64, 256) and (u >= 0).all() and (u < 1).all()
    assert len(np.unique(u)) > 0.99 * u.size  # float32 uniforms are multiples of 2^-23: a few coincide
    # The Kolmogorov-Smirnov distance, at 0.1 % significance: the numbers are the same on every machine.
    distance = np.abs(np.sort(u.ravel()) - (np.arange(u.size) + 0.5) / u.size).max()
    assert distance < 1.95 / np.sqrt(u.size)
    # Neither the rows nor the positions go together: correlations of 256 and of 64 numbers.
    assert np.abs(np.corrcoef(u) - np.eye(64)).max() < 5 / np.sqrt(256)
    assert np.abs(np.corrcoef(u.T) - np.eye(256)).max() < 5 / np.sqrt(64)
