"""Adapters: the same model merged and unmerged, gradients of nothing else, and files that peft reads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from adapters import ALL, CONFIG, SETTINGS, logits, random_adapters, tokens
from lora_cases import MODEL, PRODUCT, SGD, SOME, assert_trees_close, assert_trees_equal, merged_by_hand, params, rows
from tiny import plain_logits

from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.lora import Base, LoraSettings, init_adapters
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import train_step as train_step_lib

# The model.


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


def test_adapters_decay_like_matrices():
    adapters = random_adapters()
    optimizer = optimizer_lib.make_optimizer(learning_rate=0.1, weight_decay=0.5)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, adapters), optimizer.init(adapters), adapters)
    assert_trees_close(updates, jax.tree.map(lambda x: -0.05 * x, adapters), rtol=1e-5)


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
