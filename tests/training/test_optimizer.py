"""The optimiser: its steps by hand, the size and place of its state, and steps that are not taken."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import ADAPTERS, ONE, assert_close, make_mesh, place
from tiny import FAMILIES, random_params

from cgrpo_jax.models import lora
from cgrpo_jax.training import optimizer
from cgrpo_jax.training.checkpoint import Checkpoints
from cgrpo_jax.training.optimizer import apply, init_state, make_optimizer, make_schedule, state_shapes

# Large enough for all its matrices to be factored, those of heads included.
CONFIG = dataclasses.replace(
    FAMILIES["qwen2.5"], vocab_size=64, embed_dim=64, num_heads=8, num_kv_heads=2, head_dim=32, mlp_dim=128
)
KINDS = ("adamw", "adafactor")


@functools.cache
def params():
    return random_params(CONFIG)


@functools.cache
def made(kind="adamw", **more):
    """One object for each way to train: `apply` is compiled for it."""
    rate = make_schedule("linear", peak=1e-2, warmup_steps=1, num_steps=10)
    return make_optimizer(
        kind, learning_rate=rate, **({"optimizer.weight_decay": 0.1, "optimizer.max_grad_norm": 0.5} | more)
    )


def started(kind="adamw", mesh=ONE, *, offload=False, **more):
    weights = place(jax.tree.map(jnp.copy, params()), CONFIG, make_mesh(mesh))
    return init_state(weights, made(kind, **more), offload=offload)


def gradients(state, seed=0):
    """Like no other weight's nor layer's."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(rng.normal(0, 1, x.shape).astype(np.float32), x.sharding), state.params
    )


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


# --- steps by hand ------------------------------------------------------------------------------------------------


def tiny_params():
    layers = {
        "q": jnp.ones((2, 2, 2)),
        "q_norm": jnp.ones((2, 2)),
        "q_bias": jnp.ones((2, 2)),
        "attn_norm": jnp.ones((2, 2)),
    }
    return {"embed": jnp.ones((3, 2)), "unembed": jnp.ones((3, 2)), "final_norm": jnp.ones(2), "layers": layers}


def steps(optimizer, gradients, params=None):
    """The updates that an optimiser makes of a sequence of gradients."""
    params = params or tiny_params()
    state, found, step = optimizer.init(params), [], jax.jit(optimizer.update)
    for g in gradients:
        updates, state = step(jax.tree.map(lambda x, g=g: jnp.full_like(x, g), params), state, params)
        found.append(updates)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_biases_do_not_decay(kind):
    """With a gradient of 0 the step is the decay alone: learning rate * weight decay * 1."""
    (updates,) = steps(make_optimizer(kind, learning_rate=0.1, weight_decay=0.5), [0.0])
    layers = updates.pop("layers")
    for name, value in (updates | layers).items():
        decayed = name in ("embed", "unembed", "q")
        np.testing.assert_allclose(value, -0.05 if decayed else 0.0, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_clipped_by_its_global_norm(kind):
    """Both forget the scale of a constant gradient, so that of a second one is looked at: 10 after 0.1 a weight.

    The 34 entries of `tiny_params` at 10 have norm 58.3 and are clipped to 1, so that each is 1 / sqrt(34).
    """
    assert sum(x.size for x in jax.tree.leaves(tiny_params())) == 34
    clipped, by_hand, never = (
        steps(make_optimizer(kind, learning_rate=0.1, max_grad_norm=limit), [0.1, second])[1]
        for limit, second in ((1.0, 10.0), (0, 34**-0.5), (0, 10.0))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), clipped, by_hand)
    assert abs(never["embed"] - clipped["embed"]).min() > 1e-3


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


# --- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, more, expected",
    [
        ("constant", {}, [0.1] * 7),
        ("constant", {"warmup_steps": 2}, [0, 0.05] + [0.1] * 5),
        ("linear", {"num_steps": 4}, [0.1, 0.075, 0.05, 0.025, 0, 0, 0]),
        ("linear", {"warmup_steps": 2, "num_steps": 6, "final_share": 0.2}, [0, 0.05, 0.1, 0.08, 0.06, 0.04, 0.02]),
        # After 2 of 6 steps a cosine over 4: (1 + cos(pi i / 4)) / 2 = 1, 0.854, 0.5, 0.146, 0.
        ("cosine", {"warmup_steps": 2, "num_steps": 6}, [0, 0.05, 0.1, 0.08536, 0.05, 0.01464, 0]),
        ("cosine", {"num_steps": 2, "final_share": 0.5}, [0.1, 0.075, 0.05, 0.05, 0.05, 0.05, 0.05]),
    ],
)
def test_schedules(kind, more, expected):
    """Adam's step for a constant gradient is the learning rate."""
    rate = make_schedule(kind, peak=0.1, **more)
    np.testing.assert_allclose([rate(i) for i in range(7)], expected, rtol=1e-3, atol=1e-8)
    found = steps(make_optimizer(learning_rate=rate), [1.0] * 7)
    np.testing.assert_allclose([-u["final_norm"][0] for u in found], expected, rtol=1e-3, atol=1e-7)


def test_what_is_unknown():
    with pytest.raises(ValueError, match="schedule 'step' is unknown; use one of constant, linear, cosine."):
        make_schedule("step", peak=0.1)
    with pytest.raises(ValueError, match="optimizer 'adam' is unknown; use one of adamw, adafactor."):
        make_optimizer("adam", learning_rate=0.1)


# --- the state's size and place -----------------------------------------------------------------------------------


