"""The output layer's kernels, compiled by the real TPU compiler; needs the extra `tpu`, no TPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cgrpo_jax.models.kernels import logprobs_pallas
from cgrpo_jax.models.logprobs import linear_logprobs
from cgrpo_jax.planning import costs, tpu_topology
from cgrpo_jax.training import scoring

N, V = 8192, 151_936


def plain(hidden, unembed, target, **_):
    logp = jax.nn.log_softmax(jnp.einsum("nd,vd->nv", hidden, unembed, preferred_element_type=jnp.float32))
    return logp[jnp.arange(N), target], -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def compiled(name, *, d, function=linear_logprobs, tensor=1, **keywords):
    """Outputs and both gradients of one data group's rows, for bfloat16; live rows differ between data groups."""
    mesh = tpu_topology.mesh(name, replica=1, fsdp=0, tensor=tensor)
    groups = mesh.shape["fsdp"]
    rows, table = P("fsdp"), P("tensor" if tensor > 1 else None)

    def part(hidden, unembed, target, live_1):
        def scalar(hidden, unembed):
            return sum(x.sum() for x in function(hidden, unembed, target, num_live=live_1[0], vocab_size=V, **keywords))

        value, gradients = jax.value_and_grad(scalar, (0, 1))(hidden, unembed)
        return jax.lax.psum(value, "fsdp"), gradients

    def shape(size, dtype, spec):
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec))

    arguments = (
        shape((groups * N, d), jnp.bfloat16, rows),
        shape((V, d), jnp.bfloat16, table),
        shape((groups * N,), jnp.int32, rows),
        shape((groups,), jnp.int32, rows),
    )
    step = jax.shard_map(part, mesh=mesh, in_specs=(rows, table, rows, rows), out_specs=(P(), (rows, table)))
    return costs.compile_for(step, arguments, kernel_cost=cost)


def cost(call):
    return costs.Cost(*logprobs_pallas.flops_and_bytes(call))


@functools.cache
def plain_temporaries():
    # On the one chip that holds all the logits.
    return compiled("v5p:2x2x1", d=1024, function=plain).memory.temporary


@pytest.mark.parametrize(
    ("name", "d", "keywords"),
    [
        ("v5e:2x2", 1024, {}),
        ("v5p:2x2x1", 1024, {}),
        ("v6e:2x2", 1024, {"softcap": 30.0, "tensor": 2}),
        ("v5p:2x2x1", 4096, {"tensor": 4}),
    ],
)
def test_kernels_compile_and_hold_no_logits(name, d, keywords):
    program = compiled(name, d=d, kernel="pallas", **keywords)
    assert program.fits, program.message
    calls = sorted(call.name for call in program.kernels)
    for call, kernel in zip(calls, (logprobs_pallas.FORWARD, "d_hidden", "d_unembed"), strict=True):
        assert kernel in call
    assert {call.times for call in program.kernels} == {1}
    part = V // keywords.get("tensor", 1)
    assert program.cost.flops == pytest.approx(10 * N * part * d, rel=0.03)
    # The table's gradient is a result. N V logits in float32 would be 5 GB, a tile's are in on-chip memory.
    assert 10 * program.memory.temporary < plain_temporaries()
    assert program.memory.temporary < 16 * 2**20


@pytest.mark.parametrize(("name", "output"), [("v4:2x2x1", "blocks"), ("v5e:2x2", "pallas"), ("v6e:2x2", "pallas")])
def test_an_update_takes_the_kernels_that_its_chips_can_hold(name, output):
    assert scoring.Kernels.of(tpu_topology.mesh(name)) == scoring.Kernels("splash", output)
