"""Splash attention compiled by the real TPU compiler; needs the extra `tpu`, no TPU."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cgrpo_jax import sharding
from cgrpo_jax.models import attention
from cgrpo_jax.models.kernels import cost, splash_attention
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.planning import hlo, tpu_topology

HEADS, KEY_HEADS, HEAD_DIM, WIDTH, LAYERS, TOKENS = 16, 8, 128, 256, 2, 8192


def config_of(heads, key_heads, head_dim, **more):
    sizes = {"vocab_size": 8, "num_layers": LAYERS, "embed_dim": WIDTH, "mlp_dim": 8}
    return ModelConfig(**sizes, num_heads=heads, num_kv_heads=key_heads, head_dim=head_dim, **more)


def shape(mesh, size, spec, dtype):
    return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec))


def kernels_of(compiled):
    return hlo.kernel_calls(compiled.as_text())


def times_run(compiled):
    times = {}
    for call in kernels_of(compiled):
        phase = call.name.split("_")[2]
        times[phase] = times.get(phase, 0) + call.times
    return times


@functools.cache
def update():
    """The gradient of layers that are nothing but attention, scanned in a checked shard_map, as in an update."""
    mesh = tpu_topology.mesh("v5e:2x2", fsdp=2, tensor=2)
    config = config_of(HEADS, KEY_HEADS, HEAD_DIM)
    specs = {name: P(None, "fsdp", "tensor") for name in "qkvo"}

    def loss(weights, x, segments, prompts):
        attend = attention.packed_attention(config, segments, segments, prompts, kernel="splash")(None)

        def layer(x, w):
            whole = {name: sharding.gather(w[name], ("embed", "heads", "head_dim"), WIDTH) for name in w}
            out, _ = attend(*(jnp.einsum("bsd,dhk->bshk", x, whole[name]) for name in "qkv"))
            return x + jax.lax.psum(jnp.einsum("bshk,dhk->bsd", out, whole["o"]), "tensor"), None

        layer = jax.checkpoint(layer, prevent_cse=False)
        return (jax.lax.scan(layer, x, weights)[0].astype(jnp.float32) ** 2).sum()

    def part(weights, x, segments, prompts):
        value, grads = jax.value_and_grad(loss)(weights, x, segments, prompts)
        return jax.lax.psum(value, sharding.DATA), grads

    step = jax.shard_map(part, mesh=mesh, in_specs=(specs, *[sharding.BY_ROWS] * 3), out_specs=(P(), specs))
    heads = {"q": HEADS, "k": KEY_HEADS, "v": KEY_HEADS, "o": HEADS}
    weights = {name: shape(mesh, (LAYERS, WIDTH, n, HEAD_DIM), specs[name], jnp.bfloat16) for name, n in heads.items()}
    x = shape(mesh, (2, TOKENS, WIDTH), sharding.BY_ROWS, jnp.bfloat16)
    numbers = shape(mesh, (2, TOKENS), sharding.BY_ROWS, jnp.int32)
    return jax.jit(step).lower(weights, x, numbers, numbers).compile()


def test_an_update_runs_the_kernels_and_holds_no_scores():
    # Each layer's forward pass runs once more in the backward pass.
    assert times_run(update()) == {"fwd": 2 * LAYERS, "dq": LAYERS, "dkv": LAYERS}
    # All that is held is less than one head's scores in float32.
    assert update().memory_analysis().temp_size_in_bytes < 4 * TOKENS**2


def test_costs_of_the_kernels_are_near_those_of_the_causal_half():
    heads = HEADS // 2  # on one device
    for call in kernels_of(update()):
        flops, moved = splash_attention.flops_and_bytes(call)
        products = {"fwd": 2, "dq": 3, "dkv": 4}[call.name.split("_")[2]]
        ideal = products * 2 * heads * TOKENS**2 / 2 * HEAD_DIM
        assert 1 <= flops / ideal < 1.15  # the blocks on the diagonal are computed whole
        read_once = sum(cost.num_bytes(*array) for array in call.operands + call.results)
        assert read_once < moved < read_once + heads * math.ceil(TOKENS / 512) * 2 * TOKENS * HEAD_DIM * 2


@pytest.mark.parametrize("name", ["v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
def test_every_chip_runs_several_rows(name):
    """Two rows and two layers on one device, nothing recomputed."""
    mesh = sharding.make_mesh(devices=tpu_topology.devices(name)[:1])
    config = config_of(HEADS, KEY_HEADS, HEAD_DIM)

    def loss(weights, q, k, v, numbers):
        attend = attention.packed_attention(config, numbers, numbers, numbers, kernel="splash")(None)
        q, _ = jax.lax.scan(lambda q, w: (attend(q * w, k, v)[0], None), q, weights)
        return q.astype(jnp.float32).sum()

    def part(*args):
        return jax.grad(loss, argnums=(1, 2, 3))(*args)

    rows = sharding.BY_ROWS
    step = jax.shard_map(part, mesh=mesh, in_specs=(P(), rows, rows, rows, rows), out_specs=(rows, rows, rows))
    args = [shape(mesh, (LAYERS,), P(), jnp.bfloat16)]
    args += [shape(mesh, (2, TOKENS, n, HEAD_DIM), rows, jnp.bfloat16) for n in (HEADS, KEY_HEADS, KEY_HEADS)]
    compiled = jax.jit(step).lower(*args, shape(mesh, (2, TOKENS), rows, jnp.int32)).compile()
    assert times_run(compiled) == {"fwd": 2 * LAYERS, "dq": 2 * LAYERS, "dkv": 2 * LAYERS}
    # What is kept for the backward pass and its copies are less than the scores of all heads of one row in bfloat16.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * HEADS * TOKENS**2


@pytest.mark.parametrize(
    ("name", "tokens", "heads", "dtype", "more"),
    [
        ("v5e:1x1", 1300, (4, 2, 64), jnp.bfloat16, {}),
        ("v5e:1x1", 16384, (2, 1, 256), jnp.bfloat16, {"attention_softcap": 50.0}),
        ("v5p:2x2x1", 4000, (2, 1, 256), jnp.float32, {"attention_softcap": 50.0}),
        ("v6e:1x1", 8192, (2, 2, 80), jnp.float32, {}),
    ],
)
def test_every_size_fits_on_chip_memory(name, tokens, heads, dtype, more):
    config = config_of(*heads, **more)
    mesh = sharding.make_mesh(devices=tpu_topology.devices(name)[:1])

    def gradients(q, k, v, numbers):
        attend = attention.packed_attention(config, numbers, numbers, numbers, kernel="splash")(None)
        return jax.grad(lambda *qkv: attend(*qkv)[0].astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    H, G, K = heads
    arrays = [shape(mesh, (1, tokens, n, K), P(), dtype) for n in (H, G, G)]
    compiled = jax.jit(gradients).lower(*arrays, shape(mesh, (1, tokens), P(), jnp.int32)).compile()
    assert len(kernels_of(compiled)) == 3
