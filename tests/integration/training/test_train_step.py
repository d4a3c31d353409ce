"""What takes longer than a unit test may, of tests/training/test_train_step.py."""

import dataclasses

import jax
import numpy as np
import pytest
from train_step_cases import (
    CONFIG,
    NEIGHBOURS,
    PLAIN,
    REGULARISED,
    SETTINGS,
    SHAPE,
    fresh_state,
    gradient,
    hold_masked_rows,
    loss_by_definition,
    make_row,
    mixed_rows,
    params,
    relative_difference,
    score,
    update,
)

from cgrpo_jax import sharding
from cgrpo_jax.models.params import axes_like, init_params, param_shapes
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import train_step as train_step_lib
from cgrpo_jax.training.optimizer import init_state, make_optimizer


@pytest.mark.parametrize(
    "settings",
    [*SETTINGS.values(), REGULARISED, *NEIGHBOURS.values()],
    ids=[*SETTINGS, "kl and entropy", *NEIGHBOURS],
)
def test_the_gradient_is_that_of_the_loss_by_its_definition(settings):
    """Along a random direction of every tensor, against central differences of a float64 loss."""
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
    actual = gradient(mixed_rows(), settings)
    leaves, structure = jax.tree.flatten(exact)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(exact)]
    rng = np.random.default_rng(0)
    for i, (name, g) in enumerate(zip(names, jax.tree.leaves(actual), strict=True)):
        direction = rng.normal(size=leaves[i].shape)
        step = 1e-6

        def loss(sign, i=i, direction=direction, step=step):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate(leaves)]
            return loss_by_definition(structure.unflatten(moved), mixed_rows(), settings, num_questions=3)

        slope = (loss(1) - loss(-1)) / (2 * step)
        # Float32 sums: an error is relative to the gradient's length, not to its share along one direction.
        scale = np.linalg.norm(g)
        assert scale > 1e-4, name
        assert abs(np.sum(np.asarray(g, np.float64) * direction) - slope) < 1e-4 * scale, name


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neither_packing_nor_dropping_changes_what_another_ratio_gives(name):
    """A ratio of a whole response is of its own tokens alone, whatever shares its token row or batch."""
    settings = NEIGHBOURS[name]
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    counts = dict(num_rows=len(rows), num_tokens=sum(len(row.target_ids) for row in rows))
    total = jax.tree.map(np.zeros_like, params())
    for row in rows:
        total = jax.tree.map(np.add, total, gradient([row], settings, **counts))
    assert relative_difference(gradient(rows, settings), total) < 1e-5
    dropped, stats = update(rows, settings=settings)
    kept, _ = update(rows, settings=settings, drop_zero=False)
    without = 0 if settings.kl_coef else 2 + (name == "sequence_masked")  # of advantage 0, and beyond the cap
    assert stats["rows_trained"] == len(rows) - without
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dropped.params, kept.params)
    np.testing.assert_allclose(
        stats["policy_loss"], loss_by_definition(params(), rows, settings, num_questions=3), rtol=1e-4
    )


@pytest.mark.parametrize("aggregate", sorted(SETTINGS.keys() - {REGULARISED.aggregate}))
def test_a_masked_row_counts_as_a_row_without_tokens(aggregate):
    hold_masked_rows(dataclasses.replace(REGULARISED, aggregate=aggregate))


