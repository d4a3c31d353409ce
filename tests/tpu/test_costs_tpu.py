"""Costs of a small stack of layers, compiled by the real TPU compiler; needs the extra `tpu`, no TPU."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cgrpo_jax.models.kernels import cost as cost_lib
from cgrpo_jax.planning import costs, hlo, tpu_topology

WIDTH, HIDDEN, ROWS, VOCABULARY = 256, 512, 64, 1024
SPECS = {"up": P(None, "fsdp", "tensor"), "down": P(None, "tensor", "fsdp"), "head": P(None, "tensor")}
LAYERS = ("up", "down")


def shape(mesh, size, spec=None, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec or P()))


def stack_shapes(mesh, depth):
    sizes = {"up": (depth, WIDTH, HIDDEN), "down": (depth, HIDDEN, WIDTH), "head": (WIDTH, VOCABULARY)}
    return {name: shape(mesh, sizes[name], SPECS[name]) for name in sizes}, shape(mesh, (ROWS, WIDTH), P("fsdp"))


def stack(mesh, *, unroll, tokens=1):
    """`tokens` passes through layers gathered over fsdp and summed over tensor, and a head after each pass."""

    def layer(x_BD, weights):
        up_DF = jax.lax.all_gather(weights["up"], "fsdp", axis=0, tiled=True)
        down_FD = jax.lax.all_gather(weights["down"], "fsdp", axis=1, tiled=True)
        return x_BD + jax.lax.psum(jnp.tanh(x_BD @ up_DF) @ down_FD, "tensor"), None

    def token(params, x_BD):
        x_BD = jax.lax.scan(layer, x_BD, {name: params[name] for name in LAYERS}, unroll=unroll)[0]
        return x_BD, (x_BD @ params["head"]).max(-1)

    def local(params, x_BD):
        return jax.lax.scan(lambda x_BD, _: token(params, x_BD), x_BD, length=tokens, unroll=unroll)[1]

    return jax.shard_map(local, mesh=mesh, in_specs=(SPECS, P("fsdp")), out_specs=P(None, "fsdp"), check_vma=False)


def hand_flops(mesh, depth, tokens=1):
    """FLOPs of one device: its rows (cut over fsdp) times its share of each matrix (cut over tensor)."""
    rows, tensor = ROWS // mesh.shape["fsdp"], mesh.shape["tensor"]
    return tokens * 2 * rows * (depth * 2 * WIDTH * HIDDEN + WIDTH * VOCABULARY) // tensor


def compiled(mesh, depth, **options):
    return costs.compile_for(stack(mesh, **options), stack_shapes(mesh, depth))


@functools.cache
def small():
    return tpu_topology.mesh("v5e:2x2", replica=1, fsdp=2, tensor=2)


@pytest.mark.parametrize(("name", "fsdp", "tensor"), [("v5e:2x2", 2, 2), ("v5p:2x2x2", 4, 2), ("v6e:2x4", 4, 2)])
def test_shallow_programs_give_the_flops_and_collectives_of_a_deep_one(name, fsdp, tensor):
    mesh = tpu_topology.mesh(name, replica=1, fsdp=fsdp, tensor=tensor)
    cost = costs.extrapolate({depth: compiled(mesh, depth, unroll=True).cost for depth in (2, 3)}, 12)
    assert cost.flops == pytest.approx(hand_flops(mesh, 12), rel=0.03)
    # Each layer gathers its share of two matrices over fsdp, and sums its rows over tensor, in both ways of a ring.
    matrix, rows = WIDTH * HIDDEN // tensor * 2, ROWS // fsdp * WIDTH * 2
    assert cost.collectives == {
        "all-gather": pytest.approx(12 * 2 * matrix * (fsdp - 1) / fsdp),
        "all-reduce": pytest.approx(12 * 2 * rows * (tensor - 1) / tensor),
    }

    scanned = compiled(mesh, 12, unroll=1)
    assert scanned.cost.flops < 0.5 * hand_flops(mesh, 12)
    assert scanned.cost.collectives == cost.collectives
    assert {found.times for found in scanned.collectives} == {12}


def test_collectives_are_those_known_to_be_there():
    found = compiled(small(), 3, unroll=1).collectives
    gathered, summed = ("bf16", (1, 256, 256)), ("bf16", (32, 256))
    assert sorted(found, key=lambda one: one.kind) == [
        hlo.Collective("all-gather", (gathered,), group_size=2, times=3),
        hlo.Collective("all-gather", (gathered,), group_size=2, times=3),
        hlo.Collective("all-reduce", (summed,), group_size=2, times=3),
    ]


def test_asynchronous_collectives_are_counted_once():
    # Unrolled, some gathers are spread over the fusions that hide them.
    program = compiled(small(), 4, unroll=True)
    assert sum(found.kind == "all-gather" for found in program.collectives) == 8
    assert sum(found.kind == "all-reduce" for found in program.collectives) == 4


def test_decoding_extrapolates_in_layers_and_tokens():
    shallow = {
        (depth, tokens): compiled(small(), depth, unroll=True, tokens=tokens).cost
        for depth in (2, 3)
        for tokens in (1, 2)
    }
    cost = costs.extrapolate_decode(shallow, layers=8, tokens=50)
    assert cost.flops == pytest.approx(hand_flops(small(), 8, tokens=50), rel=0.03)
    scanned = compiled(small(), 8, unroll=1, tokens=50).cost
    assert scanned.flops < 0.1 * cost.flops
    # The weights are gathered at each token, which the unrolled programs don't show.
    assert scanned.collectives["all-gather"] == 50 * 8 * 2 * WIDTH * HIDDEN // 2 * 2 / 2
    assert scanned.collectives["all-gather"] > 10 * cost.collectives["all-gather"]


def test_a_loop_that_ends_on_data_runs_as_often_as_told():
    mesh = small()

    def until_small(x):
        return jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x / jax.lax.psum(jnp.abs(x), "tensor"), x)

    function = jax.shard_map(until_small, mesh=mesh, in_specs=P("tensor"), out_specs=P("tensor"), check_vma=False)
    args = (shape(mesh, (64, 256), P("tensor"), jnp.float32),)
    once, often = (costs.compile_for(function, args, unknown_trips=trips) for trips in ((), (100,)))
    assert {found.times for found in once.collectives} == {None}
    assert {found.times for found in often.collectives} == {100}
    assert often.cost.collectives["all-reduce"] == 100 * once.cost.collectives["all-reduce"]


def test_a_gradient_step_gathers_and_scatters():
    mesh = small()

    def loss(params, x_BD):
        return stack(mesh, unroll=1)(params, x_BD).astype(jnp.float32).sum()

    program = costs.compile_for(jax.grad(loss), stack_shapes(mesh, 4))
    kinds = {found.kind for found in program.collectives if found.times == 4}
    assert {"all-gather", "all-reduce", "reduce-scatter"} <= kinds


def test_laying_an_array_out_again_is_no_computation():
    mesh = small()
    cut, whole = P("fsdp", "tensor"), P(None, "tensor")
    program = costs.compile_for(lambda x: x, (shape(mesh, (512, 512), cut),), out_shardings=NamedSharding(mesh, whole))
    assert program.cost.flops == 0
    assert program.cost.collectives == {"all-gather": 512 * 256 * 2 / 2}
    assert (program.memory.argument, program.memory.output) == (256 * 256 * 2, 512 * 256 * 2)


def test_memory_is_that_of_the_buffers():
    # 256 MB on each device, too much for on-chip memory: what the fields say can be counted by hand.
    mesh = tpu_topology.mesh("v5e:2x2", replica=1, fsdp=4, tensor=1)
    x, w = shape(mesh, (2**20, 512), P("fsdp")), shape(mesh, (512, 512))
    one, weight = 2**18 * 512 * 2, 512 * 512 * 2

    def loop(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.sin(x) @ w, x)

    kept, donated = (costs.compile_for(loop, (x, w), donate_argnums=donate).memory for donate in ((), 0))
    assert kept.argument == donated.argument == one + weight
    assert kept.output == donated.output == one
    assert (kept.alias, donated.alias) == (0, one)
    # The loop copies its state each time round: one temporary.
    for memory, arrays in ((kept, 3), (donated, 2)):
        assert memory.temporary == pytest.approx(one, rel=0.01)
        assert memory.peak == pytest.approx(arrays * one + weight, rel=0.01)
        assert memory.needed == pytest.approx(memory.peak, rel=0.01)


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_what_does_not_fit_is_a_record(name):
    chip, _ = tpu_topology.parse(name)
    mesh = tpu_topology.mesh(name, replica=chip.devices_per_chip, fsdp=4, tensor=1)
    wide = shape(mesh, (100 * 2**20, 1024), P(), jnp.float32)  # 400 GiB on each device, and as much of the result
    program = costs.compile_for(jnp.sin, (wide,))
    assert not program.fits
    assert program.needed_bytes == pytest.approx(800 * 2**30, rel=0.01)
    assert program.limit_bytes == pytest.approx(chip.hbm_bytes, rel=1e-4)
    assert program.message.startswith("RESOURCE_EXHAUSTED") and program.cost is None


def test_donating_makes_fit_what_does_not():
    mesh = small()
    half = shape(mesh, (2**21, 1024), P(), jnp.float32)  # 8 of 15.75 GiB
    assert not costs.compile_for(lambda x: x + 1, (half,)).fits
    donated = costs.compile_for(lambda x: x + 1, (half,), donate_argnums=0)
    assert donated.fits and donated.needed_bytes == pytest.approx(8 * 2**30, rel=0.001)


def test_a_kernel_costs_what_its_formula_says():
    mesh = small()

    def kernel(x_ref, y_ref, out_ref):
        out_ref[...] = jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

    def matmul(x, y):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((256, 256), jnp.float32), name="matmul")(x, y) + 1

    def formula(call):
        (_, (m, k)), (_, (_, n)) = call.operands
        moved = sum(cost_lib.num_bytes(*array) for array in call.operands + call.results)
        return costs.Cost(2.0 * m * k * n, moved) if call.name == "matmul" else costs.Cost()

    function = jax.shard_map(matmul, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    args = (shape(mesh, (256, 128)), shape(mesh, (128, 256)))
    program = costs.compile_for(function, args, kernel_cost=formula)
    assert [(call.name, call.times) for call in program.kernels] == [("matmul", 1)]
    assert program.cost.flops == pytest.approx(2 * 256 * 128 * 256, rel=0.03)
    assert costs.compile_for(function, args, kernel_cost=lambda _: costs.Cost()).cost.flops == 256 * 256  # the + 1
    with pytest.raises(ValueError, match=r"counts Pallas kernels \(matmul\) as nothing"):
        costs.compile_for(function, args)


def test_nothing_is_cached_that_cannot_be_read_back(tmp_path):
    code = """
import jax, jax.numpy as jnp
from cgrpo_jax.planning import costs, tpu_topology
sharding = jax.sharding.SingleDeviceSharding(tpu_topology.devices("v5e:1x1")[0])
for _ in range(2):
    costs.compile_for(jnp.sin, (jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding),))
    jax.clear_caches()
    jax.jit(jnp.cos)(1.0)
"""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], env=os.environ | cache | path, check=True)
    written = [file.name for file in tmp_path.iterdir()]
    assert any(name.startswith("jit_cos") for name in written)
    assert not any(name.startswith("jit_sin") for name in written)
