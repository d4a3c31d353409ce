"""Products by heads, normed and rotated: the kernel in interpret mode against plain JAX, and that against a layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # what it found of races has no public name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tiny import FAMILIES

from cgrpo_jax.inference.paged import heads
from cgrpo_jax.models import transformer
from cgrpo_jax.models.kernels.cost import KernelCall

QWEN3 = dataclasses.replace(FAMILIES["qwen2.5"], num_heads=4, num_kv_heads=2, head_dim=128, qk_norm=True)
KINDS = {
    "norms": QWEN3,
    "none": dataclasses.replace(QWEN3, qk_norm=False),
    "offset": dataclasses.replace(QWEN3, norm_offset=1.0),
}


def case(config, tokens, dtype, seed=0):
    rng, d = np.random.default_rng(seed), config.head_dim
    flat = [
        jnp.asarray(rng.normal(size=(tokens, n * d)), dtype) for n in (config.num_heads, *[config.num_kv_heads] * 2)
    ]
    p = {name: jnp.asarray(rng.normal(size=d), dtype) for name in ("q_norm", "k_norm")}
    rope = transformer.rotations(config, jnp.asarray(rng.integers(0, 500, (1, tokens))))(None)
    return p, flat, rope


def races_found():
    """Returns whether there was a race in the kernel that ran last, with `detect_races`."""
    assert interpret_pallas_call.races is not None
    return interpret_pallas_call.races.races_found


def test_a_race_is_found():
    def early(x, out, semaphore):
        copy = pltpu.make_async_copy(x, out, semaphore)
        copy.start()
        out[...] = jnp.ones_like(out)  # before the copy is there
        copy.wait()

    kernel = pl.pallas_call(
        early,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        scratch_shapes=[pltpu.SemaphoreType.DMA],
        interpret=pltpu.InterpretParams(detect_races=True),
    )
    jax.block_until_ready(kernel(jnp.zeros((8, 128))))
    assert races_found()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens, dtype, close", [(5, "float32", 1e-5), (130, "bfloat16", 0.02)])
def test_the_kernel_is_plain_jax(kind, tokens, dtype, close):
    """130 tokens are a block and a part of one; races are looked for."""
    config = KINDS[kind]
    p, flat, rope = case(config, tokens, dtype)
    turns = heads.turns(rope)
    plain = heads.by_heads(config, p, *flat, turns, kernel=False)
    interpret = pltpu.InterpretParams(detect_races=True)
    found = jax.block_until_ready(heads.by_heads(config, p, *flat, turns, kernel=True, interpret=interpret))
    assert not races_found()
    for one, other in zip(found, plain, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype == dtype
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), atol=close, rtol=close)


def test_it_is_what_a_layer_does_head_by_head():
    p, flat, rope = case(QWEN3, 7, "float32")
    q, both = heads.by_heads(QWEN3, p, *flat, heads.turns(rope), kernel=False)
    own_q, own_k, own_v = (x.reshape(1, 7, -1, 128) for x in flat)
    own_q, own_k = (
        transformer.rotate(transformer.rms_norm(QWEN3, x, p[name]), *rope)
        for x, name in ((own_q, "q_norm"), (own_k, "k_norm"))
    )
    np.testing.assert_allclose(q, own_q[0], atol=1e-5)
    np.testing.assert_allclose(both[:, 0::2], own_k[0], atol=1e-5)
    np.testing.assert_array_equal(both[:, 1::2], own_v[0])


def test_heads_that_fill_no_register_are_plain_jax():
    small = dataclasses.replace(QWEN3, head_dim=64)
    p, flat, rope = case(small, 3, "float32")
    text = jax.jit(lambda *x: heads.by_heads(small, p, *x, heads.turns(rope), kernel=True)).trace(*flat).jaxpr
    assert "pallas_call" not in str(text)


def test_its_bytes_are_its_arrays():
    call = KernelCall(heads.NAME, (("bf16", (8, 512)),), (("bf16", (8, 4, 128)),), 3)
    assert heads.flops_and_bytes(call) == (0.0, 2.0 * (8 * 512 + 8 * 4 * 128))
    with pytest.raises(ValueError, match="other is no heads_normed"):
        heads.flops_and_bytes(KernelCall("other", (), (), 1))
