"""The walk over an output layer's logits in plain JAX: blocks of the vocabulary, and in each the blocks of live rows.

What is done with a block is in logprobs.py and top_logits.py; `settings` are theirs (`logit_tiles.Settings`).
"""

import jax.numpy as jnp
from jax import lax

from cgrpo_jax import sharding
from cgrpo_jax.models.kernels import logit_tiles
from cgrpo_jax.models.kernels.logit_tiles import Settings


def num_blocks(settings: Settings, unembed_VD):
    """Returns how many blocks a table has."""
    return -(-unembed_VD.shape[0] // settings.block_size)


def of_vocab(settings: Settings, unembed_VD, index):
    """Returns a block of the table, where it begins, its rows' vocabulary ids and which of them count.

    The last block starts early enough to be whole: its first rows may repeat, and then do not count.
    """
    start = jnp.minimum(index * settings.block_size, unembed_VD.shape[0] - settings.block_size)
    id_K = start + jnp.arange(settings.block_size)
    block_KD = lax.dynamic_slice_in_dim(unembed_VD, start, settings.block_size)
    return block_KD, start, id_K, id_K >= index * settings.block_size


def of_rows(settings: Settings, num_rows: int, index, num_live):
    """Returns where a block of rows begins, and which of them count: live ones that no block before it held."""
    start = jnp.minimum(index * settings.row_block, num_rows - settings.row_block)
    row_R = start + jnp.arange(settings.row_block)
    return start, (row_R >= index * settings.row_block) & (row_R < (num_rows if num_live is None else num_live))


def take(settings: Settings, start, arrays, axes):
    """Returns the rows of a block of several arrays, which lie along these axes."""
    return (lax.dynamic_slice_in_dim(x, start, settings.row_block, axis) for x, axis in zip(arrays, axes, strict=True))


def for_live(settings: Settings, num_rows: int, num_live, step, carry):
    """Runs `step(index, carry)` for each block that holds a live row."""
    if num_live is None:
        return lax.fori_loop(0, -(-num_rows // settings.row_block), step, carry)
    # The count varies between data groups, so the counter must.
    stop = (num_live + settings.row_block - 1) // settings.row_block
    return lax.fori_loop(sharding.varying_like(jnp.int32(0), stop), stop, step, carry)


def logits(settings: Settings, hidden_RD, block_KD):
    """Returns the logits of some rows in a block, and their slope in the products."""
    dtype = logit_tiles.sum_dtype(hidden_RD, block_KD)
    return logit_tiles.bend(settings, jnp.einsum("rd,kd->rk", hidden_RD, block_KD, preferred_element_type=dtype))
