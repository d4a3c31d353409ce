"""What takes longer than a unit test may, of tests/training/test_distillation.py."""

import dataclasses

import jax
import numpy as np
import pytest
from distillation_cases import SETTINGS, WITH_TEACHER, gradient, loss_by_definition, rows, taught
from meshes import assert_close, make_mesh, place
from train_step_cases import AGGREGATES, CONFIG, PLAIN, params

from cgrpo_jax import sharding
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import LossKind
from cgrpo_jax.training import distillation, train_step
from cgrpo_jax.training.train_step import has_gradient

DISTIL = dataclasses.replace(PLAIN, distil_coef=0.7)
RATE = 0.4  # of plain gradient descent: the loss falls at each step
CASES = {
    f"{kind.name.lower()} {divergence} {aggregate}": (
        dataclasses.replace(DISTIL, divergence=divergence, aggregate=aggregate),
        kind,
    )
    for kind, divergence, aggregate in zip(
        (LossKind.POLICY, LossKind.DISTIL, LossKind.DISTIL, LossKind.POLICY),
        ("reverse_kl", "jensen_shannon") * 2,
        AGGREGATES,
        strict=True,
    )
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_loss_by_its_definition(name):
    """Along a random direction of every tensor, against central differences of a float64 loss."""
    settings, kind = CASES[name]
    given = taught(rows(kind))
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
    actual, stats = gradient(given, settings)
    assert stats["distil/tokens"] == 8 + 5 + 4 and stats["distil_loss"] > 0
    total = stats["policy_loss"] + stats["nll_loss"] + stats["distil_loss"]
    assert total == pytest.approx(loss_by_definition(exact, given, settings), rel=1e-4)
    leaves, structure = jax.tree.flatten(exact)
    rng = np.random.default_rng(0)
    for i, g in enumerate(jax.tree.leaves(actual)):
        direction, step = rng.normal(size=leaves[i].shape), 1e-6

        def loss(sign, i=i, direction=direction, step=step):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate(leaves)]
            return loss_by_definition(structure.unflatten(moved), given, settings)

        slope, scale = (loss(1) - loss(-1)) / (2 * step), np.linalg.norm(g)
        assert scale > 1e-5
        assert abs(np.sum(np.asarray(g, np.float64) * direction) - slope) < 1e-4 * scale


def test_steps_on_fixed_rows_bring_the_policy_to_its_teacher():
    """By plain gradient descent, measured by the definition: the first step falls by what the gradient says."""
    given = taught([row for row in rows(LossKind.DISTIL) if row.loss == LossKind.DISTIL])
    weights, found, squares = params(), [], []
    for rate in (1e-3, *[RATE] * 29):
        grads, stats = gradient(given, DISTIL, weights)
        squares.append(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
        found.append(loss_by_definition(jax.tree.map(np.float64, weights), given, DISTIL))
        assert stats["distil_loss"] == pytest.approx(found[-1], rel=1e-3)
        weights = jax.tree.map(lambda w, g, rate=rate: w - rate * g, weights, grads)
    assert found[0] - found[1] == pytest.approx(1e-3 * squares[0], rel=0.05)
    assert found == sorted(found, reverse=True) and found[-1] < found[0] / 2


SHAPES = {"one row": dict(num_token_rows=1, pack_length=60), "one slot": dict(pack_length=13, num_slots=1)}


@pytest.mark.parametrize("name", SHAPES)
def test_packing_microbatches_and_dropping_change_nothing(name):
    given = taught(rows())
    expected, stats = gradient(given, DISTIL)
    other, other_stats = gradient(given, DISTIL, shape=dataclasses.replace(WITH_TEACHER, **SHAPES[name]))
    assert_close(other, expected, 1e-5)
    counts = dict(num_rows=sum(row.loss != LossKind.NLL for row in given), num_tokens=int(stats["initial/tokens"]))
    kept = [row for row in given if has_gradient(row, DISTIL)]
    assert len(kept) < len(given)
    assert_close(gradient(kept, DISTIL, **counts)[0], expected, 1e-5)
    for name in ("distil_loss", "distil/divergence_sum", "distil/rest_sum"):
        assert other_stats[name] == pytest.approx(stats[name], rel=1e-5)


@pytest.mark.parametrize("mesh", ["1x8x1", "2x2x2", "1x1x8"])
def test_eight_devices_against_one(mesh):
    config = dataclasses.replace(CONFIG, vocab_size=48)
    weights = jax.tree.map(np.asarray, params())
    rng = np.random.default_rng(5)
    for name in ("embed", "unembed"):
        more = rng.normal(0, 0.4, (48 - CONFIG.vocab_size, config.embed_dim)).astype(np.float32)
        weights[name] = np.concatenate([weights[name], more])
    given, found = rows(), {}
    for one in ("1x1x1", mesh):
        placed, where = place(weights, config, make_mesh(one)), make_mesh(one)
        said = distillation.add_teacher(
            given, placed, placed, settings=SETTINGS, shape=dataclasses.replace(WITH_TEACHER, top_tokens=0),
            max_length=8, config=config, temperature=0.8, mesh=where,
        )  # fmt: skip
        grads, stats = train_step.accumulate_gradients(
            placed, said, settings=DISTIL, shape=WITH_TEACHER, config=config, num_questions=3, mesh=where
        )
        found[one] = [row for row in said if row.teacher_logp is not None], jax.device_get(grads), stats
    (rows_of_one, gradient_of_one, stats_of_one), (others, other_gradient, stats) = found.values()
    for row, other in zip(rows_of_one, others, strict=True):
        np.testing.assert_array_equal(row.top_ids, other.top_ids)
        np.testing.assert_allclose(row.teacher_logp, other.teacher_logp, atol=1e-5)
    assert_close(other_gradient, gradient_of_one, 2e-5)
    assert stats["distil_loss"] == pytest.approx(stats_of_one["distil_loss"], rel=1e-5)


def test_what_a_device_holds_does_not_grow_with_the_devices():
    """Of the tokens that are compared, and of what a teacher says of them, each holds what its own rows have."""
    config, shape = dataclasses.replace(CONFIG, vocab_size=48), dataclasses.replace(WITH_TEACHER, top_tokens=0)
    found = {name: _bytes_of(make_mesh(name), config, shape) for name in ("1x1x1", "1x8x1")}
    floats = shape.num_token_rows * shape.pack_length * 4
    assert found["1x8x1"] == found["1x1x1"] == [20 * floats, 21 * floats]


def _bytes_of(mesh, config, shape):
    """Returns bytes of a device's part of what the two programs before the updates return."""
    weights = jax.eval_shape(lambda: params_lib.init_params(config, seed=0))
    weights = sharding.placed(params_lib.axes_like(config, weights), weights, mesh)
    about = {"max_length": 8, "mesh": mesh, "config": config, "dtype": None}
    programs = [
        distillation.choose_program(shape, num_tokens=20, **about),
        distillation.teach_program(dataclasses.replace(shape, top_tokens=20), temperature=1.0, **about),
    ]
    return [
        one.function.lower(weights, None, *one.inputs, **one.keywords).compile().memory_analysis().output_size_in_bytes
        for one in programs
    ]
