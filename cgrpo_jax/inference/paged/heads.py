"""From a layer's products to queries, keys and values by heads: normed, rotated, and keys beside values.

In plain JAX the compiler for TPUs makes some 15 operations of this, most of which lay out again what the one before has
made. So there it is one Pallas kernel. It is compiled, and run on no chip; tests run it in interpret mode.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cgrpo_jax import sharding
from cgrpo_jax.models.kernels import cost
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.models.transformer import rms_norm

NAME = "heads_normed_and_rotated"
_LANES = 128  # of a vector register
_ROWS = 128  # tokens at once


def turns(rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns `[N, 2 head_dim]` float32: what a head is multiplied with, and what its halves, swapped, are.

        rotated = x * (cos, cos) + swapped(x) * (-sin, sin)

    Args:
      rope: cosines and sines `[1, N, head_dim / 2]`, as `transformer.rotations` gives them.
    """
    cos, sin = (x[0] for x in rope)
    return jnp.concatenate([cos, cos, -sin, sin], axis=-1)


def by_heads(
    config: ModelConfig, p: dict, q_NF: jax.Array, k_NF: jax.Array, v_NF: jax.Array, turns_NE: jax.Array, *,
    kernel: bool, interpret: pltpu.InterpretParams | bool = False,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Returns `[N, H, head_dim]` queries and `[N, 2K, head_dim]`, keys at even and values at odd.

    Args:
      config: the model.
      p: a layer's weights: norms of queries and keys, where the model has them.
      q_NF, k_NF, v_NF: products of N tokens with the layer's weights, all heads of a token together.
      turns_NE: as `turns` gives them.
      kernel: on TPUs, for heads that fill vector registers; others are computed by plain JAX.
      interpret: of the kernel, for tests.
    """
    scales = [p[name] for name in ("q_norm", "k_norm")] if config.qk_norm else []
    if kernel and config.head_dim % _LANES == 0:
        call = functools.partial(_kernel, config, interpret)
        return sharding.unchecked(call, q_NF, k_NF, v_NF, turns_NE, *(scale[None] for scale in scales))
    N, d = len(q_NF), config.head_dim
    one = functools.partial(_turned, config, roll=functools.partial(jnp.roll, shift=d // 2, axis=-1))
    q, k, v = (x.reshape(N, -1, d) for x in (q_NF, k_NF, v_NF))
    q, k = (one(x, scale, turns_NE[:, None]) for x, scale in zip((q, k), scales or (None, None), strict=True))
    return q, jnp.stack([k, v], axis=2).reshape(N, -1, d)


def _turned(config: ModelConfig, x, scale, turns, *, roll: Callable):
    """Returns heads, the last axis, normed if there is a scale, and rotated."""
    d = config.head_dim
    x32 = (x if scale is None else rms_norm(config, x, scale)).astype(jnp.float32)
    return (x32 * turns[..., :d] + roll(x32) * turns[..., d:]).astype(x.dtype)


def _kernel(config: ModelConfig, interpret, q_NF, k_NF, v_NF, turns_NE, *scales):
    N, d = len(q_NF), config.head_dim
    H, K = q_NF.shape[1] // d, k_NF.shape[1] // d
    rows = min(N, _ROWS)

    def of_rows(*sizes: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows, *sizes), lambda i: (i, *[0] * len(sizes)))

    return pl.pallas_call(
        functools.partial(_body, config),
        grid=(pl.cdiv(N, rows),),
        in_specs=[
            *(of_rows(x.shape[1]) for x in (q_NF, k_NF, v_NF, turns_NE)),
            *(pl.BlockSpec((1, d), lambda i: (0, 0)) for _ in scales),
        ],
        out_specs=[of_rows(H, d), of_rows(2 * K, d)],
        out_shape=[jax.ShapeDtypeStruct((N, heads, d), q_NF.dtype) for heads in (H, 2 * K)],
        interpret=interpret,
        name=NAME,
    )(q_NF, k_NF, v_NF, turns_NE, *scales)


def _body(config: ModelConfig, q_ref, k_ref, v_ref, turns_ref, *refs):
    *scale_refs, q_out, both_out = refs
    d = config.head_dim
    scales = [ref[...] for ref in scale_refs] or [None, None]
    one = functools.partial(_turned, config, roll=functools.partial(pltpu.roll, shift=d // 2, axis=1))

    def head(ref, h):
        return ref[:, h * d : (h + 1) * d]

    turns = turns_ref[...]
    for h in range(q_out.shape[1]):
        q_out[:, h] = one(head(q_ref, h), scales[0], turns)
    for h in range(both_out.shape[1] // 2):
        both_out[:, 2 * h] = one(head(k_ref, h), scales[1], turns)
        both_out[:, 2 * h + 1] = head(v_ref, h)


def flops_and_bytes(call: cost.KernelCall) -> tuple[float, float]:
    """Returns FLOPs of matrix products, of which there are none, and bytes of one run of the kernel.

    Raises:
      ValueError: it is a call of another kernel.
    """
    if NAME not in call.name:
        raise ValueError(f"{call.name} is no {NAME}; give it its own formula.")
    return 0.0, float(sum(cost.num_bytes(*one) for one in (*call.operands, *call.results)))
