"""Draws against exact distributions: how often each token comes, and what of it rounding changes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import draw, draw_logits, keys

from cgrpo_jax.inference.sampling import _waits, index_array, row_keys, token_keys
from cgrpo_jax.records import RowIndex, Stage


def distribution(num_tokens, seed):
    """Random probabilities, a third of them 0, with one likely token."""
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(num_tokens, 0.3)) * (rng.random(num_tokens) > 1 / 3)
    prob[rng.integers(num_tokens)] += 0.3
    return prob / prob.sum()


def assert_drawn_from(prob_V, token_B):
    """A chi-square test at 0.1 % significance; the draws are the same on every machine. What is rare is one bin."""
    count, expected = np.bincount(token_B, minlength=len(prob_V)), len(token_B) * np.asarray(prob_V)
    assert not count[expected == 0].any()
    rare = expected < 5
    count, expected = (np.append(x[~rare], x[rare].sum()) for x in (count, expected))
    expected = np.maximum(expected, 1e-9)
    df = max(1, len(count) - 1)
    quantile = df * (1 - 2 / (9 * df) + 3.09 * np.sqrt(2 / (9 * df))) ** 3  # Wilson and Hilferty, 1931
    assert np.sum((count - expected) ** 2 / expected) < quantile


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
def test_each_token_gets_its_share_of_the_draws(num_tokens):
    prob = distribution(num_tokens, seed=num_tokens)
    token, logp = draw(prob)
    assert_drawn_from(prob, token)
    np.testing.assert_allclose(logp, np.log(prob[token]), atol=1e-5)


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
    prob = np.random.default_rng(3).dirichlet(np.full(300, 0.2)) + 1e-9
    prob /= prob.sum()
    token, logp = draw(prob, **settings)
    assert_drawn_from(truncated(prob, **settings), token)
    # What is returned is the log-probability before truncation.
    np.testing.assert_allclose(
        logp, np.log(truncated(prob, temperature=settings.get("temperature", 1.0))[token]), rtol=1e-5, atol=1e-5
    )


def test_blocks_and_the_tokens_of_a_block_are_drawn_independently():
    """Had both the same noise, short waits would come in pairs, and a token's share would depend on its block."""
    token, _ = draw(np.full(512, 1 / 512), 50_000)
    block, entry = np.divmod(token, 256)
    assert_drawn_from(np.full(512, 1 / 512), token)
    assert abs(np.corrcoef(block, entry)[0, 1]) < 4 / np.sqrt(len(token))


def test_waits_are_exponential_and_neither_zero_nor_infinite():
    ends = np.asarray(_waits(np.array([0, 1, 2**32 - 2, 2**32 - 1], np.uint32)))
    assert (np.diff(ends) >= 0).all() and ends[0] > 0 and np.isfinite(ends).all() and ends[-1] > 16
    np.testing.assert_allclose(ends[:2], [0.5 * 2.0**-32, 1.5 * 2.0**-32], rtol=1e-6)
    waits = np.sort(np.asarray(_waits(jax.random.bits(jax.random.key(0), (100_000,)))))
    distance = np.abs(1 - np.exp(-waits) - (np.arange(len(waits)) + 0.5) / len(waits)).max()
    assert distance < 1.95 / np.sqrt(len(waits))  # Kolmogorov and Smirnov, 0.1 % significance


def test_temperature_zero_is_argmax_whatever_the_key_and_the_truncation():
    prob = distribution(300, seed=0)
    for settings in ({}, {"top_p": 0.3}, {"top_k": 4}):
        token, logp = draw(prob, number=8, temperature=0, **settings)
        assert set(token) == {prob.argmax()}
        np.testing.assert_allclose(logp, np.log(prob.max()), rtol=1e-5)
    assert set(draw([0.2, 0.4, 0.4], number=8, temperature=0)[0]) == {1}  # the first of equals
    token, _ = draw_logits(np.log(prob + 1e-9).astype(np.float32)[None], None, temperature=0)
    assert token == prob.argmax()


