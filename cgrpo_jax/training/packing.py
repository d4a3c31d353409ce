"""From train rows to fixed-size packed batches: several rows share one token row, none sees another.

Rows with the same context, as the responses to one question, share it: in a token row it is computed once, and each of
its rows attends to it. The same packer serves every kind of row (responses, refinements, critiques, examples).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind, TrainBatch, TrainRow
from cgrpo_jax.training.token_rows import TokenRow, assign, by_context, check_pairs

# What `work` counts.
WORK = ("packed_positions", "packed_tokens", "targets", "attention_pairs", "local_attention_pairs")


@dataclasses.dataclass(frozen=True)
class PackShape:
    """The static shape of a data group's packed batch: R token rows of S tokens, holding at most B train rows.

    With `sampler_logp` the log-probabilities of the sampler are among its arrays, with `from_rows` what `finetune`
    needs besides: which rows are of RCO and of which pairs, and which targets count; with `top_tokens` those of a
    teacher, of so many tokens at each position.
    """

    num_token_rows: int
    pack_length: int
    num_slots: int
    sampler_logp: bool = False
    from_rows: bool = False
    top_tokens: int = 0


def pack(
    rows: Sequence[TrainRow],
    *,
    num_token_rows: int,
    pack_length: int,
    num_slots: int,
    max_length: int,
    num_groups: int = 1,
    sampler_logp: bool = False,
    from_rows: bool = False,
    top_tokens: int = 0,
) -> list[TrainBatch]:
    """Packs rows first-fit, longest first, into as many batches of one static shape as they need.

    A row of P context tokens and T targets takes T positions: from the last token of its context, which predicts the
    first target, to its last target but one. The P - 1 tokens before take their positions once in a token row, for all
    rows with that context.

    Args:
      rows: what to learn from; may be empty.
      num_token_rows: R, token rows of a data group in a batch.
      pack_length: S, tokens in a token row.
      num_slots: B, train rows that a data group's part of a batch holds at most.
      max_length: T, targets that a row may have.
      num_groups: G, data groups.
      sampler_logp: whether batches have the sampler's log-probabilities.
      from_rows: whether they have what `finetune` needs; only then may rows be of RCO, or of a pair, whose two rows
        lie in one token row.
      top_tokens: C, of how many tokens at each target they have a teacher's; 0: of none.

    Returns:
      Batches of NumPy arrays; every row is in exactly one. The first axes are G times as long as `TrainBatch` says:
      the parts of the data groups follow each other, and `row_B` counts token rows within a part.

    Raises:
      UserError: a row or a pair does not fit `pack_length` or `max_length`, or has no context or no target.

    Example:
      The contexts [5, 6, 7] with targets [1, 2] and [3, 4, 2] share one token row of S = 8 so: tokens
      [5, 6, 7, 3, 4, 7, 1, 0], segments [1, 1, 2, 2, 2, 3, 3, 0], prompts [0, 0, 1, 1, 1, 1, 1, 0] and positions
      [0, 1, 2, 3, 4, 2, 3, 0].
    """
    for row in rows:
        _check(row, pack_length, max_length)
    groups = by_context(rows)
    if from_rows:
        check_pairs(groups, pack_length, num_slots)
    token_rows = assign(groups, num_token_rows=num_token_rows, pack_length=pack_length, num_slots=num_slots)
    sizes = (num_groups, num_token_rows, pack_length, num_slots, max_length)
    more = {"sampler_logp": sampler_logp, "from_rows": from_rows, "top_tokens": top_tokens}
    step = num_groups * num_token_rows
    return [fill(token_rows[j : j + step], *sizes, **more) for j in range(0, len(token_rows), step)]


def pack_onto(mesh: Mesh, rows: Sequence[TrainRow], shape: PackShape, *, max_length: int) -> list[TrainBatch]:
    """Returns `pack` for the data groups of a mesh."""
    return pack(
        rows,
        num_groups=sharding.num_groups(mesh),
        num_token_rows=shape.num_token_rows,
        pack_length=shape.pack_length,
        num_slots=shape.num_slots,
        max_length=max_length,
        sampler_logp=shape.sampler_logp,
        from_rows=shape.from_rows,
        top_tokens=shape.top_tokens,
    )


@functools.cache
def batch_shapes(shape: PackShape, *, max_length: int, mesh: Mesh) -> TrainBatch:
    """Returns what a batch of `pack_onto` is once it is dealt out, as `jax.ShapeDtypeStruct`s."""
    where = NamedSharding(mesh, sharding.BY_ROWS)
    empty = empty_batch(shape, max_length=max_length, num_groups=sharding.num_groups(mesh))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), empty)


def empty_batch(shape: PackShape, *, max_length: int, num_groups: int) -> TrainBatch:
    """Returns a batch that holds nothing but padding."""
    sizes = (num_groups, shape.num_token_rows, shape.pack_length, shape.num_slots, max_length)
    more = {"sampler_logp": shape.sampler_logp, "from_rows": shape.from_rows, "top_tokens": shape.top_tokens}
    return fill([], *sizes, **more)


def _check(row: TrainRow, pack_length: int, max_length: int) -> None:
    if not len(row.context_ids) or not len(row.target_ids):
        raise UserError(
            f"a train row of {len(row.context_ids)} + {len(row.target_ids)} tokens has no context or no target; "
            "it needs at least one token of each."
        )
    if len(row.context_ids) + len(row.target_ids) - 1 > pack_length or len(row.target_ids) > max_length:
        raise UserError(
            f"a train row of {len(row.context_ids)} + {len(row.target_ids)} tokens does not fit a token row of "
            f"{pack_length} (packing.length) and {max_length} targets (max_response_length); raise them, or shorten "
            "prompts and responses."
        )


def fill(
    token_rows: Sequence[TokenRow],
    G: int,
    R: int,
    S: int,
    B: int,
    T: int,
    *,
    sampler_logp: bool = False,
    from_rows: bool = False,
    top_tokens: int = 0,
) -> TrainBatch:
    """Returns the batch whose token row r holds `token_rows[r]`; what they do not fill is padding."""
    more = (sampler_logp, from_rows, top_tokens)
    parts = [_fill_part(token_rows[g * R : (g + 1) * R], _empty(R, S, B, T, *more)) for g in range(G)]
    return parts[0] if G == 1 else jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _fill_part(token_rows: Sequence[TokenRow], batch: TrainBatch) -> TrainBatch:
    b, pairs = 0, {}
    for r, held in enumerate(token_rows):
        at = segment = 0

        def write(ids, first_position: int, prompt: int, r=r):
            nonlocal at, segment
            segment += 1
            here = slice(at, at + len(ids))
            batch.tokens_RS[r, here], batch.segments_RS[r, here], batch.prompts_RS[r, here] = ids, segment, prompt
            batch.positions_RS[r, here] = first_position + np.arange(len(ids))
            at += len(ids)
            return here.start

        for rows in held.values():
            shared = rows[0].context_ids[:-1]
            if len(shared):
                write(shared, 0, 0)
            prompt = segment if len(shared) else 0
            for row in rows:
                start = write(np.concatenate([row.context_ids[-1:], row.target_ids[:-1]]), len(shared), prompt)
                _fill_slot(batch, b, row, r, start)
                if batch.pair_B is not None and row.pair:
                    number = pairs.setdefault(abs(row.pair), len(pairs) + 1)
                    batch.pair_B[b] = number if row.pair > 0 else -number
                b += 1
    return batch


def _fill_slot(batch: TrainBatch, b: int, row: TrainRow, r: int, start: int) -> None:
    n = len(row.target_ids)
    batch.row_B[b], batch.start_B[b], batch.length_B[b] = r, start, n
    batch.target_BT[b, :n], batch.old_logp_BT[b, :n] = row.target_ids, row.old_logp
    if row.ref_logp is not None:
        batch.ref_logp_BT[b, :n] = row.ref_logp
    if batch.sampler_logp_BT is not None and row.sampler_logp is not None:
        batch.sampler_logp_BT[b, :n] = row.sampler_logp
    if batch.rco_B is not None and batch.counted_BT is not None:
        batch.rco_B[b] = row.loss == LossKind.RCO
        batch.counted_BT[b, :n] = True if row.counted is None else row.counted
    batch.advantage_B[b], batch.refined_B[b], batch.nll_B[b] = row.advantage, row.refined, row.loss == LossKind.NLL
    if batch.distil_B is not None and batch.alone_B is not None:
        batch.distil_B[b], batch.alone_B[b] = row.teacher_logp is not None, row.loss == LossKind.DISTIL
    if batch.top_ids_RSC is not None and row.top_ids is not None:
        batch.top_ids_RSC[r, start : start + n] = row.top_ids
    if batch.teacher_logp_RSG is not None and row.teacher_logp is not None:
        batch.teacher_logp_RSG[r, start : start + n] = row.teacher_logp


def _empty(R: int, S: int, B: int, T: int, sampler_logp: bool, from_rows: bool, C: int) -> TrainBatch:
    tokens, positions, segments, prompts = (np.zeros((R, S), np.int32) for _ in range(4))
    row_B, start_B, length_B = (np.zeros(B, np.int32) for _ in range(3))
    old_logp, ref_logp = (np.zeros((B, T), np.float32) for _ in range(2))
    refined, nll = (np.zeros(B, bool) for _ in range(2))
    more = {}
    if from_rows:
        more |= {
            "rco_B": np.zeros(B, bool),
            "pair_B": np.zeros(B, np.int32),
            "counted_BT": np.zeros((B, T), bool),
        }
    if C:  # C different tokens, all others, and each as likely: what no row fills has a distribution all the same
        more |= {
            "distil_B": np.zeros(B, bool),
            "alone_B": np.zeros(B, bool),
            "top_ids_RSC": np.tile(np.arange(C, dtype=np.int32), (R, S, 1)),
            "teacher_logp_RSG": np.full((R, S, C + 1), -np.log(C + 1), np.float32),
        }
    return TrainBatch(
        tokens_RS=tokens,
        positions_RS=positions,
        segments_RS=segments,
        prompts_RS=prompts,
        row_B=row_B,
        start_B=start_B,
        length_B=length_B,
        target_BT=np.zeros((B, T), np.int32),
        old_logp_BT=old_logp,
        ref_logp_BT=ref_logp,
        advantage_B=np.zeros(B, np.float32),
        refined_B=refined,
        nll_B=nll,
        sampler_logp_BT=np.zeros((B, T), np.float32) if sampler_logp else None,
        **more,
    )


def work(batch: TrainBatch, *, window: int = 0) -> dict[str, int]:
    """Returns what a batch computes: counts over all its token rows, from which FLOPs follow (flops.py).

    A token at position p sees p + 1 tokens, itself and its whole context, wherever in the token row these lie; in a
    layer with a window at most that many.

    Args:
      batch: of NumPy arrays, from `pack`.
      window: tokens that a token of a local layer sees; 0 where no layer is local.
    """
    live = batch.segments_RS > 0
    seen = np.where(live, batch.positions_RS + 1, 0).astype(np.int64)
    counted = (live.size, live.sum(), batch.length_B.sum(), seen.sum(), np.minimum(seen, window).sum())
    return {name: int(number) for name, number in zip(WORK, counted, strict=True)}