def test_the_bytes_of_a_state():
    """Float32 moments of every weight; a first moment in bfloat16; means along rows and columns."""
    weights = size(params())
    counts = 2 * 4  # of the moments, and of the schedule
    assert size(init_state(params(), made()).opt_state) == 2 * weights + counts
    half = init_state(params(), made(mu_dtype="bfloat16")).opt_state
    assert size(half) == 1.5 * weights + counts
    moments = [optax.tree.get(half, name) for name in ("mu", "nu")]
    assert [{leaf.dtype.name for leaf in jax.tree.leaves(m)} for m in moments] == [{"bfloat16"}, {"float32"}]

    L, D, H, K, N, F, V = 2, 64, 8, 2, 32, 128, 64
    heads = sum((D + N) * h for h in (H, K, K, H))  # D and the 32 of a head are the larger two
    matrices = L * (heads + 3 * (D + F)) + V + D
    kept = sum(x.size for x in jax.tree.leaves(params()["layers"]) if x.ndim == 2 or x.shape[1:] in ((H, N), (K, N)))
    kept += params()["final_norm"].size  # of vectors all
    found = sum(x.size for x in jax.tree.leaves(init_state(params(), made("adafactor")).opt_state))
    names, others = len(params()["layers"]), len(params()) - 1
    placeholders = 2 * L * names + 2 * others  # at least one, at most two of three statistics are not used
    assert matrices + kept < found <= matrices + kept + placeholders + 3
    # In a model of real width next to nothing is left.
    wide = {"layers": {"q": jax.ShapeDtypeStruct((36, 4096, 32, 128), jnp.float32)}}
    state = jax.eval_shape(made("adafactor").init, wide)
    assert size(state) < size(wide) / 30


@pytest.mark.parametrize("kind, more", [("adamw", {"mu_dtype": "bfloat16"}), ("adafactor", {})], ids=str)
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
            spec = {
                f"{name} of {w}": getattr(layers, name)["layers"][w].sharding.spec
                for name in ("v_row", "v_col")
                for w in ("q", "o", "gate", "down")
            }
            P = jax.sharding.PartitionSpec
            assert spec == {
                "v_row of q": P(None, "tensor"),
                "v_col of q": P(None, "fsdp", "tensor"),  # [L, H, K] and [L, D, H]
                "v_row of o": P(None, "tensor"),
                "v_col of o": P(None, "tensor", "fsdp"),  # [L, H, K] and [L, H, D]
                "v_row of gate": P(None, "fsdp"),
                "v_col of gate": P(None, "tensor"),  # [L, D] and [L, F]
                "v_row of down": P(None, "fsdp"),
                "v_col of down": P(None, "tensor"),
            }


@pytest.mark.parametrize(
    "kind, more, offload",
    [("adamw", {"mu_dtype": "bfloat16"}, True), ("adafactor", {}, False)],
    ids=["mu_dtype, offloaded", "adafactor"],
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


def test_adapters_are_trained_by_either():
    shapes = lora.adapter_shapes(CONFIG, ADAPTERS)
    for kind in KINDS:
        adapters = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), shapes)
        state = init_state(adapters, made(kind))
        for _ in range(2):  # the first has rate 0
            state, norm = apply(state, jax.tree.map(jnp.ones_like, state.params), optimizer=made(kind))
        assert norm > 0
        assert all(np.all(np.asarray(x) < 0.1) for x in jax.tree.leaves(state.params))


# --- in host memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_state_takes_the_same_steps(kind):
    here, there = started(kind, "2x2x2"), started(kind, "2x2x2", offload=True)

    def kinds(state):
        return [leaf.sharding.memory_kind for leaf in jax.tree.leaves(state)]

    before = kinds(there)
    assert optimizer.HOST in kinds(there.opt_state) and optimizer.HOST not in kinds((there.params, here))
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(there.opt_state) if leaf.ndim} == {optimizer.HOST}
    for seed in range(2):
        here, norm = apply(here, gradients(here, seed), optimizer=made(kind))
        there, same_norm = apply(there, gradients(there, seed), optimizer=made(kind))
        assert norm == same_norm and kinds(there) == before
    assert_same(there, here)


# --- gradients that are not finite --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, offload", [("adamw", False), ("adafactor", False), ("adamw", True)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38], ids=str)
def test_a_step_along_a_gradient_that_is_not_finite_is_not_taken(kind, offload, bad):
    """3e38 is finite, its square is not: clipped by that norm, all would become 0."""

    def stepped(seeds):
        state = started(kind, offload=offload)
        for seed in seeds:
            grads = gradients(state, 0 if seed is None else seed)
            if seed is None:
                grads["layers"]["gate"] = grads["layers"]["gate"].at[1, 2, 3].set(bad)
            before = jax.device_get(state) if seed is None else None
            state, norm = apply(state, grads, optimizer=made(kind))
            assert np.isfinite(norm) == (seed is not None)
            if seed is None:
                assert_same(state, before)
        return state

    skipped = stepped([None, 0, 1, None, 2, None])
    assert skipped.step == 3
    assert_same(skipped, stepped([0, 1, 2]))


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_keeps_no_second_state(kind):
    """The results take their arguments' places; beside these a program for Adam needs next to nothing.

    Adafactor's, on a CPU, holds the squares of gradients that it takes the means of: not the state, which is far less.
    """
    state = started(kind)
    memory = apply.lower(state, gradients(state), optimizer=made(kind)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size((state.params, state.opt_state))
    assert memory.temp_size_in_bytes < {"adamw": 0.05, "adafactor": 1.05}[kind] * size(state.params)
