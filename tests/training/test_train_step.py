"""The update against its loss written out in float64, and the invariants that keep a minibatch a minibatch."""

import jax
import numpy as np
import pytest
from tiny import plain_logprobs
from train_step_cases import (
    CONFIG,
    MODEL,
    PLAIN,
    REGULARISED,
    SETTINGS,
    gradient,
    hold_masked_rows,
    loss_by_definition,
    make_row,
    mixed_rows,
    norm,
    params,
    relative_difference,
    score,
    update,
)

from cgrpo_jax.objective import AGGREGATES
from cgrpo_jax.records import LossKind
from cgrpo_jax.training import train_step as train_step_lib
from cgrpo_jax.training.train_step import accumulate_gradients

aggregates = pytest.mark.parametrize("aggregate", AGGREGATES)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """A program for each loss, which most of these tests share."""
    for settings in (*SETTINGS.values(), REGULARISED):
        gradient(mixed_rows(), settings)


# The gradient, against the loss by its definition.


@aggregates
def test_packing_and_microbatching_do_not_change_the_gradient(aggregate):
    """Three packed batches, against one batch a row, added up."""
    rows, settings = mixed_rows(), SETTINGS[aggregate]
    policy = [row for row in rows if row.loss == LossKind.POLICY]
    counts = dict(num_rows=len(policy), num_tokens=sum(len(row.target_ids) for row in policy))
    nll_tokens = [len(row.target_ids) for row in rows if row.loss == LossKind.NLL]
    total = jax.tree.map(np.zeros_like, params())
    for row in rows:
        # Alone, an nll row is averaged over its own tokens.
        share = len(row.target_ids) / sum(nll_tokens) if row.loss == LossKind.NLL else 1.0
        alone = gradient([row.replace(advantage=row.advantage * share)], settings, **counts)
        total = jax.tree.map(np.add, total, alone)
    assert relative_difference(gradient(rows, settings), total) < 1e-5
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert relative_difference(gradient(shuffled, settings), total) < 1e-5


@pytest.mark.parametrize("settings", [*SETTINGS.values(), REGULARISED], ids=[*SETTINGS, "kl and entropy"])
def test_a_masked_row_counts_as_a_row_without_tokens(settings):
    hold_masked_rows(settings)


def test_statistics_are_sums_over_the_whole_minibatch():
    rows = mixed_rows()
    stats = accumulate_gradients(params(), rows, settings=PLAIN, num_questions=3, **MODEL)[1]
    for name, refined in (("initial", False), ("refined", True)):
        of_kind = [row for row in rows if row.loss == LossKind.POLICY and row.refined == refined]
        assert stats[f"{name}/tokens"] == sum(len(row.target_ids) for row in of_kind)
    loss = loss_by_definition(params(), rows, PLAIN, num_questions=3)
    np.testing.assert_allclose(stats["policy_loss"] + stats["nll_loss"], loss, rtol=1e-5)
    assert stats["initial/clip_low"] + stats["initial/clip_high"] > 0  # the rows of these tests do reach the clip


def test_the_number_of_programs_does_not_depend_on_the_rows():
    gradient(mixed_rows()[:1])
    before = train_step_lib.accumulate._cache_size()
    rng = np.random.default_rng(0)
    for count in (2, 5, 11):
        gradient([make_row(rng, rng.integers(1, 15), rng.integers(1, 9)) for _ in range(count)])
    assert train_step_lib.accumulate._cache_size() == before


# Rows of advantage 0.