def test_scale_of_logits_does_not_matter():
    """Logits of 1e4 and of -1e4 would overflow or vanish in a bare exponential."""
    logits = np.log(distribution(40, seed=1) + 1e-3).astype(np.float32)
    rows = np.stack([logits, logits + 1e4, logits - 1e4])
    # 1e4 leaves the logits 3 decimals: compare with those of the same precision.
    exact = np.stack([logits, (logits + np.float32(1e4)) - np.float32(1e4), (logits - np.float32(1e4)) + 1e4])
    for seed in range(4):
        token, logp = draw_logits(rows, keys(3, seed))
        expected_token, expected_logp = draw_logits(exact, keys(3, seed))
        np.testing.assert_array_equal(token, expected_token)
        np.testing.assert_allclose(logp, expected_logp, atol=2e-3)


@pytest.mark.parametrize("num_tokens", [3, 256, 257, 700])
@pytest.mark.parametrize("where", ["start", "end", "both", "all but the middle"])
def test_tokens_and_blocks_of_no_mass_are_never_drawn(num_tokens, where):
    prob = np.ones(num_tokens)
    middle = num_tokens // 2
    if where in ("start", "both"):
        prob[:middle] = 0  # with 700 tokens: a whole block and a part of one
    if where in ("end", "both"):
        prob[middle + 1 :] = 0
    if where == "all but the middle":
        prob = np.eye(num_tokens)[middle]
    token, logp = draw(prob / prob.sum())
    assert_drawn_from(prob / prob.sum(), token)
    assert np.isfinite(logp).all()


def test_rows_are_drawn_independently():
    rng = np.random.default_rng(0)
    logits, own = rng.normal(0, 3, (32, 300)).astype(np.float32), keys(32)
    token, logp = draw_logits(logits, own, top_p=0.9)
    order = rng.permutation(32)
    shuffled_token, shuffled_logp = draw_logits(logits[order], own[order], top_p=0.9)
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
    found = key_data(indices=[base, *changed, swapped])
    found += key_data(seed=1, indices=[base]) + key_data(iteration=1, indices=[base])
    assert len(set(found)) == len(found) == 10


def test_keys_of_a_run_do_not_collide():
    indices = [
        RowIndex(question=q, response=n, critique=c, refinement=r, stage=s, attempt=a)
        for q, n, c, r, s, a in itertools.product(range(6), range(4), range(2), range(2), Stage, range(3))
    ]
    found = [key_data(seed=s, iteration=i, indices=indices) for s in range(3) for i in range(4)]
    assert len({key for run in found for key in run}) == 12 * len(indices) == 12 * 864


def test_a_key_does_not_depend_on_its_neighbours():
    a, b, c = (RowIndex(question=q, response=5 - q) for q in range(3))
    assert key_data(indices=[a, b, c])[1] == key_data(indices=[b])[0] == key_data(indices=[c, b])[1]


def test_index_array_keeps_the_order_that_keys_are_folded_in():
    """The order is part of the format: another one would change the text of every seed."""
    index = RowIndex(question=1, response=2, critique=3, refinement=4, stage=Stage.REFINEMENT, attempt=5)
    np.testing.assert_array_equal(index_array([index]), [[1, 2, 3, 4, 2, 5]])
    assert index_array([]).shape == (0, 6)


def test_tokens_are_drawn_independently_over_rows_and_over_positions():
    @jax.jit
    def draws(index_B6):
        of_position = lambda t: token_keys(row_keys(0, 0, index_B6), t)  # noqa: E731
        own = jax.vmap(of_position, out_axes=1)(jnp.arange(256))
        return jnp.exp(-_waits(jax.vmap(jax.vmap(jax.random.bits))(own)))

    u = np.asarray(draws(index_array([RowIndex(question=q) for q in range(64)])))
    assert u.shape == (64, 256) and len(np.unique(u)) > 0.99 * u.size
    distance = np.abs(np.sort(u.ravel()) - (np.arange(u.size) + 0.5) / u.size).max()
    assert distance < 1.95 / np.sqrt(u.size)
    # Neither the rows nor the positions go together: correlations of 256 and of 64 numbers.
    assert np.abs(np.corrcoef(u) - np.eye(64)).max() < 5 / np.sqrt(256)
    assert np.abs(np.corrcoef(u.T) - np.eye(256)).max() < 5 / np.sqrt(64)
