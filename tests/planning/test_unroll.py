"""Programs with their loops written out: the same numbers, no loop left, nothing computed once that ran twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from cgrpo_jax import sharding
from cgrpo_jax.planning.unroll import unroll

ROWS = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def scanned(x, rows):
    return lax.scan(lambda x, row: (jnp.sin(x * row), x.sum()), x, rows)


def rematerialised(x, rows):
    layer = jax.checkpoint(lambda x, row: jnp.sin(x * row), prevent_cse=False)
    return jax.grad(lambda x: lax.scan(lambda x, row: (layer(x, row), None), x, rows)[0].sum())(x)


def nested(x, rows):
    return lax.scan(lambda x, _: (scanned(x, rows)[0], None), x, length=2)[0]


def added_in_place(x, rows):
    """The gradient with respect to the rows, added to them where they lie."""

    def add(_, total):
        total = jax.new_ref(total)
        result, pull_back = jax.vjp(lambda rows: scanned(x, rows)[0].sum(), rows)
        pull_back.with_refs(total)(jnp.ones_like(result))
        return jax.freeze(total)

    return lax.fori_loop(0, (x[0] > 0).astype(int), add, rows)


@pytest.mark.parametrize(("function", "loops"), [(scanned, 1), (rematerialised, 2), (nested, 2), (added_in_place, 3)])
def test_it_computes_the_same_without_a_loop(function, loops):
    x = jnp.array([0.1, 0.2, 0.3])
    found = unroll(jax.jit(function), (x, ROWS))
    assert found.loops == loops
    for ours, theirs in zip(jax.jit(found.function)(*found.args), jax.tree.leaves(function(x, ROWS)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert "while" in jax.jit(function).lower(x, ROWS).as_text()
    assert "while" not in jax.jit(found.function).lower(*found.args).as_text()


def test_what_is_computed_again_stays_twice():
    x = jnp.array([0.1, 0.2, 0.3])
    found = unroll(jax.jit(rematerialised), (x, ROWS))
    # Before each of the two loops, and before what is computed again, which JAX may write once for all four times.
    assert jax.jit(found.function).lower(*found.args).as_text().count("optimization_barrier") >= 3


def test_parts_of_a_mesh_that_vary_unlike_go_through_barriers():
    def part(x, rows):
        return lax.psum(scanned(sharding.varying_like(x, rows), rows)[0], sharding.DATA)

    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    function = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(P(), P(sharding.DATA)), out_specs=P()))
    x = jnp.array([0.1, 0.2, 0.3])
    found = unroll(function, (x, ROWS))
    np.testing.assert_allclose(jax.jit(found.function)(*found.args)[0], function(x, ROWS), rtol=1e-6)


def test_a_loop_that_ends_on_data_is_written_out_as_often_as_told():
    function = jax.jit(lambda x, *, limit: lax.while_loop(lambda x: x.sum() < limit, lambda x: 2 * x, x),
                       static_argnames="limit", donate_argnames="x")  # fmt: skip
    x = jnp.ones(2)
    for trips in (1, 3):
        found = unroll(function, (x,), {"limit": 100}, trips=trips)
        assert found.donated == (0,) and found.loops == 1
        np.testing.assert_array_equal(jax.jit(found.function)(x)[0], 2.0**trips * x)


def test_what_has_no_loop_is_left_alone():
    assert unroll(jax.jit(jnp.sin), (ROWS,)).loops == 0
