"""The optimiser: its steps by hand, the size and place of its state, and steps that are not taken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import KINDS, assert_same, gradients, made, params, started

from cgrpo_jax.training.optimizer import apply, init_state, make_optimizer, make_schedule


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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


def test_a_step_of_muon_has_singular_values_that_are_all_alike():
    """0.2 sqrt(max(m, n)) U V^T of each layer's matrix, all heads in one; an adapter's halves are matrices too."""
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 8, 2, 3), "o": (2, 2, 3, 8), "gate": (2, 8, 12), "o_lora_a": (2, 2, 3, 4), "o_lora_b": (2, 4, 8)}
    weights = {"layers": {name: jnp.zeros(shape) for name, shape in shapes.items()} | {"q_norm": jnp.zeros((2, 3))}}
    gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 5, x.shape)), weights)
    muon = make_optimizer("muon", learning_rate=1.0, max_grad_norm=0)
    updates, _ = muon.update(gradients, muon.init(weights), weights)
    inputs = {"q": 8, "o": 6, "gate": 8, "o_lora_a": 6, "o_lora_b": 4}
    for name, rows in inputs.items():
        for update, gradient in zip(updates["layers"][name], gradients["layers"][name], strict=True):
            step, (u, _, v) = update.reshape(rows, -1), np.linalg.svd(gradient.reshape(rows, -1), full_matrices=False)
            values = np.diag(u.T @ step @ v.T) / (-0.2 * np.sqrt(max(step.shape)))
            assert np.all((values > 0.6) & (values < 1.3)), name  # five steps of Newton and Schulz come so near to 1
            np.testing.assert_allclose(
                np.linalg.norm(step) ** 2, np.sum((values * 0.2) ** 2) * max(step.shape), rtol=1e-4
            )
    np.testing.assert_allclose(abs(updates["layers"]["q_norm"]), 1.0, rtol=1e-3)  # Adam's first step


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
    with pytest.raises(ValueError, match="optimizer 'adam' is unknown; use one of adamw, adafactor, muon."):
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


# --- in host memory -----------------------------------------------------------------------------------------------


# --- gradients that are not finite --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, offload", [("adamw", False), ("adafactor", False), ("muon", False), ("adamw", True)])
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
    Muon's holds the matrices whose singular values it makes alike, those of all layers at once, and two products.
    """
    state = started(kind)
    memory = apply.lower(state, gradients(state), optimizer=made(kind)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size((state.params, state.opt_state))
    assert memory.temp_size_in_bytes < {"adamw": 0.05, "adafactor": 1.05, "muon": 4.0}[kind] * size(state.params)
