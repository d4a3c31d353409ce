"""What takes longer than a unit test may, of tests/inference/test_kv_cache.py."""

import functools

import jax
import numpy as np
import pytest
from kv_cache_cases import QWEN3, Slots, _prefill, _step, forms, random_tokens
from tiny import EVERYTHING, FAMILIES, plain_logits, random_params

from cgrpo_jax.inference import decoding, kv_cache


def expected(config, texts, start):
    """What whole forward passes say after each token that `feed` feeds."""
    count = min(len(text) - n for text, n in zip(texts, start, strict=True))
    whole = [plain_logits(random_params(config), config, text) for text in texts]
    return np.stack([logits[n : n + count] for logits, n in zip(whole, start, strict=True)])


def assert_close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), a, b)


@pytest.mark.parametrize("family, split", [*((family, False) for family in FAMILIES), ("everything", True)])
def test_prompts_and_then_tokens_equal_the_full_forward_pass(family, split):
    """Prompts of 0 to 9 tokens in one batch, then seven tokens each, beyond windows of 4 and 5.

    Slots 1 and 2 begin with what slot 0 was given, and go on with more: copied whole, and copied and continued.
    """
    config = FAMILIES.get(family, EVERYTHING)
    texts = [random_tokens(config, 7 + n, seed=n) for n in (9, 9, 9, 6, 1, 0)]
    texts[1][:9], texts[2][:4] = texts[0][:9], texts[0][:4]
    start = [9, 9, 9, 6, 1, 0]
    slots = Slots(config, split=split, fill=3)  # what a slot held before is not seen
    slots.prefill([0, 3, 4], [texts[0][:9], texts[3][:6], texts[4][:1]])
    slots.share([0, 0], [1, 2])
    slots.prefill([2], [texts[2][4:9]], start=[4], width=6, continued=True)
    logits = expected(config, texts, start)
    assert np.std(logits) > 0.5  # logits that hardly differ would agree whatever is wrong
    assert_close(slots.feed(texts, start), logits)


@forms
def test_a_continued_prompt_is_what_a_fresh_one_is(split):
    prompt = random_tokens(EVERYTHING, 15)
    fresh, continued = Slots(split=split), Slots(split=split)
    fresh.prefill([4], [prompt], width=16)
    continued.prefill([4], [prompt[:6]])
    continued.prefill([4], [prompt[6:]], start=[6], width=10, continued=True)
    assert_close(*(jax.tree.map(lambda x: x[..., :15], slots.of(4)) for slots in (fresh, continued)))


def test_queries_of_a_continued_prompt_in_blocks_give_the_same(monkeypatch):
    prompt = random_tokens(EVERYTHING, 16)
    caches = []
    for block in (256, 3):
        monkeypatch.setattr(decoding, "_QUERIES", block)
        _prefill.clear_cache()
        slots = Slots()
        slots.prefill([4], [prompt[:6]])
        slots.prefill([4], [prompt[6:]], start=[6], width=10, continued=True)
        caches.append(slots.cache)
    _prefill.clear_cache()
    assert_close(*caches)


def test_garbage_is_not_seen():
    """Neither what prompts were padded with nor what a slot held before: bit for bit."""
    texts = [random_tokens(QWEN3, 14, seed=n) for n in range(6)]
    out = []
    for seed, fill in ((5, 0), (6, 9)):
        slots = Slots(QWEN3, fill=fill)
        slots.prefill(range(6), [text[: 3 + i] for i, text in enumerate(texts)], seed=seed)
        out.append(slots.feed(texts, [3 + i for i in range(6)]))
    np.testing.assert_array_equal(*out)


@forms
def test_slots_read_in_blocks_give_the_same(split, monkeypatch):
    """Blocks of 8 of 24 positions, as many as the longest live text reaches into, or as many as are asked for."""
    texts = [random_tokens(EVERYTHING, n + 9, seed=n) for n in (9, 1, 3, 5, 7, 9)]
    start = [9, 1, 3, 5, 7, 9]
    logits = expected(EVERYTHING, texts, start)
    monkeypatch.setattr(kv_cache, "READ_SPLIT" if split else "READ_STACKED", 8)
    assert [kv_cache.cache_length(n, split=split) for n in (5, 8, 9, 20)] == [5, 8, 16, 24]
    slots = Slots(split=split)
    slots.prefill(range(6), [text[:n] for text, n in zip(texts, start, strict=True)])
    _step.clear_cache()
    assert_close(slots.feed(texts, start), logits)
    last, at = [text[-1] for text in texts], [len(text) - 1 for text in texts]
    assert_close(slots.step(last, at, blocks=3), logits[:, -1])
    assert np.abs(slots.step(last, at, blocks=1) - logits[:, -1])[0].max() > 1e-2
    _step.clear_cache()


def test_int8_entries_are_off_by_half_a_step_at_most():
    """And the step is 1/127 of the largest number of a position's head."""
    prompts = [random_tokens(EVERYTHING, 9, seed=n) for n in range(6)]
    exact, rounded = Slots(), Slots(dtype="int8")
    for slots in (exact, rounded):
        slots.prefill(range(6), prompts)
    first = {"k": np.s_[..., :9], "v": np.s_[..., :9, :]}
    # The first layer's inputs are the same in both, so only rounding is between them.
    a, b = jax.tree.map(np.asarray, (exact.cache[0], rounded.cache[0]))
    for name, axis in (("k", -2), ("v", -1)):
        at = first[name]
        largest = np.abs(a[name][at]).max(axis=axis, keepdims=True)
        error = np.abs(b[name][at] * b[f"{name}_scale"][at] - a[name][at])
        assert b[name].dtype == np.int8 and (np.abs(b[name][at]).max(axis=axis) == 127).all()
        assert (error <= 1.01 * largest / 127 / 2).all() and error.max() > 0
