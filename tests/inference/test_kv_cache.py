"""Cached decoding against the full forward pass: prompts in one go, token by token, copied and continued."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EVERYTHING, FAMILIES, plain_logits, random_params

from cgrpo_jax.inference import decoding, kv_cache
from cgrpo_jax.models import transformer
from cgrpo_jax.models.params import param_shapes

QWEN3 = FAMILIES["qwen3"]
LENGTH = 20
forms = pytest.mark.parametrize("split", [False, True], ids=["stacked", "split"])


def random_tokens(config, shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


class Slots:
    """Six slots of one model, driven program by program."""

    def __init__(self, config=EVERYTHING, *, split=True, dtype="float32", fill=0, length=LENGTH):
        self.config, params = config, random_params(config)
        self.params = kv_cache.split_layers(params) if split else params
        cache = kv_cache.empty_cache(config, slots=6, length=length, tensor=1, dtype=dtype, split=split)
        self.cache = jax.tree.map(lambda x: x + jnp.asarray(fill, x.dtype), cache)

    def prefill(self, slot, prompts, start=None, *, number=None, width=9, continued=False, seed=5):
        """Writes prompts, padded with garbage to a width."""
        tokens = random_tokens(self.config, (len(slot), width), seed)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        length = np.array([len(prompt) for prompt in prompts], np.int32)
        start = np.zeros(len(slot), np.int32) if start is None else np.array(start, np.int32)
        number = np.int32(len(slot) if number is None else number)
        self.cache = _prefill(
            self.params, self.config, self.cache, tokens, length, start, np.array(slot, np.int32), number,
            continued=continued,
        )  # fmt: skip

    def share(self, source, target, number=None, width=9):
        number = np.int32(len(source) if number is None else number)
        source, target = np.array(source, np.int32), np.array(target, np.int32)
        self.cache = _share(self.cache, source, target, number, width=width)

    def step(self, token, length, live=(True,) * 6, **keywords):
        """Feeds a token to each slot; returns the logits `[6, V]` that follow."""
        token, length = np.array(token, np.int32), np.array(length, np.int32)
        logits, self.cache = _step(self.params, self.config, self.cache, token, length, np.array(live), **keywords)
        return np.asarray(logits)

    def feed(self, texts, start):
        """Feeds each slot its text from a position on, token by token; returns the logits `[6, T, V]`."""
        start, out = np.array(start), []
        for t in range(min(len(text) - n for text, n in zip(texts, start, strict=True))):
            out.append(self.step([text[n + t] for text, n in zip(texts, start, strict=True)], start + t))
        return np.stack(out, axis=1)

    def of(self, slot):
        """What a slot holds, as `[head_dim, times]` after layers and heads."""

        def take(x, axes):
            x = np.moveaxis(np.asarray(x), axes.index("s"), 0)[slot]
            axes = axes.replace("s", "")
            return np.moveaxis(x, (axes.index("d"), axes.index("t")), (-2, -1))

        return jax.tree.map(take, self.cache, kv_cache.cache_axes(self.cache))


_prefill = jax.jit(decoding.prefill, static_argnames=("config", "continued"))
_share = jax.jit(kv_cache.share, static_argnames="width")


@functools.partial(jax.jit, static_argnames=("config", "blocks"))
def _step(params, config, cache, token, length, live, *, blocks=None):
    hidden, cache = decoding.step(params, config, cache, token, length, live, blocks=blocks)
    return transformer.logits(params, config, hidden), cache


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


@forms
def test_rows_of_padding_and_other_slots_are_not_written(split):
    slots = Slots(split=split, fill=3)
    before = [slots.of(slot) for slot in range(6)]
    slots.prefill([1, 4, 0], random_tokens(EVERYTHING, (3, 9)), number=1)
    slots.share([1, 1, 1], [3, 5, 0], number=1)
    for slot in (0, 2, 4, 5):
        jax.tree.map(np.testing.assert_array_equal, slots.of(slot), before[slot])
    for slot in (1, 3):
        changed = jax.tree.map(lambda a, b: (a != b).any(axis=-2).any(axis=-2), slots.of(slot), before[slot])
        for entry in jax.tree.leaves(changed):
            assert entry[..., :9].all() and not entry[..., 9:].any()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[..., :9], b[..., :9]), slots.of(1), slots.of(3))


@forms
def test_a_token_writes_its_own_position_of_live_slots_and_the_last_of_others(split):
    slots = Slots(split=split, fill=3)
    before, length = [slots.of(slot) for slot in range(6)], [0, 5, 19, 7, 0, 19]
    live = [True, True, True, False, False, False]
    slots.step([1, 2, 3, 4, 5, 6], length, live)
    for slot in range(6):
        for a, b in zip(jax.tree.leaves(slots.of(slot)), jax.tree.leaves(before[slot]), strict=True):
            written = {int(t) for t in np.argwhere(a != b)[:, -1]}
            # What is not live has its last position written, which no prompt reaches that leaves room for a token.
            assert written == {length[slot] if live[slot] else LENGTH - 1}


def test_garbage_is_not_seen():
    """Neither what prompts were padded with nor what a slot held before: bit for bit."""
    texts = [random_tokens(QWEN3, 14, seed=n) for n in range(6)]
    out = []
    for seed, fill in ((5, 0), (6, 9)):
        slots = Slots(QWEN3, fill=fill)
        slots.prefill(range(6), [text[: 3 + i] for i, text in enumerate(texts)], seed=seed)
        out.append(slots.feed(texts, [3 + i for i in range(6)]))
    np.testing.assert_array_equal(*out)


def test_copies_do_not_see_each_other():
    texts = [random_tokens(QWEN3, 14)] * 6
    other = [text.copy() for text in texts]
    other[1][9] = (other[1][9] + 3) % QWEN3.vocab_size
    out = []
    for each in (texts, other):
        slots = Slots(QWEN3)
        slots.prefill([2], [texts[0][:9]])
        slots.share([2] * 5, [0, 1, 3, 4, 5])
        out.append(slots.feed(each, [9] * 6))
    rest = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(out[0][rest], out[1][rest])
    assert np.abs(out[0][1] - out[1][1]).max() > 1e-2
    np.testing.assert_array_equal(out[0][rest], np.stack([out[0][0]] * 5))


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


def test_caches_have_the_dtype_of_what_is_asked_and_the_form_of_the_weights():
    K, head_dim = EVERYTHING.num_kv_heads, EVERYTHING.head_dim
    shape = functools.partial(kv_cache.empty_cache, EVERYTHING, slots=3, length=7, tensor=1)
    stacked, split = shape(dtype="bfloat16", split=False), shape(dtype="bfloat16", split=True)
    assert stacked["k"].shape == stacked["v"].shape == (2, 3, K, 7, head_dim)
    assert [entry["k"].shape for entry in split] == [(3, K, head_dim, 7)] * 2
    assert [entry["v"].shape for entry in split] == [(3, K, 7, head_dim)] * 2
    assert kv_cache.cache_axes(stacked)["k"] == "lsktd" and kv_cache.cache_axes(split)[0]["k"] == "skdt"
    assert stacked["k"].dtype == split[0]["v"].dtype == jnp.bfloat16
    params = kv_cache.split_layers(random_params(EVERYTHING))["layers"]
    assert len(params) == 2
    np.testing.assert_array_equal(params[1]["q"], random_params(EVERYTHING)["layers"]["q"][1])


@pytest.mark.parametrize(
    "heads, kv_heads, tensor, number",
    [(8, 2, 1, 2), (8, 2, 2, 2), (8, 2, 8, 8), (9, 3, 2, 3), (24, 3, 8, 24), (24, 3, 4, 24), (16, 2, 8, 8)],
)
def test_heads_of_all_devices_together(heads, kv_heads, tensor, number):
    """Those of the model where tensor divides them; else each device has one, or one for each of its query heads."""
    config = dataclasses.replace(EVERYTHING, num_heads=heads, num_kv_heads=kv_heads)
    assert kv_cache.num_heads(config, tensor) == number


def test_the_program_of_stacked_weights_does_not_grow_with_depth():
    def size(num_layers):
        config = dataclasses.replace(QWEN3, num_layers=num_layers)
        cache = kv_cache.empty_cache(config, slots=6, length=LENGTH, tensor=1, dtype="float32", split=False)
        number, live = jax.ShapeDtypeStruct((6,), jnp.int32), jax.ShapeDtypeStruct((6,), jnp.bool_)
        traced = jax.make_jaxpr(lambda p, *x: decoding.step(p, config, *x))(
            param_shapes(config), cache, number, number, live
        )
        return str(traced).count(" = ")

    assert size(2) == size(12)


def test_computes_in_the_dtype_of_the_weights():
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), param_shapes(QWEN3))
    cache = kv_cache.empty_cache(QWEN3, slots=6, length=LENGTH, tensor=1, dtype="bfloat16", split=False)
    number, live = jax.ShapeDtypeStruct((6,), jnp.int32), jax.ShapeDtypeStruct((6,), jnp.bool_)
    hidden, cache = jax.eval_shape(lambda p, *x: decoding.step(p, QWEN3, *x), params, cache, number, number, live)
    assert hidden.dtype == cache["k"].dtype == jnp.bfloat16
