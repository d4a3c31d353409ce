"""What takes longer than a unit test may, of tests/training/test_optimizer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import ADAPTERS, ONE, assert_close
from optimizer_cases import CONFIG, KINDS, assert_same, gradients, made, started

from cgrpo_jax.models import lora
from cgrpo_jax.training import optimizer
from cgrpo_jax.training.checkpoint import Checkpoints
from cgrpo_jax.training.optimizer import apply, init_state, make_optimizer, state_shapes


def test_two_steps_of_adafactor_by_hand():
    """Of G = [[1, 2], [3, 4]], all of it tiled 16 times each way: v = rows x columns / mean of the rows.

    Rows of squares have the means (2.5, 12.5), columns (5, 10), all 7.5; so v is [[5/3, 10/3], [25/3, 50/3]] at the
    first step, whose decay is 1 - 1 = 0. At the second it is 1 - 2^-0.8: with a gradient of 0 then, v is that share
    of it, and the step 0; with the same gradient v and the step are the same.
    """
    gradient = np.tile([[1.0, 2.0], [3.0, 4.0]], (16, 17)).astype(np.float32)  # no square: which axis is which shows
    v = np.tile([[5 / 3, 10 / 3], [25 / 3, 50 / 3]], (16, 17))
    ours = make_optimizer("adafactor", learning_rate=0.1, max_grad_norm=0)
    weights = {"embed": jnp.zeros((32, 34)), "layers": {"gate": jnp.zeros((2, 32, 34))}}
    state = ours.init(weights)
    grads = {"embed": gradient, "layers": {"gate": np.stack([gradient, 10 * gradient])}}
    for _ in range(2):
        updates, state = ours.update(grads, state, weights)
        np.testing.assert_allclose(updates["embed"], -0.1 * gradient / np.sqrt(v), rtol=1e-5)
        for layer in updates["layers"]["gate"]:  # each is scaled by its own squares
            np.testing.assert_allclose(layer, -0.1 * gradient / np.sqrt(v), rtol=1e-5)
    nothing, state = ours.update(jax.tree.map(np.zeros_like, grads), state, weights)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))
    rows = optax.tree.get(state, "v_row", filtering=lambda path, _: "others" in jax.tree_util.keystr(path))
    np.testing.assert_allclose(rows["embed"], np.tile([2.5, 12.5], 16) * (1 - 3**-0.8), rtol=1e-5)


def test_adafactor_never_factors_over_the_layers():
    """40 layers of 33 by 32, of which optax would take 40 and 33: each step is as if the layer were alone."""
    rng = np.random.default_rng(0)
    grads = rng.normal(0, 1, (40, 33, 32)).astype(np.float32) * rng.uniform(1, 100, (40, 1, 1)).astype(np.float32)
    ours = make_optimizer("adafactor", learning_rate=1.0, max_grad_norm=0)

    def step(tree):
        return ours.update(tree, ours.init(tree), tree)[0]

    found = step({"layers": {"gate": grads}})["layers"]["gate"]
    alone = [step({"unembed": layer})["unembed"] for layer in grads]
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert np.abs(found - step({"unembed": grads})["unembed"]).max() > 0.1


@pytest.mark.parametrize("kind, more", [("adamw", {"mu_dtype": "bfloat16"}), ("adafactor", {}), ("muon", {})], ids=str)
def test_the_state_stays_where_it_is_on_any_mesh(kind, more):
    """Statistics are cut as their weights are, before and after steps, and these are those of one device."""
    states = {}
    for mesh in (ONE, "2x2x2"):
        state = started(kind, mesh, **more)
        lies = state_shapes(state.params, made(kind, **more))
        for seed in range(2):
            state, _ = apply(state, gradients(state, seed), optimizer=made(kind, **more))
        same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), state, lies)
        assert jax.tree.all(same)
        states[mesh] = state
    for mesh, state in states.items():
        assert_close(jax.device_get(state.params), jax.device_get(states[ONE].params), 1e-5 if not more else 2e-3)
        if kind == "adafactor" and mesh == "2x2x2":
            layers = state.opt_state[1].layers
            spec = {f"{name} of {w}": getattr(layers, name)["layers"][w].sharding.spec
                    for name in ("v_row", "v_col") for w in ("q", "o", "gate", "down")}  # fmt: skip
            P = jax.sharding.PartitionSpec
            assert spec == {
                "v_row of q": P(None, "tensor"), "v_col of q": P(None, "fsdp", "tensor"),  # [L, H, K] and [L, D, H]
                "v_row of o": P(None, "tensor"), "v_col of o": P(None, "tensor", "fsdp"),  # [L, H, K] and [L, H, D]
                "v_row of gate": P(None, "fsdp"), "v_col of gate": P(None, "tensor"),  # [L, D] and [L, F]
                "v_row of down": P(None, "fsdp"), "v_col of down": P(None, "tensor"),
            }  # fmt: skip


@pytest.mark.parametrize(
    "kind, more, offload",
    [("adamw", {"mu_dtype": "bfloat16"}, True), ("adafactor", {}, False), ("muon", {}, False)],
    ids=["mu_dtype, offloaded", "adafactor", "muon"],
)
def test_a_checkpoint_goes_on_on_another_mesh(tmp_path, kind, more, offload):
    state = started(kind, "2x2x2", offload=offload, **more)
    state, _ = apply(state, gradients(state), optimizer=made(kind, **more))
    saved = jax.device_get(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        elsewhere = started(kind, "1x8x1", **more).params
        template = state_shapes(elsewhere, made(kind, **more), offload=offload)
        _, restored, _ = checkpoints.restore_latest(template)
    assert_same(restored, saved)
    where = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), restored, template)
    assert jax.tree.all(where)
    after, _ = apply(state, gradients(state, 1), optimizer=made(kind, **more))
    there, _ = apply(restored, gradients(restored, 1), optimizer=made(kind, **more))
    assert_close(jax.device_get(there.params), jax.device_get(after.params), 1e-5)


def test_adapters_are_trained_by_each():
    shapes = lora.adapter_shapes(CONFIG, ADAPTERS)
    for kind in KINDS:
        adapters = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), shapes)
        state = init_state(adapters, made(kind))
        for _ in range(2):  # the first has rate 0
            state, norm = apply(state, jax.tree.map(jnp.ones_like, state.params), optimizer=made(kind))
        assert norm > 0
        assert all(np.all(np.asarray(x) < 0.1) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_state_takes_the_same_steps(kind):
    here, there = started(kind, "2x2x2"), started(kind, "2x2x2", offload=True)

    def kinds(state):
        return [leaf.sharding.memory_kind for leaf in jax.tree.leaves(state)]

    before = kinds(there)
    assert optimizer.HOST in kinds(there.opt_state) and optimizer.HOST not in kinds((there.params, here))
    statistics = [leaf for leaf in jax.tree.leaves(there.opt_state) if leaf.size > 3]  # Muon's state has coefficients
    assert {leaf.sharding.memory_kind for leaf in statistics} == {optimizer.HOST}
    for seed in range(2):
        here, norm = apply(here, gradients(here, seed), optimizer=made(kind))
        there, same_norm = apply(there, gradients(there, seed), optimizer=made(kind))
        assert norm == same_norm and kinds(there) == before
    assert_same(there, here)
