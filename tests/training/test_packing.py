"""Packing: every row once, within every limit, and none sees its neighbours."""

import functools

import jax
import numpy as np
import pytest
from tiny import EVERYTHING, plain_logprobs, random_params

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind, TrainBatch, TrainRow
from cgrpo_jax.training.packing import WORK, pack, work
from cgrpo_jax.training.scoring import row_logprobs

CONFIG = EVERYTHING
SHAPE = dict(num_token_rows=3, pack_length=24, num_slots=6, max_length=8)


def make_row(rng, context_length, target_length, **fields):
    """A row whose tokens and log-probabilities are random, and with them its identity."""
    return TrainRow(
        context_ids=rng.integers(0, CONFIG.vocab_size, context_length).astype(np.int32),
        target_ids=rng.integers(0, CONFIG.vocab_size, target_length).astype(np.int32),
        old_logp=rng.normal(size=target_length).astype(np.float32),
        **{"advantage": float(np.float32(rng.normal())), **fields},
    )


def random_rows(seed, count, *, max_context=14, max_target=8):
    rng = np.random.default_rng(seed)
    return [make_row(rng, rng.integers(1, max_context + 1), rng.integers(1, max_target + 1)) for _ in range(count)]


def placed(batches):
    """The filled slots of all batches, as (batch, slot)."""
    return [(batch, b) for batch in batches for b in np.flatnonzero(batch.length_B)]


def read_back(batch: TrainBatch, b: int):
    """(context, target, old_logp) of a slot, found through its indices alone."""
    r, start, n = batch.row_B[b], batch.start_B[b], batch.length_B[b]
    own = np.flatnonzero(batch.segments_RS[r] == batch.segments_RS[r, start])
    assert own[0] == start and len(own) == n  # the last target is predicted from the segment's last position
    prompt = batch.prompts_RS[r, start]
    assert (batch.prompts_RS[r, own] == prompt).all()
    shared = np.flatnonzero((batch.segments_RS[r] == prompt) & (prompt > 0))
    assert not batch.prompts_RS[r, shared].any()
    for at in (own, shared):
        assert (np.diff(at) == 1).all()
    seen = np.concatenate([shared, own])
    assert (np.diff(seen) > 0).all() and (batch.positions_RS[r, seen] == np.arange(len(seen))).all()
    tokens = batch.tokens_RS[r, seen]
    context, target = tokens[: len(shared) + 1], batch.target_BT[b, :n]
    np.testing.assert_array_equal(tokens[len(context) :], target[:-1])
    return tuple(context), tuple(target), tuple(batch.old_logp_BT[b, :n])


