"""What the backward pass stores: the same gradients whatever it is, and memory in its order."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import assert_close, make_mesh, place
from tiny import FAMILIES, random_params

from cgrpo_jax import sharding
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.transformer import REMAT, hidden_states

# Activations of a layer are 16 times its weights, or with few tokens a small part of them.
CONFIG = dataclasses.replace(FAMILIES["smollm2"], num_layers=6, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64)


@functools.cache
def params():
    return random_params(CONFIG)


def inputs(tokens):
    rng = np.random.default_rng(0)
    shape = (2, tokens)
    positions = np.broadcast_to(np.arange(tokens), shape).astype(np.int32)
    return rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32), positions, np.ones(shape, np.int32)


@functools.partial(jax.jit, static_argnames=("remat", "config"))
def loss_and_gradient(params, tokens, *, remat, config=CONFIG):
    def loss(params):
        return jnp.mean(hidden_states(params, config, *tokens, remat=remat) ** 2)

    return jax.value_and_grad(loss)(params)


def temporary(function, *args, **keywords):
    return function.lower(*args, **keywords).compile().memory_analysis().temp_size_in_bytes


def test_losses_and_gradients_are_the_same():
    expected = loss_and_gradient(params(), inputs(9), remat="none")
    for remat in REMAT:
        assert_close(loss_and_gradient(params(), inputs(9), remat=remat), expected, 1e-5)


def test_what_is_stored_takes_memory():
    """Of each layer, a token: 32 + 16 + 16 numbers of q, k, v, 32 of attention, 32 of o, 2 x 64 of gate and up."""
    deep = dataclasses.replace(CONFIG, num_layers=24)
    args = random_params(deep), inputs(256)
    found = {remat: temporary(loss_and_gradient, *args, remat=remat, config=deep) for remat in REMAT}
    number = deep.num_layers * 2 * 256 * 4
    assert found["none"] - found["mlp"] == pytest.approx(number * 128, rel=0.25)
    assert found["mlp"] - found["layer"] == pytest.approx(number * 128, rel=0.25)


@pytest.mark.parametrize("remat", REMAT)
def test_gathered_weights_are_never_stored(remat):
    """Of one token, on devices that have an eighth of each layer: the whole model would be most of the memory."""
    mesh = make_mesh("1x8x1")
    config = dataclasses.replace(CONFIG, num_layers=24)
    weights = place(random_params(config), config, mesh)
    specs = sharding.param_specs(params_lib.axes_like(config, weights), weights, mesh)

    def loss(params, tokens):
        return jnp.sum(hidden_states(params, config, *tokens, remat=remat) ** 2)

    part = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=(specs, jax.sharding.PartitionSpec()), out_specs=specs, check_vma=True
    )
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(weights["layers"]))
    assert temporary(jax.jit(part), weights, inputs(1)) < layers / 2


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="remat True is unknown; use one of none, mlp, layer."):
        hidden_states(params(), CONFIG, *inputs(3), remat=True)
