"""What takes longer than a unit test may, of tests/models/test_lora.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import CONFIG, SETTINGS, logits, random_adapters, tokens
from lora_cases import (
    MODEL,
    PRODUCT,
    SGD,
    SHAPE,
    SOME,
    assert_trees_close,
    assert_trees_equal,
    merged_by_hand,
    params,
    rows,
)
from tiny import FAMILIES, plain_logits, random_params

from cgrpo_jax import sharding
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.lora import Base, LoraSettings, init_adapters
from cgrpo_jax.records import LossKind
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import scoring
from cgrpo_jax.training import train_step as train_step_lib


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_unmerged_are_the_same_model(family):
    config = FAMILIES[family]
    base, adapters = Base(random_params(config), SETTINGS.scale), random_adapters(config)
    by_hand = merged_by_hand(base.params, adapters, SETTINGS.scale)
    assert_trees_close(base.merge(adapters), by_hand, rtol=1e-5, atol=1e-6)
    expected = plain_logits(by_hand, config, tokens(config))
    for weights in (base.attach(adapters), base.merge(adapters)):
        np.testing.assert_allclose(logits(weights, config, tokens(config)), expected, atol=2e-3, rtol=1e-3)
    assert np.abs(plain_logits(base.params, config, tokens(config)) - expected).max() > 1


def test_new_adapters_change_nothing():
    """B is 0: to the last bit, training starts from the frozen model."""
    base, adapters = Base(params(), SETTINGS.scale), init_adapters(CONFIG, SETTINGS, seed=0)
    assert_trees_equal(base.merge(adapters), params())
    expected = logits(params(), CONFIG, tokens())
    np.testing.assert_array_equal(logits(base.attach(adapters), CONFIG, tokens()), expected)


def test_the_base_keeps_its_dtype():
    """Float32 adapters of a bfloat16 model: the sum is rounded once, and the forward pass stays in bfloat16."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    base, adapters = Base(half, SETTINGS.scale), random_adapters()
    merged = base.merge(adapters)
    exact = merged_by_hand(half, adapters, SETTINGS.scale)
    # Half a unit in the last of bfloat16's 8 significant bits, and what float32 adds to it.
    assert_trees_close(
        jax.tree.map(lambda x: np.asarray(x, np.float64), merged),
        jax.tree.map(lambda x: np.asarray(x, np.float64), exact),
        rtol=2**-8 * 1.001,
        atol=1e-6,
    )
    expected = plain_logits(exact, CONFIG, tokens())
    for weights in (merged, base.attach(adapters)):
        assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
        assert np.abs(logits(weights, CONFIG, tokens()) - expected).mean() < 0.1 * np.abs(expected).mean()


def test_a_is_drawn_as_peft_draws_it_and_b_is_zero():
    """Uniform between -1 / sqrt(inputs) and 1 / sqrt(inputs), from the seed."""
    wide = dataclasses.replace(CONFIG, embed_dim=64, num_heads=8)
    settings = LoraSettings(rank=16, alpha=16.0, targets=("q", "o"))
    layers, other = (init_adapters(wide, settings, seed=seed)["layers"] for seed in (0, 1))
    assert_trees_equal(layers, init_adapters(wide, settings, seed=0)["layers"])
    # A target's own draw, whatever else is adapted.
    alone = init_adapters(wide, dataclasses.replace(settings, targets=("o",)), seed=0)["layers"]
    assert_trees_equal(alone, {name: layers[name] for name in alone})
    for name in ("q", "o"):
        a = np.asarray(layers[f"{name}_lora_a"])  # both read 64 numbers
        assert 0.124 < a.max() <= 0.125 and -0.125 <= a.min() < -0.124
        np.testing.assert_allclose([a.mean(), a.std()], [0, 0.125 / np.sqrt(3)], atol=5e-3)
        assert len(np.unique(a)) > 0.99 * a.size
        assert not np.asarray(layers[f"{name}_lora_b"]).any()
        assert (a != other[f"{name}_lora_a"]).mean() > 0.99
    assert (layers["q_lora_a"].ravel() != layers["o_lora_a"].ravel()).mean() > 0.99


