"""Adapters: the same model merged and unmerged, gradients of nothing else, and files that peft reads."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from adapters import ALL, CONFIG, SETTINGS, logits, random_adapters, tokens
from tiny import FAMILIES, plain_logits, random_params

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.lora import Base, LoraSettings, init_adapters
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import packing, scoring
from cgrpo_jax.training import train_step as train_step_lib

SOME = LoraSettings(rank=2, alpha=5.0, targets=("q", "down"))
# A B of every target, written out.
PRODUCT = dict.fromkeys("qkv", "ldr,lrhk->ldhk") | {"o": "lhkr,lrd->lhkd"}
PRODUCT |= {"gate": "ldr,lrf->ldf", "up": "ldr,lrf->ldf", "down": "lfr,lrd->lfd"}


@functools.cache
def params():
    return random_params(CONFIG)


def merged_by_hand(weights, adapters, scale):
    layers = dict(weights["layers"])
    for name, spec in PRODUCT.items():
        if f"{name}_lora_a" in adapters["layers"]:
            pair = (np.asarray(adapters["layers"][f"{name}_lora_{x}"], np.float64) for x in "ab")
            layers[name] = np.asarray(layers[name], np.float64) + scale * np.einsum(spec, *pair)
    return weights | {"layers": layers}


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# The model.


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


@pytest.mark.parametrize("target", ALL)
def test_each_target_alone(target):
    settings = LoraSettings(rank=2, alpha=3.0, targets=(target,))
    base, adapters = Base(params(), settings.scale), random_adapters(settings=settings)
    assert set(adapters["layers"]) == {f"{target}_lora_a", f"{target}_lora_b"}
    merged = base.merge(adapters)
    changed = {name for name, value in merged["layers"].items() if value is not params()["layers"][name]}
    assert changed == {target} and merged["embed"] is params()["embed"]
    expected = plain_logits(merged_by_hand(params(), adapters, 1.5), CONFIG, tokens())
    np.testing.assert_allclose(logits(base.attach(adapters), CONFIG, tokens()), expected, atol=2e-3, rtol=1e-3)
    assert np.abs(plain_logits(params(), CONFIG, tokens()) - expected).max() > 1e-2


def test_new_adapters_change_nothing():
    """B is 0: to the last bit, training starts from the frozen model."""
    base, adapters = Base(params(), SETTINGS.scale), init_adapters(CONFIG, SETTINGS, seed=0)
    assert_trees_equal(base.merge(adapters), params())
    expected = logits(params(), CONFIG, tokens())
    np.testing.assert_array_equal(logits(base.attach(adapters), CONFIG, tokens()), expected)


def test_the_scale_enters_once():
    """alpha 6 over rank 3, against the product doubled by hand."""
    adapters = random_adapters()
    doubled = {
        "layers": {name: value * (1 + name.endswith("_b")) for name, value in adapters["layers"].items()},
    }
    scaled, plain = Base(params(), SETTINGS.scale), Base(params(), 1.0)
    assert SETTINGS.scale == 2
    assert_trees_equal(scaled.attach(adapters), plain.attach(doubled))
    assert_trees_close(scaled.merge(adapters), plain.merge(doubled), rtol=1e-6)


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


# New adapters.


def test_the_shapes_and_the_axes_are_those_of_the_weights():
    L, D, H, K, F, r = CONFIG.num_layers, CONFIG.embed_dim, CONFIG.num_heads, CONFIG.head_dim, CONFIG.mlp_dim, 3
    adapters = init_adapters(CONFIG, SETTINGS, seed=0)["layers"]
    shapes = {name: value.shape for name, value in adapters.items()}
    assert shapes == {
        "q_lora_a": (L, D, r), "q_lora_b": (L, r, H, K),
        "k_lora_a": (L, D, r), "k_lora_b": (L, r, CONFIG.num_kv_heads, K),
        "v_lora_a": (L, D, r), "v_lora_b": (L, r, CONFIG.num_kv_heads, K),
        "o_lora_a": (L, H, K, r), "o_lora_b": (L, r, D),
        "gate_lora_a": (L, D, r), "gate_lora_b": (L, r, F),
        "up_lora_a": (L, D, r), "up_lora_b": (L, r, F),
        "down_lora_a": (L, F, r), "down_lora_b": (L, r, D),
    }  # fmt: skip
    assert {value.dtype for value in adapters.values()} == {jnp.dtype(jnp.float32)}
    axes = params_lib.axes_like(CONFIG, init_adapters(CONFIG, SETTINGS, seed=0))["layers"]
    assert axes["o_lora_a"] == ("layers", "heads", "head_dim", "lora") and axes["o_lora_b"] == (
        "layers",
        "lora",
        "embed",
    )
    assert axes["up_lora_a"] == ("layers", "embed", "lora") and axes["up_lora_b"] == ("layers", "lora", "mlp")
    assert {name: len(names) for name, names in axes.items()} == {name: len(shape) for name, shape in shapes.items()}


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "LoRA rank 0 is below 1"),
        ({"alpha": 0.0}, "LoRA alpha 0.0 is not above 0"),
        ({"targets": ()}, "LoRA has no targets; use some of q, k, v, o, gate, up, down"),
        ({"targets": ("q", "q_proj")}, "LoRA target 'q_proj' is unknown; use some of q, k"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        LoraSettings(**{"rank": 1, "alpha": 1.0, "targets": ("q",)} | change)


# Updates.

SHAPE = packing.PackShape(num_token_rows=2, pack_length=24, num_slots=5)
MODEL = dict(config=CONFIG, shape=SHAPE, settings=train_step_lib.LossSettings(max_length=8, kl_coef=0.1))
SGD = optax.sgd(1.0)  # the step is the gradient


def rows(count=5, seed=0, **fields):
    rng = np.random.default_rng(seed)

    def ids(longest):
        return rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest)).astype(np.int32)

    def one(i):
        target = ids(9)
        old, ref = (rng.uniform(-6, -1, target.size).astype(np.float32) for _ in range(2))
        given = dict(advantage=(0.5, -0.75)[i % 2], old_logp=old, ref_logp=ref, refined=i % 3 == 0) | fields
        return TrainRow(context_ids=ids(12), target_ids=target, **given)

    return [one(i) for i in range(count)]


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


def test_the_first_step_moves_b_alone():
    """At B = 0 nothing depends on A yet; after a step it does."""
    adapters = init_adapters(CONFIG, SOME, seed=0)
    base, state = Base(params(), SOME.scale), optimizer_lib.init_state(jax.tree.map(jnp.array, adapters), SGD)
    for moves in (False, True):
        before = jax.device_get(state.params)["layers"]
        state, _ = train_step_lib.update(state, rows(), optimizer=SGD, base=base, **MODEL)
        for name, value in state.params["layers"].items():
            assert (np.asarray(value) != before[name]).any() == (moves or name.endswith("_b")), name


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


def test_adapters_decay_like_matrices():
    adapters = random_adapters()
    optimizer = optimizer_lib.make_optimizer(learning_rate=0.1, weight_decay=0.5)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, adapters), optimizer.init(adapters), adapters)
    assert_trees_close(updates, jax.tree.map(lambda x: -0.05 * x, adapters), rtol=1e-5)


def test_scores_are_those_of_the_merged_weights():
    adapters, base = random_adapters(), Base(params(), SETTINGS.scale)
    keywords = dict(config=CONFIG, shape=SHAPE, max_length=8, temperature=0.8)
    actual = scoring.score_rows(adapters, rows(), base=base, **keywords)
    expected = scoring.score_rows(base.merge(adapters), rows(), **keywords)
    assert_trees_close(actual, expected, atol=1e-3)


def test_the_number_of_programs_does_not_depend_on_the_rows_nor_on_the_adapters():
    base, optimizer = Base(params(), SOME.scale), SGD
    found = []
    for seed, count in enumerate((3, 1, 9)):
        state = optimizer_lib.init_state(random_adapters(settings=SOME, seed=seed), optimizer)
        state, _ = train_step_lib.update(state, rows(count, seed), optimizer=optimizer, base=base, **MODEL)
        base.merge(state.params)
        found.append([f._cache_size() for f in (train_step_lib.accumulate, optimizer_lib.apply, lora.merge_one)])
    assert found[0] == found[1] == found[2]


# peft's files.


def test_a_folder_holds_what_peft_expects(tmp_path):
    adapters = random_adapters(settings=SOME)
    lora.write_peft(tmp_path / "new" / "folder", adapters, SOME, base_name="some/model")
    settings = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert settings.items() >= {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/model",
        "r": 2, "lora_alpha": 5.0, "lora_dropout": 0.0, "bias": "none",
    }.items()  # fmt: skip
    assert settings["target_modules"] == ["q_proj", "down_proj"]
    stored = safetensors.numpy.load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors")
    D, HK, F = CONFIG.embed_dim, CONFIG.num_heads * CONFIG.head_dim, CONFIG.mlp_dim
    shapes = {}
    for i in range(CONFIG.num_layers):
        layer = f"base_model.model.model.layers.{i}"
        shapes[f"{layer}.self_attn.q_proj.lora_A.weight"] = (2, D)
        shapes[f"{layer}.self_attn.q_proj.lora_B.weight"] = (HK, 2)
        shapes[f"{layer}.mlp.down_proj.lora_A.weight"] = (2, F)
        shapes[f"{layer}.mlp.down_proj.lora_B.weight"] = (D, 2)
    assert {name: value.shape for name, value in stored.items()} == shapes


def test_peft_has_the_same_products_under_the_names_of_the_weights():
    adapters = random_adapters()
    stored = dict(lora.peft_tensors(adapters))
    names = {entry.path[-1]: entry.name for entry in load.TABLE}
    for name, spec in PRODUCT.items():
        ours = np.einsum(spec, *(adapters["layers"][f"{name}_lora_{x}"] for x in "ab"))
        for layer in range(CONFIG.num_layers):
            module = "base_model.model." + names[name].format(layer=layer).removesuffix(".weight")
            a, b = (stored.pop(f"{module}.lora_{x}.weight") for x in "AB")
            np.testing.assert_allclose((b @ a).T.reshape(ours[layer].shape), ours[layer], atol=1e-5)
    assert not stored


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file can't be written: .*; give another folder"):
        lora.write_peft(tmp_path / "file", random_adapters(settings=SOME), SOME, base_name=None)