def test_the_layout_by_hand():
    """Two rows of 5 and 3 positions in a token row of 9; one position is left, and the second token row is empty."""
    rng = np.random.default_rng(0)
    short = make_row(rng, 2, 2, refined=True, ref_logp=np.array([-5.0, -6.0], np.float32))
    long = make_row(rng, 3, 3, loss=LossKind.NLL)
    (batch,) = pack([short, long], num_token_rows=2, pack_length=9, num_slots=3, max_length=4)
    a, b = long, short
    np.testing.assert_array_equal(
        batch.tokens_RS, [[*a.context_ids, *a.target_ids[:2], *b.context_ids, b.target_ids[0], 0], [0] * 9]
    )
    np.testing.assert_array_equal(batch.segments_RS, [[1, 1, 2, 2, 2, 3, 4, 4, 0], [0] * 9])
    np.testing.assert_array_equal(batch.prompts_RS, [[0, 0, 1, 1, 1, 0, 3, 3, 0], [0] * 9])
    np.testing.assert_array_equal(batch.positions_RS, [[0, 1, 2, 3, 4, 0, 1, 2, 0], [0] * 9])
    np.testing.assert_array_equal(batch.row_B, [0, 0, 0])
    np.testing.assert_array_equal(batch.start_B, [2, 6, 0])
    np.testing.assert_array_equal(batch.length_B, [3, 2, 0])
    np.testing.assert_array_equal(batch.target_BT, [[*a.target_ids, 0], [*b.target_ids, 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.old_logp_BT, np.float32([[*a.old_logp, 0], [*b.old_logp, 0, 0], [0] * 4]))
    np.testing.assert_array_equal(batch.ref_logp_BT, [[0] * 4, [-5, -6, 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.advantage_B, np.float32([a.advantage, b.advantage, 0]))
    np.testing.assert_array_equal(batch.refined_B, [False, True, False])
    np.testing.assert_array_equal(batch.nll_B, [True, False, False])
    # Of 9 + 9 positions 8 are tokens; they see 1 + 2 + 3 + 4 + 5 and 1 + 2 + 3 tokens, with a window of 2 at most 2.
    assert work(batch, window=2) == dict(zip(WORK, (18, 8, 5, 21, 14), strict=True))


def test_a_shared_prompt_by_hand():
    """The example of `pack`: the prompt [5, 6] once, then its last token 7 with the targets of each row."""
    rows = [row_of([5, 6, 7], [1, 2]), row_of([5, 6, 7], [3, 4, 2])]
    (batch,) = pack(rows, num_token_rows=1, pack_length=8, num_slots=2, max_length=3)
    np.testing.assert_array_equal(batch.tokens_RS, [[5, 6, 7, 3, 4, 7, 1, 0]])
    np.testing.assert_array_equal(batch.segments_RS, [[1, 1, 2, 2, 2, 3, 3, 0]])
    np.testing.assert_array_equal(batch.prompts_RS, [[0, 0, 1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(batch.positions_RS, [[0, 1, 2, 3, 4, 2, 3, 0]])
    np.testing.assert_array_equal(batch.start_B, [2, 5])
    np.testing.assert_array_equal(batch.length_B, [3, 2])
    assert work(batch) == dict(zip(WORK, (8, 7, 5, 1 + 2 + 3 + 4 + 5 + 3 + 4, 0), strict=True))


def row_of(context, target):
    context, target = np.array(context, np.int32), np.array(target, np.int32)
    return TrainRow(context, target, np.zeros(len(target), np.float32), advantage=1.0)


def test_a_context_of_one_token_shares_nothing():
    (batch,) = pack([row_of([5], [1, 2]), row_of([5], [3])], num_token_rows=1, pack_length=4, num_slots=2, max_length=2)
    np.testing.assert_array_equal(batch.tokens_RS, [[5, 1, 5, 0]])
    np.testing.assert_array_equal(batch.segments_RS, [[1, 1, 2, 0]])
    assert not batch.prompts_RS.any()


def test_a_group_that_no_token_row_holds_has_its_prompt_in_each():
    """Four responses of 4 after a prompt of 1 + 5: two token rows of 14 hold two each."""
    rng = np.random.default_rng(0)
    first, *others = (make_row(rng, 6, 4) for _ in range(4))
    rows = [first] + [row.replace(context_ids=first.context_ids) for row in others]
    (batch,) = pack(rows, num_token_rows=2, pack_length=14, num_slots=4, max_length=4)
    assert sorted(batch.row_B) == [0, 0, 1, 1]
    assert (batch.segments_RS > 0).sum() == 2 * (5 + 2 * 4)


def test_a_group_stays_together_where_it_can():
    """A hole that takes one of its rows is left to others: the group goes where all of it fits."""
    rng = np.random.default_rng(0)
    long, other = make_row(rng, 10, 8), make_row(rng, 1, 7)
    group = [make_row(rng, 5, 5)]
    group += [make_row(rng, 5, 5).replace(context_ids=group[0].context_ids) for _ in range(2)]  # 4 + 3 * 5 positions
    (batch,) = pack([other, *group, long], num_token_rows=2, pack_length=27, num_slots=5, max_length=8)
    of_group = [read_back(batch, b)[0] == tuple(group[0].context_ids) for b in range(5)]
    assert len({int(r) for r, its in zip(batch.row_B, of_group, strict=True) if its}) == 1
    assert (batch.segments_RS > 0).sum() == 17 + 7 + 19


@pytest.mark.parametrize("seed", range(60))
def test_random_rows_are_packed_once_and_within_limits(seed):
    rng = np.random.default_rng(seed)
    S, T = int(rng.integers(4, 40)), int(rng.integers(1, 12))
    shape = dict(num_token_rows=int(rng.integers(1, 5)), pack_length=S, num_slots=int(rng.integers(1, 9)), max_length=T)
    rows = []
    for _ in range(rng.integers(0, 50)):
        target = int(rng.integers(1, min(T, S) + 1))
        rows.append(make_row(rng, int(rng.integers(1, S - target + 2)), target))
        if seed % 2 and rng.random() < 0.7:  # a group
            target = int(rng.integers(1, target + 1))
            rows.append(make_row(rng, 1, target).replace(context_ids=rows[-1].context_ids))
    batches = pack(rows, **shape)
    expected = [(tuple(row.context_ids), tuple(row.target_ids), tuple(row.old_logp)) for row in rows]
    alone = sum(len(row.context_ids) + len(row.target_ids) - 1 for row in rows)
    assert sum((batch.segments_RS > 0).sum() for batch in batches) <= alone
    slots = placed(batches)
    assert sorted(read_back(batch, b) for batch, b in slots) == sorted(expected)
    for batch in batches:
        assert batch.tokens_RS.shape == (shape["num_token_rows"], S)
        assert batch.target_BT.shape == (shape["num_slots"], T)
        live = batch.length_B > 0
        assert live.any()  # no batch for nothing
        # Two slots never share positions, and what no slot covers is padding.
        found = [(batch.row_B[b], *read_back(batch, b)) for b in np.flatnonzero(live)]
        prompts = {(r, c): len(c) - 1 for r, c, _, _ in found}
        assert sum(prompts.values()) + sum(len(t) for _, _, t, _ in found) == (batch.segments_RS > 0).sum()
        for array in (batch.target_BT, batch.old_logp_BT, batch.advantage_B, batch.refined_B, batch.nll_B):
            assert not array[~live].any()
        assert not batch.tokens_RS[batch.segments_RS == 0].any()
    by_content = {(tuple(row.context_ids), tuple(row.target_ids), tuple(row.old_logp)): row.advantage for row in rows}
    assert all(batch.advantage_B[b] == by_content[read_back(batch, b)] for batch, b in slots)


def test_rows_that_fill_a_token_row_leave_no_hole():
    rng = np.random.default_rng(0)
    rows = [make_row(rng, n - 3, 4) for n in (10, 14, 5, 19, 24, 12, 12)]  # 96 = 4 * 24 positions
    batches = pack(rows, num_token_rows=4, pack_length=24, num_slots=9, max_length=4)
    assert len(batches) == 1 and (batches[0].segments_RS > 0).all()


def test_a_batch_without_slots_left_is_closed():
    """Room for twelve short rows, slots for five: three batches, the second of which starts with its own token row."""
    rng = np.random.default_rng(0)
    rows = [make_row(rng, 2, 2) for _ in range(12)]
    batches = pack(rows, num_token_rows=2, pack_length=24, num_slots=5, max_length=2)
    assert [int((batch.length_B > 0).sum()) for batch in batches] == [5, 5, 2]


def test_slots_do_not_run_out_where_they_need_not():
    rng = np.random.default_rng(0)
    rows = [make_row(rng, 20, 5) for _ in range(3)] + [make_row(rng, 1, 1) for _ in range(3)]
    assert len(pack(rows, num_token_rows=4, pack_length=24, num_slots=6, max_length=5)) == 1


def test_nothing_gives_no_batch():
    assert pack([], **SHAPE) == []


def test_the_shortest_row_and_rows_at_the_limits_fit():
    rng = np.random.default_rng(0)
    for context, target in ((1, 1), (17, 8), (24, 1)):
        row = make_row(rng, context, target)
        ((batch, b),) = placed(pack([row], **SHAPE))
        assert read_back(batch, b)[:2] == (tuple(row.context_ids), tuple(row.target_ids))


@pytest.mark.parametrize(
    ("context", "target", "message"),
    [
        (18, 8, r"a train row of 18 \+ 8 tokens does not fit a token row of 24 \(packing.length\) and 8 targets"),
        (1, 9, r"a train row of 1 \+ 9 tokens does not fit"),
        (0, 3, r"a train row of 0 \+ 3 tokens has no context or no target"),
        (3, 0, r"a train row of 3 \+ 0 tokens has no context or no target"),
    ],
)
def test_a_row_that_cannot_be_packed_is_named(context, target, message):
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=message):
        pack([make_row(rng, 3, 3), make_row(rng, context, target)], **SHAPE)


# Log-probabilities of packed rows.


@functools.cache
def params():
    return random_params(CONFIG)


@jax.jit
def _logprobs(params, batch):
    return row_logprobs(params, CONFIG, batch, temperature=0.7, remat="none")


def packed_logprobs(batches):
    """{(context, target): log-probabilities} of every packed row."""
    found = {}
    for batch in batches:
        logp_BT = np.asarray(_logprobs(params(), batch)[0])
        for b in np.flatnonzero(batch.length_B):
            found[read_back(batch, b)[:2]] = logp_BT[b, : batch.length_B[b]]
    return found


def identity(row):
    return tuple(row.context_ids), tuple(row.target_ids)


def test_packed_log_probabilities_are_those_of_rows_alone():
    rows = random_rows(1, 14)
    batches = pack(rows, **SHAPE)
    assert max(batch.segments_RS.max() for batch in batches) > 2  # some rows do share a token row
    found = packed_logprobs(batches)
    for row in rows:
        expected = plain_logprobs(params(), CONFIG, row.context_ids, row.target_ids, temperature=0.7)
        np.testing.assert_allclose(found[identity(row)], expected, atol=1e-5)
        ((_, alone),) = packed_logprobs(pack([row], **SHAPE)).items()
        np.testing.assert_allclose(found[identity(row)], alone, atol=1e-5)


def test_log_probabilities_after_a_shared_prompt_are_those_of_rows_alone():
    rng = np.random.default_rng(5)
    rows = random_rows(5, 3) + [make_row(rng, 1, n).replace(context_ids=r.context_ids) for n in (8, 3, 5)
                                for r in random_rows(5, 3)]  # fmt: skip
    batches = pack(rows, **SHAPE)
    assert max((batch.prompts_RS == 1).sum() for batch in batches) > 8  # several rows after one prompt
    found = packed_logprobs(batches)
    assert len(found) == len(rows)
    for row in rows:
        expected = plain_logprobs(params(), CONFIG, row.context_ids, row.target_ids, temperature=0.7)
        np.testing.assert_allclose(found[identity(row)], expected, atol=1e-5)


def test_the_order_of_rows_changes_nothing():
    rows = random_rows(2, 12)
    found = packed_logprobs(pack(rows, **SHAPE))
    shuffled = packed_logprobs(pack([rows[i] for i in np.random.default_rng(0).permutation(12)], **SHAPE))
    assert found.keys() == shuffled.keys()
    for key in found:
        np.testing.assert_allclose(found[key], shuffled[key], atol=1e-5)


def test_neighbours_of_the_same_size_change_nothing():
    """The row keeps its place; the rows before and after it, and in the other token rows, are others."""
    rng = np.random.default_rng(3)
    first, row, last = (make_row(rng, 4, 4) for _ in range(3))
    (batch,) = pack([first, row, last], **SHAPE)
    assert batch.row_B[1] == 0 and batch.start_B[1] == 10  # in the middle of the token row
    before = np.asarray(_logprobs(params(), batch)[0])
    (changed,) = pack([make_row(rng, 4, 4), row, make_row(rng, 4, 4)], **SHAPE)
    after = np.asarray(_logprobs(params(), changed)[0])
    np.testing.assert_array_equal(before[1, :4], after[1, :4])
    assert np.abs(before[[0, 2], :4] - after[[0, 2], :4]).min() > 1e-4


def test_tokens_in_padding_change_nothing():
    batch, *_ = pack(random_rows(4, 9), **SHAPE)
    padding = batch.segments_RS == 0
    noise = np.random.default_rng(0).integers(0, CONFIG.vocab_size, batch.tokens_RS.shape).astype(np.int32)
    noisy = batch.replace(
        tokens_RS=np.where(padding, noise, batch.tokens_RS), positions_RS=np.where(padding, 7, batch.positions_RS)
    )
    live = np.arange(8) < batch.length_B[:, None]
    for before, after in zip(_logprobs(params(), batch), _logprobs(params(), noisy), strict=True):
        np.testing.assert_array_equal(np.asarray(before)[live], np.asarray(after)[live])
        assert np.isfinite(np.asarray(after)).all()


# Pairs, and targets of which some count.


def paired(number, context, chosen, rejected):
    rows = [row_of(context, target) for target in (chosen, rejected)]
    return [row.replace(loss=LossKind.DPO, pair=pair) for row, pair in zip(rows, (number, -number), strict=True)]


def test_a_pair_by_hand():
    """One of its rows would fill the first token row; both lie in the second."""
    rows = [*paired(7, [5], [1], [2]), row_of([4], [8, 9, 8, 9])]
    (batch,) = pack(rows, num_token_rows=2, pack_length=5, num_slots=3, max_length=4, from_rows=True)
    np.testing.assert_array_equal(batch.tokens_RS, [[4, 8, 9, 8, 0], [5, 5, 0, 0, 0]])
    np.testing.assert_array_equal(batch.row_B, [0, 1, 1])
    np.testing.assert_array_equal(batch.pair_B, [0, 1, -1])
    np.testing.assert_array_equal(batch.nll_B, [False] * 3)
    np.testing.assert_array_equal(batch.rco_B, [False] * 3)
    np.testing.assert_array_equal(batch.counted_BT, [[True] * 4, [True] + [False] * 3, [True] + [False] * 3])
    apart = pack([row.replace(pair=0) for row in rows], num_token_rows=2, pack_length=5, num_slots=3, max_length=4)
    np.testing.assert_array_equal(apart[0].row_B, [0, 0, 1])


def test_no_pair_is_parted():
    """Pairs of all sizes, and rows between: the two rows of each lie in one token row, and have a number there."""
    rng, rows = np.random.default_rng(3), random_rows(4, 20, max_context=6)
    for number in range(1, 31):
        context = rng.integers(0, 40, rng.integers(1, 8))
        rows += paired(number, context, *(rng.integers(0, 40, rng.integers(1, 9)) for _ in range(2)))
    order = rng.permutation(len(rows))
    batches = pack([rows[i] for i in order], **SHAPE, num_groups=2, from_rows=True)
    assert len(placed(batches)) == len(rows)
    seen = 0
    for batch in batches:
        for part in range(2):
            here = slice(part * SHAPE["num_slots"], (part + 1) * SHAPE["num_slots"])
            pairs, token_rows = batch.pair_B[here], batch.row_B[here]
            numbers = sorted(set(pairs[pairs > 0]))
            assert numbers == list(range(1, len(numbers) + 1)) and sorted(-pairs[pairs < 0]) == numbers
            for number in numbers:
                assert token_rows[pairs == number] == token_rows[pairs == -number]
            seen += len(numbers)
    assert seen == 30


def test_without_pairs_nothing_is_packed_otherwise():
    rows = random_rows(5, 40)
    for plain, other in zip(pack(rows, **SHAPE), pack(rows, **SHAPE, from_rows=True), strict=True):
        without = other.replace(rco_B=None, pair_B=None, counted_BT=None)
        jax.tree.map(np.testing.assert_array_equal, plain, without)


@pytest.mark.parametrize(
    ("targets", "changes", "message"),
    [
        (([1] * 4, [2] * 4), {}, r"a pair of 3 \+ 4 \+ 4 tokens takes 10 positions and 2 slots, .* row of 9 .*raise"),
        (([1], [2]), {"num_slots": 1}, "with 1 slots .packing.slots.; raise them"),
    ],
)
def test_a_pair_that_fits_no_token_row_is_refused(targets, changes, message):
    shape = dict(num_token_rows=2, pack_length=9, num_slots=4, max_length=4) | changes
    with pytest.raises(UserError, match=message):
        pack(paired(1, [7, 8, 9], *targets), **shape, from_rows=True)


def test_half_a_pair_is_no_pair():
    chosen, rejected = paired(1, [7, 8], [1], [2])
    elsewhere = rejected.replace(context_ids=np.array([7, 9], np.int32))
    for rows in ([chosen], [chosen, elsewhere], [chosen, chosen], [chosen, rejected, rejected]):
        with pytest.raises(ValueError, match="pair 1 needs a chosen and a rejected row after the same context"):
            pack(rows, num_token_rows=1, pack_length=9, num_slots=4, max_length=4, from_rows=True)