@pytest.mark.parametrize("remat", ["none", "mlp", "layer"])
def test_the_gradient_is_that_of_the_merged_weights_by_the_chain_rule(remat):
    """W + s A B: d/dA = s (d/dW) B^T and d/dB = s A^T (d/dW)."""
    base, adapters = Base(params(), SETTINGS.scale), random_adapters()
    actual, stats = train_step_lib.accumulate_gradients(adapters, rows(), base=base, remat=remat, **MODEL)
    full, expected_stats = train_step_lib.accumulate_gradients(base.merge(adapters), rows(), **MODEL)
    assert jax.tree.structure(actual) == jax.tree.structure(adapters)
    for name, spec in PRODUCT.items():
        inputs, output = spec.split("->")
        left, right = inputs.split(",")
        a, b = (np.asarray(adapters["layers"][f"{name}_lora_{x}"]) for x in "ab")
        d = np.asarray(full["layers"][name])
        expected = {
            "a": 2 * np.einsum(f"{output},{right}->{left}", d, b),
            "b": 2 * np.einsum(f"{left},{output}->{right}", a, d),
        }
        for x, value in expected.items():
            size = np.abs(value).max()
            assert size > 1e-4
            np.testing.assert_allclose(actual["layers"][f"{name}_lora_{x}"], value, atol=1e-3 * size, rtol=0)
    for name in ("policy_loss", "initial/tokens", "refined/tokens"):
        np.testing.assert_allclose(stats[name], expected_stats[name], rtol=1e-4)


def test_an_update_changes_adapters_and_nothing_else():
    adapters = random_adapters(settings=SOME)
    base = Base(jax.tree.map(jnp.array, params()), SOME.scale)
    optimizer = optimizer_lib.make_optimizer(learning_rate=1e-2, weight_decay=0.1)
    state = optimizer_lib.init_state(jax.tree.map(jnp.array, adapters), optimizer)
    sizes = sorted(x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert sizes == sorted(2 * [x.shape for x in jax.tree.leaves(adapters)])  # Adam's two moments
    for _ in range(2):
        state, stats = train_step_lib.update(state, rows(), optimizer=optimizer, base=base, **MODEL)
        assert stats["grad_norm"] > 1e-3
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    for before, after in zip(jax.tree.leaves(adapters), jax.tree.leaves(state.params), strict=True):
        assert (np.asarray(before) != np.asarray(after)).all()
    assert_trees_equal(base.params, params())


def test_merged_weights_lie_as_the_bases():
    mesh = sharding.make_mesh(replica=2, fsdp=2, tensor=2)
    shapes, adapters = params_lib.param_shapes(CONFIG), random_adapters()
    where = sharding.param_shardings(params_lib.logical_axes(CONFIG), shapes, mesh)
    of_adapters = sharding.param_shardings(params_lib.axes_like(CONFIG, adapters), adapters, mesh)
    assert not of_adapters["layers"]["q_lora_a"].is_fully_replicated
    base, cut_base = Base(params(), SETTINGS.scale), Base(jax.device_put(params(), where), SETTINGS.scale)
    merged = cut_base.merge(jax.device_put(adapters, of_adapters))
    assert_trees_close(merged, base.merge(adapters), rtol=1e-5, atol=1e-6)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y, x.ndim), merged, where))


def test_scores_are_those_of_the_merged_weights():
    adapters, base = random_adapters(), Base(params(), SETTINGS.scale)
    keywords = dict(config=CONFIG, shape=SHAPE, max_length=8, temperature=0.8)
    actual = scoring.score_rows(adapters, rows(), base=base, **keywords)
    expected = scoring.score_rows(base.merge(adapters), rows(), **keywords)
    assert_trees_close(actual, expected, atol=1e-3)


def test_the_first_step_moves_b_alone():
    """At B = 0 nothing depends on A yet; after a step it does."""
    adapters = init_adapters(CONFIG, SOME, seed=0)
    base, state = Base(params(), SOME.scale), optimizer_lib.init_state(jax.tree.map(jnp.array, adapters), SGD)
    for moves in (False, True):
        before = jax.device_get(state.params)["layers"]
        state, _ = train_step_lib.update(state, rows(), optimizer=SGD, base=base, **MODEL)
        for name, value in state.params["layers"].items():
            assert (np.asarray(value) != before[name]).any() == (moves or name.endswith("_b")), name


def test_adapters_learn():
    """Likelihood of a few rows, by adapters of two targets."""
    few = rows(4, loss=LossKind.NLL, advantage=1.0)
    base, optimizer = Base(params(), SOME.scale), optimizer_lib.make_optimizer(learning_rate=3e-2)
    state = optimizer_lib.init_state(init_adapters(CONFIG, SOME, seed=0), optimizer)
    losses = []
    for _ in range(12):
        state, stats = train_step_lib.update(state, few, optimizer=optimizer, base=base, **MODEL)
        losses.append(stats["nll_loss"])
    assert losses[-1] < 0.7 * losses[0]
