"""Packed attention by splash attention, the TPU kernel that ships with JAX.

The kernel takes whole blocks of queries and keys, and masks within a block by a function of a number per query and the
key's index, and by the equality of a number per query and one per key. Here these say: the numbers are those of units
(a prompt and the responses that see it), and the function leaves out of a unit what lies after the query, and what lies
between its prompt's end and its own segment's start. Which blocks there is anything to see in is worked out on the
device for each row: the others are neither fetched nor computed.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.kernels import cost

LONGEST = 16384
RESIDUALS = "attended"  # the name, for rematerialisation, of a result and of the statistics that its gradient needs
_LANES, _SUBLANES = 128, 8  # of a vector register
_BLOCKS = (1024, 512, 256)
# A query's number: its block of queries, where its prompt ends and where its own segment starts. Its place in the block
# is not in it: three whole indices into LONGEST tokens would need 42 bits.
_INDEX_BITS = 14
_INDEX = (1 << _INDEX_BITS) - 1


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static: tokens in a padded row, queries and keys in a block, soft-cap, whether it is interpreted."""

    length: int
    queries: int
    keys: int
    softcap: float
    interpret: bool


def block_sizes(length: int, head_dim: int) -> tuple[int, int, int]:
    """Returns `(padded length, queries in a block, keys in a block)` for rows of `length` tokens.

    The largest block of 1024, 512 and 256 queries that pads a row by less than an eighth, else 256. So a row has at
    most 16 of them, which is what fits a query's number. Half as many keys, or a quarter for heads beyond 128, for
    which on-chip memory is too small otherwise; never fewer than 128.

    Raises:
      UserError: the row is longer than `LONGEST`.

    Example:
      block_sizes(8192, 128) == (8192, 1024, 512)
      block_sizes(1300, 128) == (1536, 256, 128)
    """
    if length > LONGEST:
        raise UserError(
            f"splash attention takes rows of at most {LONGEST} tokens, not {length}; use shorter rows, or attention in "
            "plain JAX (kernel='blocks')."
        )
    padded = {queries: -(-length // queries) * queries for queries in _BLOCKS}
    queries = next((size for size in _BLOCKS if 8 * (padded[size] - length) < length), _BLOCKS[-1])
    return padded[queries], queries, max(_LANES, queries // (2 if head_dim <= _LANES else 4))


def attention(
    segments_BS: jax.Array,
    prompts_BS: jax.Array | None,
    *,
    head_dim: int,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> Callable:
    """Returns `attend(q, k, v) -> out`: causal attention within each segment, and to the prompt that it continues.

    Query i sees key j if j <= i and (segments[j] == segments[i] or prompts[i] > 0 and segments[j] == prompts[i]).
    `q` is `[B, S, H, head_dim]`, `k` and `v` are `[B, S, G, head_dim]` with G a divisor of H: query head h reads head
    h // (H / G). `out` is like `q`. Gradients are those of q, k and v, and can't be derived again. Inside
    `jax.shard_map` each device computes its own rows and heads.

    Args:
      segments_BS: int32; the tokens of a segment lie together. 0 is padding, at the end.
      prompts_BS: int32, the segment that a token sees besides its own, which must lie directly before the segments that
        see it; 0: none. None: none anywhere.
      head_dim: other sizes than 64 and multiples of 128 are padded to the next multiple.
      scale: what queries are multiplied by, in their own dtype.
      softcap: `c tanh(x / c)` over the scores; 0: none.
      interpret: run the kernel's steps as plain JAX, on any device; slow.

    Raises:
      UserError: rows are longer than `LONGEST`.

    Example:
      segments, prompts = [[1, 1, 2, 3, 0]], [[0, 0, 1, 1, 0]]   # prompt 1 with responses 2 and 3, and padding
      # token 3 sees 0, 1 and 3
    """
    S = segments_BS.shape[1]
    plan = _Plan(*block_sizes(S, head_dim), softcap, interpret)
    wide = head_dim if head_dim == 64 else -(-head_dim // _LANES) * _LANES
    if prompts_BS is None:
        prompts_BS = jnp.zeros_like(segments_BS)
    masks = _masks(plan, *(jnp.pad(x, ((0, 0), (0, plan.length - S))) for x in (segments_BS, prompts_BS)))

    def heads_first(x_BSHK):
        x = jnp.pad(x_BSHK, ((0, 0), (0, plan.length - S), (0, 0), (0, wide - head_dim)))
        return x.transpose(0, 2, 1, 3)

    def attend(q_BSHK, k_BSGK, v_BSGK):
        arrays = [heads_first(x) for x in (q_BSHK * jnp.asarray(scale, q_BSHK.dtype), k_BSGK, v_BSGK)]
        # Marked alike where JAX still derives: what comes back to an array that is the same on several devices, as a
        # gradient in parts, is added up here.
        arrays = sharding.varying_like(arrays, *arrays, *masks.values())
        out_BHPK = _attend(plan, masks, *arrays)
        return out_BHPK.transpose(0, 2, 1, 3)[:, :S, :, :head_dim]

    return attend


def flops_and_bytes(call: cost.KernelCall) -> tuple[float, float]:
    """Returns FLOPs and bytes to and from HBM of one run of a splash kernel, if a single segment filled the row.

    With n the pairs of a block of queries and one of keys with a key that a query may see causally, each of Q queries
    and C keys, H heads of K: FLOPs are 2 m H n Q C K, with m = 2 matrix products in the forward kernel (scores and
    result), 3 in that of q's gradient, 4 in that of k's and v's. What is of the outer block of the loop is moved once
    (what says which unit a query is of, once a head), and what is of the inner once for each of the n blocks and H
    heads: keys and values in the first two kernels, queries, gradients and their statistics in the third.

    Rows of several units skip more blocks, which no shape shows: these are upper limits.

    Args:
      call: of this kernel, as `hlo.kernel_calls` finds it.

    Raises:
      ValueError: it is a call of another kernel.
    """
    phase = re.match(r"splash_mha_(fwd|dq|dkv)_segmented", call.name)
    if not phase:
        raise ValueError(f"{call.name} is no kernel of splash attention with segments; give it its own formula.")
    names = ["next", "seen", "q", "k", "v", "unit_q", "unit_k"]
    names += ["number"] if phase[1] == "fwd" else ["logsumexp", "gradient", "inner", "number"]
    operands = dict(zip(names, call.operands, strict=True))
    (_, (_, M, N)), (_, (H, P, K)) = operands["next"], operands["q"]
    queries, keys = P // M, P // N
    visits = H * sum(j * keys < (i + 1) * queries for i in range(M) for j in range(N))
    flops = 2 * {"fwd": 2, "dq": 3, "dkv": 4}[phase[1]] * visits * queries * keys * K
    by_keys = phase[1] == "dkv"
    inner = {"q", "unit_q", "logsumexp", "gradient", "inner", "number"} if by_keys else {"k", "v", "unit_k"}
    moved = sum(cost.num_bytes(*result) for result in call.results)
    for name, (dtype, shape) in operands.items():
        size = cost.num_bytes(dtype, shape)
        if name in inner:
            moved += visits * size // (shape[0] if len(shape) == 3 else 1) // (M if by_keys else N)
        else:
            moved += size * (H if name in ("unit_q", "number") else 1)
    return float(flops), float(moved)


# --- what a query sees --------------------------------------------------------------------------------------------


def _masks(plan: _Plan, segments_BP, prompts_BP) -> dict:
    """Returns, by row, the unit of each token, each query's number, and which blocks of keys a block of queries sees.

    A query sees of its unit [begin, prompt_end) and [start, itself]; without a prompt, prompt_end is start.
    """
    index_P = jnp.arange(plan.length, dtype=jnp.int32)

    def run_start(x_BP, counted=True):
        """The index at which the run of equal numbers began that a token is in, or the last run that counts."""
        changed = jnp.concatenate([jnp.ones_like(x_BP[:, :1], bool), x_BP[:, 1:] != x_BP[:, :-1]], axis=1)
        return jax.lax.cummax(jnp.where(changed & counted, index_P, 0), axis=1)

    shared = prompts_BP > 0
    unit_BP = jnp.where(shared, prompts_BP, segments_BP)
    start_BP = run_start(segments_BP)
    begin_BP = jnp.where(shared, run_start(unit_BP), start_BP)
    prompt_end_BP = jnp.where(shared, run_start(prompts_BP, shared), start_BP)
    number_BP = (index_P // plan.queries) << 2 * _INDEX_BITS | prompt_end_BP << _INDEX_BITS | start_BP

    # Blocks of keys by their numbers: from first to last of each of the two ranges.
    block_N = jnp.arange(plan.length // plan.keys, dtype=jnp.int32)

    def within(first_BP, last_BP):
        return (first_BP[..., None] // plan.keys <= block_N) & (block_N <= last_BP[..., None] // plan.keys)

    sees_BPN = within(start_BP, jnp.broadcast_to(index_P, start_BP.shape))
    sees_BPN |= within(begin_BP, prompt_end_BP - 1) & (prompt_end_BP > begin_BP)[..., None]
    sees_BMN = sees_BPN.reshape(len(sees_BPN), -1, plan.queries, len(block_N)).any(2)
    return {"unit": unit_BP, "number": number_BP, "sees": sees_BMN}


def _next_seen(sees_MN, axis: int):
    """The number, along an axis, of the next block that is computed, itself included; after the last, the first.

    The kernel fetches that block meanwhile.
    """
    size = sees_MN.shape[axis]
    here = jnp.where(sees_MN, jax.lax.broadcasted_iota(jnp.int32, sees_MN.shape, axis), size)
    following = jax.lax.cummin(here, axis=axis, reverse=True)
    return jnp.where(following < size, following, here.min(axis, keepdims=True))


@functools.cache  # it is a static argument of the kernel, which would be traced again for another object
def _mask_function(plan: _Plan) -> Callable:
    return functools.partial(_sees, plan)


def _sees(plan: _Plan, number, key):
    """The kernel's mask function: whether queries see keys of their unit.

    It is called for a block with queries along the first axis (forward, and the gradient of q) or along the second (of
    k and v). Blocks are never square, so the shape shows which. All that is computed from the query alone is so on one
    vector register's width, and then repeated.
    """
    if number.shape == (plan.queries, plan.keys):
        number, repeats, axis = number[:, :_LANES], (1, plan.keys // _LANES), 0
    elif number.shape == (plan.keys, plan.queries):
        number, repeats, axis = number[:_SUBLANES], (plan.keys // _SUBLANES, 1), 1
    else:
        raise ValueError(f"splash attention asked for a mask of {number.shape}, not of {plan.queries} x {plan.keys}.")
    block = jax.lax.shift_right_logical(number, 2 * _INDEX_BITS)
    query = block * plan.queries + jax.lax.broadcasted_iota(jnp.int32, number.shape, axis)
    prompt_end, start = number >> _INDEX_BITS & _INDEX, number & _INDEX
    query, prompt_end, start = (jnp.tile(x, repeats) for x in (query, prompt_end, start))
    return (key <= query) & ((key < prompt_end) | (key >= start))


# --- running the kernel -------------------------------------------------------------------------------------------


def _kernel(plan: _Plan, number_P, sees_MN) -> kernels.SplashAttentionKernel:
    def info(axis):
        return mask_info.MaskInfo(
            data_next=_next_seen(sees_MN, axis)[None],
            mask_next=None,
            block_mask=sees_MN.astype(jnp.int32)[None],
            partial_mask_blocks=None,
            q_sequence=number_P,
        )

    blocks = kernels.BlockSizes(
        block_q=plan.queries,
        block_kv=plan.keys,
        block_kv_compute=plan.keys,
        block_q_dkv=plan.queries,
        block_kv_dkv=plan.keys,
        block_kv_dkv_compute=plan.keys,
        block_q_dq=plan.queries,
        block_kv_dq=plan.keys,
    )
    by_keys = info(1)
    return kernels.SplashAttentionKernel(
        by_keys,
        by_keys,
        info(0),
        block_sizes=blocks,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=plan.softcap or None,
        residual_checkpoint_name=RESIDUALS,
        mask_function=_mask_function(plan),
        interpret=plan.interpret,
    )


def _rows(plan: _Plan, masks, q_BHPK, k_BGPK, v_BGPK):
    """Runs the kernel row by row: a kernel call has one set of blocks."""

    def row(xs):
        masks, q, k, v = xs
        unit_P = masks["unit"]
        kernel = _kernel(plan, masks["number"], masks["sees"])
        return kernel(q, k, v, segment_ids=kernels.SegmentIds(unit_P, unit_P))

    return jax.lax.map(row, (masks, q_BHPK, k_BGPK, v_BGPK))


def _all_rows(plan: _Plan, masks, q_BHPK, k_BGPK, v_BGPK) -> jax.Array:
    return sharding.unchecked(functools.partial(_rows, plan), masks, q_BHPK, k_BGPK, v_BGPK)


def _attend_forward(plan, masks, *arrays):
    def forward(masks, *arrays):
        return jax.vjp(functools.partial(_rows, plan, masks), *arrays)

    return sharding.unchecked(forward, masks, *arrays)


def _attend_backward(plan, pull_back, gradient):
    return None, *sharding.unchecked(lambda pull_back, gradient: pull_back(gradient), pull_back, gradient)


_attend = jax.custom_vjp(_all_rows, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)
