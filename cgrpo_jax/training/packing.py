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

# What a token row holds: by the bytes of each context, the rows that share it.
TokenRow = dict[bytes, list[TrainRow]]
# What `work` counts.
WORK = ("packed_positions", "packed_tokens", "targets", "attention_pairs", "local_attention_pairs")


@dataclasses.dataclass(frozen=True)
class PackShape:
    """The static shape of a data group's packed batch: R token rows of S tokens, holding at most B train rows.

    With `sampler_logp` the log-probabilities of the sampler are among its arrays, with `top_tokens` those of a teacher,
    of so many tokens at each position.
    """

    num_token_rows: int
    pack_length: int
    num_slots: int
    sampler_logp: bool = False
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
      top_tokens: C, of how many tokens at each target they have a teacher's; 0: of none.

    Returns:
      Batches of NumPy arrays; every row is in exactly one. The first axes are G times as long as `TrainBatch` says:
      the parts of the data groups follow each other, and `row_B` counts token rows within a part.

    Raises:
      UserError: a row does not fit `pack_length` or `max_length`, or has no context or no target.

    Example:
      The contexts [5, 6, 7] with targets [1, 2] and [3, 4, 2] share one token row of S = 8 so: tokens
      [5, 6, 7, 3, 4, 7, 1, 0], segments [1, 1, 2, 2, 2, 3, 3, 0], prompts [0, 0, 1, 1, 1, 1, 1, 0] and positions
      [0, 1, 2, 3, 4, 2, 3, 0].
    """
    for row in rows:
        _check(row, pack_length, max_length)
    token_rows = assign(_by_context(rows), num_token_rows=num_token_rows, pack_length=pack_length, num_slots=num_slots)
    sizes = (num_groups, num_token_rows, pack_length, num_slots, max_length)
    step = num_groups * num_token_rows
    return [
        fill(token_rows[j : j + step], *sizes, sampler_logp=sampler_logp, top_tokens=top_tokens)
        for j in range(0, len(token_rows), step)
    ]


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
    return fill([], *sizes, sampler_logp=shape.sampler_logp, top_tokens=shape.top_tokens)


def assign(
    groups: Sequence[Sequence[TrainRow]], *, num_token_rows: int, pack_length: int, num_slots: int
) -> list[TokenRow]:
    """Returns what each token row holds; the rows of a group have one context. Other arguments as for `pack`."""
    packer = _Packer(num_token_rows, pack_length, num_slots)
    for group in groups:
        packer.add(group)
    return packer.token_rows


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


def _by_context(rows: Sequence[TrainRow]) -> list[list[TrainRow]]:
    """Returns the rows of each context, longest first; the contexts that take the most positions first."""
    groups: dict[bytes, list[TrainRow]] = {}
    for row in rows:
        groups.setdefault(_context(row), []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: -len(row.target_ids))
    return sorted(groups.values(), key=lambda group: -_size(group))


def _context(row: TrainRow) -> bytes:
    return np.asarray(row.context_ids, np.int32).tobytes()


def _size(group: Sequence[TrainRow]) -> int:
    """Returns the positions that rows of one context take in a token row of their own."""
    return len(group[0].context_ids) - 1 + sum(len(row.target_ids) for row in group)


class _Packer:
    """Token rows that are being filled, R of each batch, with B slots for train rows."""

    def __init__(self, num_token_rows: int, pack_length: int, num_slots: int):
        self.num_token_rows, self.pack_length, self.num_slots = num_token_rows, pack_length, num_slots
        self.token_rows: list[TokenRow] = []
        self.free: list[int] = []  # positions left in each token row
        self.slots: list[int] = []  # train rows that each batch still takes
        self.open: list[int] = []  # token rows that may still take one, in order

    def add(self, group: Sequence[TrainRow]) -> None:
        """Places rows of one context: together if a token row has room for them all, else as they come."""
        context, beside = _context(group[0]), []  # token rows that have the context already
        for i, row in enumerate(group):
            targets, rest = len(row.target_ids), group[i:]
            j = self._first(beside, targets)
            if j is None:
                j = self._first(self.open, _size(rest), len(rest))
            if j is None:
                j = self._first(self.open, _size([row]))
            if j is None:
                j = self._new()
            if j not in beside:
                beside.append(j)
                self.free[j] -= len(row.context_ids) - 1
            self.free[j] -= targets
            self.slots[j // self.num_token_rows] -= 1
            self.token_rows[j].setdefault(context, []).append(row)
        self.open = [j for j in self.open if self.free[j] and self.slots[j // self.num_token_rows]]

    def _first(self, among: Sequence[int], size: int, num_rows: int = 1) -> int | None:
        """Returns the first token row with so many positions and slots left."""
        enough = (j for j in among if self.free[j] >= size and self.slots[j // self.num_token_rows] >= num_rows)
        return next(enough, None)

    def _new(self) -> int:
        # A batch that is out of slots takes no new token row either: its remaining ones stay empty.
        while len(self.token_rows) % self.num_token_rows and not self.slots[-1]:
            self.token_rows.append({})
            self.free.append(0)
        if len(self.token_rows) % self.num_token_rows == 0:
            self.slots.append(self.num_slots)
        self.token_rows.append({})
        self.free.append(self.pack_length)
        self.open.append(len(self.token_rows) - 1)
        return self.open[-1]


def fill(
    token_rows: Sequence[TokenRow],
    G: int,
    R: int,
    S: int,
    B: int,
    T: int,
    *,
    sampler_logp: bool = False,
    top_tokens: int = 0,
) -> TrainBatch:
    """Returns the batch whose token row r holds `token_rows[r]`; what they do not fill is padding."""
    parts = [
        _fill_part(token_rows[g * R : (g + 1) * R], _empty(R, S, B, T, sampler_logp, top_tokens)) for g in range(G)
    ]
    return parts[0] if G == 1 else jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _fill_part(token_rows: Sequence[TokenRow], batch: TrainBatch) -> TrainBatch:
    b = 0
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
    batch.advantage_B[b], batch.refined_B[b], batch.nll_B[b] = row.advantage, row.refined, row.loss == LossKind.NLL
    if batch.distil_B is not None and batch.alone_B is not None:
        batch.distil_B[b], batch.alone_B[b] = row.teacher_logp is not None, row.loss == LossKind.DISTIL
    if batch.top_ids_RSC is not None and row.top_ids is not None:
        batch.top_ids_RSC[r, start : start + n] = row.top_ids
    if batch.teacher_logp_RSG is not None and row.teacher_logp is not None:
        batch.teacher_logp_RSG[r, start : start + n] = row.teacher_logp


def _empty(R: int, S: int, B: int, T: int, sampler_logp: bool, C: int) -> TrainBatch:
    tokens, positions, segments, prompts = (np.zeros((R, S), np.int32) for _ in range(4))
    row_B, start_B, length_B = (np.zeros(B, np.int32) for _ in range(3))
    old_logp, ref_logp = (np.zeros((B, T), np.float32) for _ in range(2))
    refined, nll = (np.zeros(B, bool) for _ in range(2))
    taught = {}
    if C:  # C different tokens, all others, and each as likely: what no row fills has a distribution all the same
        taught = {
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
        **taught,
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