@aggregates
def test_dropping_rows_without_advantage_changes_nothing(aggregate):
    """They count in the denominators all the same."""
    rows, settings = [row for row in mixed_rows() if row.loss == LossKind.POLICY], SETTINGS[aggregate]
    kept, kept_stats = update(rows, settings=settings, drop_zero=False)
    for given in ({}, {"num_rows": None, "num_tokens": None}):
        dropped, stats = update(rows, settings=settings, **given)
        assert (kept_stats["rows_trained"], stats["rows_trained"]) == (11, 9)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dropped.params, kept.params)
        np.testing.assert_allclose(stats["grad_norm"], kept_stats["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(kept_stats["grad_norm"], norm(gradient(rows, settings)), rtol=1e-5)
    # A minibatch that never had them is another one, except under "paper", which divides by questions.
    without = [row for row in rows if row.advantage]
    tokens = [sum(len(row.target_ids) for row in some) for some in (rows, without)]
    expected = {"paper": 1.0, "token_mean": tokens[0] / tokens[1]}.get(aggregate, 11 / 9)
    _, stats = update(without, settings=settings)
    np.testing.assert_allclose(stats["grad_norm"] / kept_stats["grad_norm"], expected, rtol=1e-5)


def test_a_minibatch_without_any_advantage_leaves_the_weights_alone():
    """All right or all wrong in every group, as at the start and at the end of training: nothing is even run."""
    rows = [row.replace(advantage=0.0) for row in mixed_rows() if row.loss == LossKind.POLICY]
    _, usual = update(mixed_rows())
    before = train_step_lib.accumulate._cache_size()
    state, stats = update(rows)
    assert train_step_lib.accumulate._cache_size() == before
    assert state.step == 1
    assert stats.keys() == usual.keys()  # those who log find every name
    assert set(stats.values()) == {0.0}
    jax.tree.map(np.testing.assert_array_equal, state.params, params())
    kept, stats = update(rows, drop_zero=False)
    assert stats["grad_norm"] == 0 and stats["rows_trained"] == len(rows)
    jax.tree.map(np.testing.assert_array_equal, kept.params, params())


def test_rows_without_advantage_are_kept_where_they_have_a_gradient():
    rows = [row.replace(advantage=0.0) for row in mixed_rows() if row.loss == LossKind.POLICY]
    _, stats = update(rows, settings=REGULARISED)
    assert stats["rows_trained"] == len(rows) and stats["grad_norm"] > 1e-3


# Kinds of rows.


def test_the_reference_enters_through_the_kl_term_alone():
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    other = [row.replace(ref_logp=row.ref_logp - 0.5) for row in rows]
    jax.tree.map(np.testing.assert_array_equal, gradient(rows), gradient(other))
    assert relative_difference(gradient(other, REGULARISED), gradient(rows, REGULARISED)) > 1e-2
    assert relative_difference(gradient(rows, REGULARISED), gradient(rows)) > 1e-2


def test_refined_rows_ignore_old_logp_and_initial_rows_do_not():
    row = make_row(np.random.default_rng(0), 5, 6, advantage=0.5)
    other = row.replace(old_logp=row.old_logp - 0.05)
    refined = gradient([row.replace(refined=True)])
    jax.tree.map(np.testing.assert_array_equal, refined, gradient([other.replace(refined=True)]))
    assert relative_difference(gradient([other]), gradient([row])) > 0.01
    assert relative_difference(refined, gradient([row])) > 0.1


def test_a_minibatch_of_likelihood_rows_alone():
    rows = [row for row in mixed_rows() if row.loss == LossKind.NLL]
    _, stats = update(rows)
    assert stats["policy_loss"] == 0 and stats["nll_loss"] > 0 and stats["grad_norm"] > 0
    assert stats["initial/tokens"] == stats["refined/tokens"] == 0


@pytest.mark.parametrize("num_rows", [None, 5])
def test_likelihood_rows_do_not_count_as_rows_of_the_objective(num_rows):
    nll = [row for row in mixed_rows() if row.loss == LossKind.NLL]
    policy = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    together, a, b = (gradient(rows, num_rows=num_rows) for rows in (policy + nll, policy, nll))
    assert relative_difference(jax.tree.map(np.add, a, b), together) < 1e-5


def test_what_a_setting_needs_is_asked_for():
    rows = mixed_rows()
    with pytest.raises(ValueError, match="kl_coef=0.3 needs ref_logp in every policy row"):
        gradient([*rows, rows[0].replace(ref_logp=None, loss=LossKind.POLICY)], REGULARISED)
    with pytest.raises(ValueError, match='aggregate="paper" needs .*; pass also num_questions'):
        accumulate_gradients(params(), rows, settings=SETTINGS["paper"], **MODEL)


# Scores, and the old policy.


def test_scores_come_in_the_order_of_the_rows():
    """Packing sorts rows by size, over several batches; rows of advantage 0 and nll rows are scored like the rest."""
    rows = mixed_rows()
    scored = score(params(), rows)
    assert len({len(row.target_ids) for row in rows}) > 3
    for row, logp in zip(rows, scored, strict=True):
        assert logp.shape == row.target_ids.shape
        expected = plain_logprobs(params(), CONFIG, row.context_ids, row.target_ids, temperature=0.8)
        np.testing.assert_allclose(logp, expected, atol=1e-5)
    for back, there in zip(score(params(), rows[::-1])[::-1], scored, strict=True):
        np.testing.assert_allclose(back, there, atol=1e-5)
    assert score(params(), []) == []
