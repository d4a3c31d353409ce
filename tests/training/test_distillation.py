"""A teacher that has seen feedback: what it says of a row, and what the loss makes of that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_cases import SETTINGS, WITH_TEACHER, C, plain_groups, rows, taught
from train_step_cases import CONFIG, PLAIN, params

from cgrpo_jax.records import LossKind
from cgrpo_jax.training import distillation, optimizer, train_step
from cgrpo_jax.training.packing import empty_batch, pack

DISTIL = dataclasses.replace(PLAIN, distil_coef=0.5)


def test_the_loss_by_hand():
    batch = empty_batch(WITH_TEACHER, max_length=3, num_groups=1).replace(
        distil_B=np.array([True, True, False]), alone_B=np.array([False, True, False])
    )
    mask = jnp.array([[True, True, False], [True, False, False], [True, True, True]])
    distance, rest = jnp.array([[0.2, 0.4, 9], [0.1, 9, 9], [9, 9, 9]]), jnp.full((3, 3), 0.25)
    counts = dict(num_rows=2, num_tokens=10, num_questions=1, num_responses=4, num_refinements=1)
    for aggregate, weighed in (
        ("constant", 0.7 / 4),
        ("token_mean", 0.7 / 10),
        ("paper", 0.7 / 4),
        ("sequence_mean", (0.3 + 0.1) / 2),
    ):
        loss, stats = distillation.distil_loss(
            batch, mask, distance, rest, coef=0.5, aggregate=aggregate, max_length=2, **counts
        )
        np.testing.assert_allclose(loss, 0.5 * weighed, rtol=1e-6)
    found = {name: float(value) for name, value in stats.items() if name != "distil_loss"}
    assert found == pytest.approx(
        {
            "distil/tokens": 3,
            "distil/alone_tokens": 1,
            "distil/divergence_sum": 0.7,
            "distil/rest_sum": 0.75,
        }
    )


def test_the_teacher_scores_a_rows_own_tokens_after_its_feedback():
    given = rows()
    found = taught(given)
    with_teacher = [row.feedback_ids is not None and not row.masked for row in given]
    assert [row.teacher_logp is not None for row in found] == with_teacher and sum(with_teacher) == 3
    for row in found:
        if row.teacher_logp is None:
            assert row.top_ids is None
            continue
        assert row.top_ids.shape == (len(row.target_ids), C)
        # The policy's most likely tokens after the question, and the teacher's log-probabilities of them.
        policy = plain_groups(params(), row.context_ids, row)
        assert (np.diff(policy[:, :-1], axis=1) <= 1e-6).all()
        every = dataclasses.replace(row, top_ids=np.tile(np.arange(CONFIG.vocab_size - 1), (len(row.target_ids), 1)))
        best = np.sort(plain_groups(params(), row.context_ids, every), axis=1)[:, -C:]
        np.testing.assert_allclose(policy[:, :-1], best[:, ::-1], rtol=1e-6)
        np.testing.assert_allclose(row.teacher_logp, plain_groups(params(), row.feedback_ids, row), atol=2e-5)
        np.testing.assert_allclose(np.exp(row.teacher_logp).sum(axis=1), 1, rtol=1e-5)
        assert np.abs(row.teacher_logp - policy).max() > 0.1


def test_a_batch_has_what_the_teacher_says_where_a_target_is_predicted():
    given = taught(rows())
    keywords = dataclasses.asdict(WITH_TEACHER)
    for batch in pack(given, max_length=8, **keywords):
        for b in np.flatnonzero(batch.length_B):
            here = slice(batch.start_B[b], batch.start_B[b] + batch.length_B[b])
            ids, logp = batch.top_ids_RSC[batch.row_B[b], here], batch.teacher_logp_RSG[batch.row_B[b], here]
            row = next(r for r in given if np.array_equal(r.target_ids, batch.target_BT[b, : batch.length_B[b]]))
            assert batch.distil_B[b] == (row.teacher_logp is not None)
            if batch.distil_B[b]:
                np.testing.assert_array_equal(ids, row.top_ids)
                np.testing.assert_array_equal(logp, row.teacher_logp)
            else:  # any distribution: C different tokens, and all others
                assert all(len(set(one)) == C for one in ids)
                np.testing.assert_allclose(np.exp(logp).sum(axis=-1), 1, rtol=1e-5)
    plain = pack(given, max_length=8, **keywords | {"top_tokens": 0})[0]
    assert plain.distil_B is plain.top_ids_RSC is plain.teacher_logp_RSG is None


@pytest.mark.parametrize("kind", [LossKind.POLICY, LossKind.DISTIL])
def test_rows_with_a_teacher_move_the_weights_whatever_their_advantage(kind):
    found = [train_step.has_gradient(row, DISTIL) for row in taught(rows(kind))]
    without = [kind == LossKind.POLICY] * 2  # of an advantage, and no teacher
    assert found == [True, True, *without, True, False, True]
    nothing = [train_step.has_gradient(row, PLAIN) for row in taught(rows())]
    assert nothing == [True, True, True, True, False, False, True]


def test_an_average_moves_by_its_rate():
    average, params_ = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([2.0, 2.0])}
    np.testing.assert_allclose(optimizer.toward(average, params_, rate=0.25)["w"], [1.25, 2.0])


def test_the_teachers_shape_has_as_many_tokens():
    assert SETTINGS.teacher_shape == dataclasses.replace(SETTINGS.shape, top_tokens=C)


def test_a_teacher_that_says_the_same_gives_exactly_no_gradient():
    """The policy's own distribution, as the same program computes it, in the teacher's place."""
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
    table = jnp.asarray(np.random.default_rng(1).normal(size=(40, 8)), jnp.float32)
    ids = distillation.linear_top_tokens(hidden, table, num_tokens=C, block_size=16)

    @jax.jit
    def gradients(hidden, table):
        logits, pull_back = jax.vjp(
            lambda h, t: distillation.linear_group_logits(h, t, ids, block_size=16), hidden, table
        )
        teacher = jax.nn.log_softmax(logits, axis=-1)
        return [
            pull_back(jax.grad(lambda z, name=name: distillation.ratios.distance(z, teacher, name).sum())(logits))
            for name in distillation.ratios.DIVERGENCES
        ]

    for gradient in jax.tree.leaves(gradients(hidden, table)):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
