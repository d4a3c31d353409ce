"""Attention over pages in plain JAX against JAX's own definition; what its kernel copies, counted page by page."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention
from tiny import EVERYTHING

from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.inference.paged.ragged_attention import Form, Sequences
from cgrpo_jax.models import attention
from cgrpo_jax.models.kernels.cost import KernelCall

T, EACH, PAGES, HEADS, KV_HEADS, HEAD = 8, 8, 40, 4, 2, 8
WHOLE = dataclasses.replace(
    EVERYTHING, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD, attention_softcap=0.0, window=11
)


def case(seed, *, sequences=5, queries_at_most=40):
    """Random sequences of one query, or of several, with pages that some of them share."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T * EACH + 1, sequences).astype(np.int32)
    queries = np.where(rng.random(sequences) < 0.5, 1, 1 + (rng.random(sequences) * length).astype(int))
    queries = np.minimum(queries, [1, *np.minimum(length[1:], (queries_at_most - 1) // (sequences - 1))])
    table = rng.integers(0, PAGES, (sequences, EACH)).astype(np.int32)
    table[1, :2] = table[0, :2]
    start = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
    q = rng.normal(size=(queries_at_most, HEADS, HEAD)).astype(np.float32)
    pages = rng.normal(size=(PAGES, T, 2 * KV_HEADS, HEAD)).astype(np.float32)
    return q, pages, Sequences(length, start, table, np.array([sequences], np.int32))


def by_definition(config, q, pages, sequences, *, window=None):
    """Each query by itself, in float64."""
    out = []
    for m in range(int(sequences.number_1[0])):
        start, end, length = int(sequences.start_M1[m]), int(sequences.start_M1[m + 1]), int(sequences.length_M[m])
        held = np.asarray(pages, np.float64)[sequences.table_MP[m]].reshape(-1, KV_HEADS, 2, HEAD)
        for n in range(start, end):
            at = length - end + n
            seen = np.arange(0 if window is None else max(0, at - window + 1), at + 1)
            k, v = (np.repeat(held[seen, :, i], HEADS // KV_HEADS, axis=1) for i in range(2))
            score = np.einsum("hd,thd->ht", np.asarray(q[n], np.float64), k) * attention.query_scale(config)
            cap = config.attention_softcap
            score = cap * np.tanh(score / cap) if cap else score
            weight = np.exp(score - score.max(-1, keepdims=True))
            out.append(np.einsum("ht,thd->hd", weight / weight.sum(-1, keepdims=True), v))
    return np.stack(out)


def by_jax(config, q, pages, sequences, *, window=None):
    """JAX's own definition of its kernel."""
    return ref_ragged_paged_attention(
        jnp.asarray(q),
        jnp.asarray(pages),
        *map(jnp.asarray, (sequences.length_M, sequences.table_MP, sequences.start_M1, sequences.number_1)),
        sm_scale=attention.query_scale(config),
        sliding_window=window,
        soft_cap=config.attention_softcap or None,
    )


def attended(config, q, pages, sequences, *, local=None, pages_at_once=2):
    return _attend(config, q, pages, sequences, local, form=Form(False, pages_at_once, 8))


_attend = jax.jit(ragged_attention.attend, static_argnames=("config", "form"))


@pytest.mark.parametrize("softcap, pages_at_once", [(0.0, 1), (0.0, 3), (3.0, 2)])
def test_plain_jax_is_the_definition(softcap, pages_at_once):
    config = dataclasses.replace(WHOLE, attention_softcap=softcap)
    for seed in range(3):
        q, pages, sequences = case(seed)
        end = int(sequences.start_M1[-1])
        for local, window in ((None, None), (jnp.bool_(True), config.window), (jnp.bool_(False), None)):
            out = attended(config, q, pages, sequences, local=local, pages_at_once=pages_at_once)
            np.testing.assert_allclose(out[:end], by_definition(config, q, pages, sequences, window=window), atol=1e-5)


def test_jax_defines_its_kernel_so():
    config = dataclasses.replace(WHOLE, attention_softcap=3.0)
    q, pages, sequences = case(2, sequences=2)
    expected = by_definition(config, q, pages, sequences, window=config.window)
    found = by_jax(config, q, pages, sequences, window=config.window)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_is_within_its_rounding_of_float32():
    q, pages, sequences = case(3)
    end, half = int(sequences.start_M1[-1]), [x.astype(jnp.bfloat16) for x in (q, pages)]
    expected = by_definition(WHOLE, *(np.asarray(x, np.float32) for x in half), sequences)
    out = attended(WHOLE, *half, sequences)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out[:end], np.float32), expected, atol=2**-6)


def test_sequences_beyond_the_number_are_not_looked_at():
    q, pages, sequences = case(1)
    fewer = sequences.replace(number_1=np.array([3], np.int32), length_M=np.array([*sequences.length_M[:3], 10**6, -5]))
    end = int(sequences.start_M1[3])
    np.testing.assert_array_equal(attended(WHOLE, q, pages, fewer)[:end], attended(WHOLE, q, pages, sequences)[:end])


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_what_no_window_reaches_is_left_out_and_nothing_changes(seed):
    q, pages, sequences = case(seed)
    near = ragged_attention.within_window(sequences, page_size=T, window=WHOLE.window)
    first = (sequences.length_M - np.asarray(near.length_M)) // T
    queries = np.diff(sequences.start_M1)
    np.testing.assert_array_equal(first, np.maximum(0, sequences.length_M - queries - WHOLE.window + 1) // T)
    assert first.any()
    expected = by_definition(WHOLE, q, pages, sequences, window=WHOLE.window)
    np.testing.assert_allclose(by_definition(WHOLE, q, pages, near, window=WHOLE.window), expected, atol=1e-5)


# --- what the kernel copies ---------------------------------------------------------------------------------------


def copied(length, queries=None, *, size=64, each=256, at_once=8):
    queries = np.ones_like(length) if queries is None else queries
    form = ragged_attention.form(size, each, kernel=True, queries=at_once)
    found = ragged_attention.copies(
        length, queries, num_queries=int(sum(queries)) + 5, pages_each=each, page_size=size, form=form
    )
    return list(found)


@pytest.mark.parametrize("size", [16, 64, 128, 256, 512])
@pytest.mark.parametrize("texts", [1, 16, 67])
def test_positions_fetched_are_those_of_the_pages_copied(size, texts):
    length = np.random.default_rng(texts).integers(1, 8000, texts)
    said = ragged_attention.positions_fetched(length, page_size=size).sum()
    pages = copied(length, size=size, each=-(-8192 // size))
    assert said == len(pages) * size
    wrong = ragged_attention.positions_fetched(length + max(size, ragged_attention.FETCHED), page_size=size).sum()
    assert abs(wrong / (len(pages) * size) - 1) > 0.02  # a block too many is seen


def test_every_page_of_a_text_is_copied_once_where_it_has_one_query():
    length = np.random.default_rng(0).integers(1, 3000, 40)
    pages = copied(length)
    for text, tokens in enumerate(length):
        own = [page for one, page in pages if one == text]
        assert own[: -(-tokens // 64)] == list(range(-(-tokens // 64))) and set(own[-(-tokens // 64) :]) <= {0}


def test_a_prompt_is_read_again_by_each_block_of_queries():
    """300 queries of a text of 1000 tokens, after 5 texts with one: blocks of 64 at 0, ..., 256; and one more text."""
    length, queries = [10, 10, 10, 10, 10, 1000, 10], [1, 1, 1, 1, 1, 300, 1]
    pages = copied(np.array(length), np.array(queries), at_once=64)
    assert sum(text == 5 for text, _ in pages) == 5 * 4 * 4
    assert [text for text, _ in pages if text != 5] == [text for text in (0, 1, 2, 3, 4, 6) for _ in range(4)]


def test_what_the_kernel_lacks_is_said():
    assert ragged_attention.lacks(WHOLE, 1, "float32") is None
    assert "int8" in (ragged_attention.lacks(WHOLE, 1, "int8") or "")
    three = dataclasses.replace(WHOLE, num_heads=6, num_kv_heads=3)
    assert "no 3 key/value heads a device in bfloat16" in (ragged_attention.lacks(three, 1, "bfloat16") or "")
    assert ragged_attention.lacks(three, 3, "bfloat16") is None  # one each
    assert ragged_attention.lacks(three, 4, "bfloat16") is not None  # which does not divide the heads
    assert ragged_attention.head_size(64, kernel=True) == 128 and ragged_attention.head_size(64, kernel=False) == 64


def test_the_kernel_moves_its_queries_and_results_and_not_the_pool():
    q, pool, numbers = ("bf16", (8, 4, 128)), ("bf16", (1000, 64, 4, 128)), ("s32", (8,))
    call = KernelCall("ragged_paged_attention_kernel.3", (numbers, q, pool), (q,), 1)
    assert ragged_attention.flops_and_bytes(call) == (0.0, 2 * 8 * 4 * 128 * 2 + 32)
    with pytest.raises(ValueError, match="splash is no ragged paged attention"):
        ragged_attention.flops_and_bytes(KernelCall("splash", (q,), (q,), 1))
