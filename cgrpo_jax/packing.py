"""From train rows to fixed-size packed batches: several rows share one token row, none sees another.

The same packer serves every kind of row (responses, refinements, critiques, supervised examples).
"""

from collections.abc import Sequence

import jax
import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind, TrainBatch, TrainRow


def pack(
    rows: Sequence[TrainRow],
    *,
    num_token_rows: int,
    pack_length: int,
    num_slots: int,
    max_length: int,
    num_groups: int = 1,
) -> list[TrainBatch]:
    """Packs rows first-fit, longest first, into as many batches of one static shape as they need.

    A row takes `len(context_ids) + len(target_ids) - 1` positions: its last target is predicted, not read.

    Args:
      rows: what to learn from; may be empty.
      num_token_rows: R, token rows of a data group in a batch.
      pack_length: S, tokens in a token row.
      num_slots: B, train rows that a data group's part of a batch holds at most.
      max_length: T, targets that a row may have.
      num_groups: G, data groups.

    Returns:
      Batches of NumPy arrays; every row is in exactly one. The first axes are G times as long as `TrainBatch` says:
      the parts of the data groups follow each other, and `row_B` counts token rows within a part.

    Raises:
      UserError: a row does not fit `pack_length` or `max_length`, or has no context or no target.

    Example:
      Rows of 5 and 3 positions and S = 8 share one token row, with segments [1, 1, 1, 1, 1, 2, 2, 2] and positions
      [0, 1, 2, 3, 4, 0, 1, 2].
    """
    sizes = [len(row.context_ids) + len(row.target_ids) - 1 for row in rows]
    for row, size in zip(rows, sizes, strict=True):
        if not len(row.context_ids) or not len(row.target_ids):
            raise UserError(
                f"a train row of {len(row.context_ids)} + {len(row.target_ids)} tokens has no context or no target; "
                "it needs at least one token of each."
            )
        if size > pack_length or len(row.target_ids) > max_length:
            raise UserError(
                f"a train row of {len(row.context_ids)} + {len(row.target_ids)} tokens does not fit pack_length "
                f"{pack_length} and max_length {max_length}; raise them or shorten prompts and responses."
            )
    R = num_token_rows
    token_rows: list[list[TrainRow]] = []
    free: list[int] = []  # positions left in each token row
    slots: list[int] = []  # train rows that each batch still takes
    for i in sorted(range(len(rows)), key=lambda i: -sizes[i]):
        j = next((j for j in range(len(free)) if free[j] >= sizes[i] and slots[j // R]), None)
        if j is None:
            # A batch that is out of slots takes no new token row either: its remaining ones stay empty.
            while len(token_rows) % R and not slots[-1]:
                token_rows.append([])
                free.append(0)
            j = len(token_rows)
            token_rows.append([])
            free.append(pack_length)
            if j % R == 0:
                slots.append(num_slots)
        token_rows[j].append(rows[i])
        free[j] -= sizes[i]
        slots[j // R] -= 1
    step = num_groups * R
    return [
        fill(token_rows[j : j + step], num_groups, R, pack_length, num_slots, max_length)
        for j in range(0, len(token_rows), step)
    ]


def fill(token_rows: Sequence[Sequence[TrainRow]], G: int, R: int, S: int, B: int, T: int) -> TrainBatch:
    """Returns the batch whose token row r holds `token_rows[r]`; what they do not fill is padding."""
    parts = [_fill_part(token_rows[g * R : (g + 1) * R], R, S, B, T) for g in range(G)]
    return parts[0] if G == 1 else jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _fill_part(token_rows: Sequence[Sequence[TrainRow]], R: int, S: int, B: int, T: int) -> TrainBatch:
    tokens, positions, segments = (np.zeros((R, S), np.int32) for _ in range(3))
    row_B, start_B, length_B = (np.zeros(B, np.int32) for _ in range(3))
    target = np.zeros((B, T), np.int32)
    old_logp, ref_logp = (np.zeros((B, T), np.float32) for _ in range(2))
    advantage = np.zeros(B, np.float32)
    refined, nll = (np.zeros(B, bool) for _ in range(2))
    b = 0
    for r, members in enumerate(token_rows):
        at = 0
        for segment, row in enumerate(members, start=1):
            ids = np.concatenate([row.context_ids, row.target_ids[:-1]])
            here, n = slice(at, at + len(ids)), len(row.target_ids)
            tokens[r, here], positions[r, here], segments[r, here] = ids, np.arange(len(ids)), segment
            row_B[b], start_B[b], length_B[b] = r, at + len(row.context_ids) - 1, n
            target[b, :n], old_logp[b, :n] = row.target_ids, row.old_logp
            if row.ref_logp is not None:
                ref_logp[b, :n] = row.ref_logp
            advantage[b], refined[b], nll[b] = row.advantage, row.refined, row.loss == LossKind.NLL
            at += len(ids)
            b += 1
    return TrainBatch(
        tokens_RS=tokens,
        positions_RS=positions,
        segments_RS=segments,
        row_B=row_B,
        start_B=start_B,
        length_B=length_B,
        target_BT=target,
        old_logp_BT=old_logp,
        ref_logp_BT=ref_logp,
        advantage_B=advantage,
        refined_B=refined,
        nll_B=nll,
    )
