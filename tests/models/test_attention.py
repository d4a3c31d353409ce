"""Attention over packed rows, in plain JAX and by splash attention interpreted, against its definition in numpy."""

import numpy as np
import pytest
from attention_cases import config_of

from cgrpo_jax.errors import UserError
from cgrpo_jax.models import attention
from cgrpo_jax.models.kernels import cost, splash_attention


def test_unknown_kernels_are_refused():
    row = np.ones((1, 8), np.int32)
    with pytest.raises(UserError, match="attention kernel 'flash' is unknown; use one of blocks, splash, interpret"):
        attention.packed_attention(config_of(2, 1, 16), row, row, kernel="flash")


def test_every_row_has_blocks_that_a_number_can_name():
    for length in range(1, splash_attention.LONGEST + 1):
        for head_dim in (64, 256):
            padded, queries, keys = splash_attention.block_sizes(length, head_dim)
            assert length <= padded <= splash_attention.LONGEST and padded % queries == 0 and padded // queries <= 16
            assert queries % keys == 0 and keys % 128 == 0 and keys < queries  # never square: see splash._sees
            assert padded - length < max(256, length / 8)


def test_costs_by_hand():
    """2 heads of 128 over 1 of keys, 2 blocks of 256 queries, 4 of 128 keys: 2 + 4 of the 8 blocks are visited."""
    block = 256 * 128 * 128
    ids, mask, q, k = ("s32", (512, 128)), ("s32", (1, 2, 4)), ("bf16", (2, 512, 128)), ("bf16", (1, 512, 128))
    flat, low, wide = ("s32", (8, 512)), ("f32", (2, 1, 512)), ("f32", (2, 8, 512))
    forward = cost.KernelCall("splash_mha_fwd_segmented_residuals", (mask, mask, q, k, k, ids, flat, ids), (q,), 1)
    flops, moved = splash_attention.flops_and_bytes(forward)
    assert flops == 2 * 6 * 2 * 2 * block
    # Masks, queries and results once, ids once a head, and in each of 12 visits keys, values and their ids.
    once, visit = 2 * 32 + 2 * 2 * 512 * 128 * 2 + 2 * 2 * 512 * 128 * 4, 2 * 128 * 128 * 2 + 8 * 128 * 4
    assert moved == once + 12 * visit

    of_q = (mask, mask, q, k, k, ids, flat, low, q, low, ids)
    flops, moved = splash_attention.flops_and_bytes(
        cost.KernelCall("splash_mha_dq_segmented_no_residuals", of_q, (q,), 1)
    )
    assert flops == 3 * 6 * 2 * 2 * block
    assert moved == once + 2 * 512 * 128 * 2 + 2 * 2 * 512 * 4 + 12 * visit

    of_kv = (mask, mask, q, k, k, flat, ids, wide, q, wide, flat)
    flops, moved = splash_attention.flops_and_bytes(
        cost.KernelCall("splash_mha_dkv_segmented_no_residuals", of_kv, (k, k), 1)
    )
    assert flops == 4 * 6 * 2 * 2 * block
    once = 2 * 32 + 4 * 512 * 128 * 2 + 512 * 128 * 4  # keys, values, their gradients, and ids
    assert moved == once + 12 * (2 * 256 * 128 * 2 + 4 * 8 * 256 * 4)

    with pytest.raises(ValueError, match="decode is no kernel of splash attention with segments"):
        splash_attention.flops_and_bytes(cost.KernelCall("decode", (), (), 1))
