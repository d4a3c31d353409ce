"""FLOPs of traced programs, by hand."""

import jax
import jax.numpy as jnp
import pytest

from cgrpo_jax.planning import traced_flops

A, B = jnp.zeros((3, 5)), jnp.zeros((5, 7))
ONE = 2 * 3 * 5 * 7


def of(function, *args, **keywords):
    return traced_flops.flops(jax.jit(function).trace(*args).jaxpr.jaxpr, **keywords)


def test_a_product_and_a_batch_of_them():
    assert of(jnp.dot, A, B) == ONE
    assert of(lambda a: jnp.einsum("bij,bjk->bik", a, a), jnp.zeros((4, 6, 6))) == 4 * 2 * 6**3
    assert of(lambda a: jnp.sin(a) + a, A) == 0


def test_loops_multiply_and_the_larger_branch_counts():
    square = jnp.zeros((5, 5))

    def scanned(a):
        return jax.lax.scan(lambda a, _: (a @ square, None), a, length=9)[0]

    def endless(a, n):
        return jax.lax.fori_loop(0, n, lambda _, a: scanned(a), a)

    product = 2 * 3 * 5 * 5
    assert of(scanned, A) == 9 * product
    assert of(endless, A, 4, unknown_trips=(6,)) == 6 * 9 * product
    with pytest.raises(ValueError, match="a loop that ends on data has matrix products"):
        of(endless, A, 4)
    assert of(lambda a, n: jax.lax.fori_loop(0, n, lambda _, a: a + 1, a), A, 4) == 0  # needs no number

    def branches(a, flag):
        return jax.lax.cond(flag, lambda a: a @ square @ square, lambda a: a @ square, a)

    assert of(branches, A, True) == 2 * product
