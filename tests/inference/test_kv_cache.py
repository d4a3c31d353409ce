"""Cached decoding against the full forward pass: prompts in one go, token by token, copied and continued."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kv_cache_cases import LENGTH, QWEN3, Slots, forms, random_tokens
from tiny import EVERYTHING, random_params

from cgrpo_jax.inference import decoding, kv_cache
from cgrpo_jax.models.params import param_shapes


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