def test_a_row_beyond_the_cap_of_what_the_sampler_did_otherwise_is_dropped():
    settings = dataclasses.replace(PLAIN, tis_cap=1.5, tis_level="sequence_mask")
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    # Over the whole row 0.3 nats more than the sampler, or 0.5, which is beyond log 1.5; a refinement is not weighed.
    rows = [
        row.replace(sampler_logp=row.old_logp - (0.5 if n % 2 else 0.3) / len(row.old_logp))
        for n, row in enumerate(rows)
    ]
    beyond = [n for n, row in enumerate(rows) if train_step_lib.beyond_cap(row, settings)]
    assert beyond == [n for n, row in enumerate(rows) if n % 2 and not row.refined]
    assert not any(train_step_lib.has_gradient(rows[n], settings) for n in beyond)
    assert all(train_step_lib.has_gradient(rows[n], dataclasses.replace(settings, entropy_coef=0.1)) for n in beyond)
    kept, kept_stats = update(rows, settings=settings, drop_zero=False)
    dropped, stats = update(rows, settings=settings)
    with_advantage = sum(row.advantage != 0 for n, row in enumerate(rows) if n not in beyond)
    assert (kept_stats["rows_trained"], stats["rows_trained"]) == (len(rows), with_advantage)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dropped.params, kept.params)
    for other in (PLAIN, dataclasses.replace(settings, tis_level="token")):
        assert not any(train_step_lib.beyond_cap(row, other) for row in rows)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_what_an_update_returns_is_taken_without_compiling_again(mesh):
    replica, fsdp, tensor = mesh
    mesh = sharding.make_mesh(
        replica=replica, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: replica * fsdp * tensor]
    )
    config = dataclasses.replace(CONFIG, vocab_size=40, num_heads=4, num_kv_heads=2)
    template = sharding.param_shardings(axes_like(config, param_shapes(config)), param_shapes(config), mesh)
    optimizer = make_optimizer(learning_rate=1e-3)
    state = init_state(init_params(config, seed=0, shardings=template), optimizer)
    rng = np.random.default_rng(0)
    rows = [TrainRow(*rng.integers(0, 40, (2, 6)).astype(np.int32), np.zeros(6, np.float32), advantage=1.0)]
    programs = (train_step_lib.accumulate, optimizer_lib.apply)
    counts = []
    for _ in range(3):
        state, _ = train_step_lib.update(
            state, rows, optimizer=optimizer, config=config, settings=PLAIN, shape=SHAPE, mesh=mesh
        )
        counts.append([program._cache_size() for program in programs])
    assert counts[0] == counts[1] == counts[2]


def test_training_a_critique_by_likelihood_makes_it_likelier():
    """One critique row among policy rows, through the same packer and the same update."""
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    rng = np.random.default_rng(5)
    critique = make_row(rng, 6, 8, advantage=1.0, loss=LossKind.NLL, old_logp=np.zeros(8, np.float32), ref_logp=None)
    optimizer = make_optimizer(learning_rate=3e-3)
    state = fresh_state(optimizer)
    found = []
    for _ in range(6):
        found.append(score(state.params, [critique])[0].sum())
        state, stats = update([*rows[:4], critique, *rows[4:]], state=state, optimizer=optimizer)
        np.testing.assert_allclose(stats["nll_loss"], -found[-1] / 8, rtol=1e-4)
        assert stats["policy_loss"] != 0 and stats["initial/tokens"] > 0
    assert (np.diff(found) > 0).all() and found[-1] > found[0] + 1


def test_the_old_policy_stays_fixed_for_an_iteration_and_is_new_in_the_next():
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY and not row.refined]
    rows = [row.replace(old_logp=logp, advantage=0.5) for row, logp in zip(rows, score(params(), rows), strict=True)]
    kept = [row.old_logp.copy() for row in rows]
    first, second = rows[:4], rows[4:]

    def mean_ratio(stats):
        return stats["initial/ratio_sum"] / stats["initial/tokens"]

    state, stats = update(first)
    # The policy that sampled is the one that is trained: ratio 1.
    np.testing.assert_allclose(mean_ratio(stats), 1, atol=1e-5)
    assert stats["logp_difference_sum"] < 1e-3
    state, stats = update(second, state=state)
    # It has moved by now, the old one has not.
    assert stats["logp_difference_sum"] > 0.1
    for row, old_logp in zip(rows, kept, strict=True):
        np.testing.assert_array_equal(row.old_logp, old_logp)
    # The next iteration scores under the new weights, and starts from ratio 1 again.
    again = [row.replace(old_logp=logp) for row, logp in zip(rows, score(state.params, rows), strict=True)]
    assert max(np.abs(a.old_logp - b.old_logp).max() for a, b in zip(again, rows, strict=True)) > 0.01
    _, stats = update(again, state=state)
    np.testing.assert_allclose(mean_ratio(stats), 1, atol=1e-5)


def test_an_update_reports_the_norm_before_clipping_and_counts_steps():
    optimizer = make_optimizer(learning_rate=1e-3, max_grad_norm=1e-3)
    state = fresh_state(optimizer)
    for step in range(2):
        assert state.step == step
        state, stats = update(mixed_rows(), state=state, optimizer=optimizer)
        assert stats["grad_norm"] > 1e-2
    assert state.step == 2
