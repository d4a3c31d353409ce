"""What happens in the engine's slots: where texts stop, how full the slots are, what they hold, compile and free."""

import dataclasses

import jax
import numpy as np
import pytest
import small_engine
from engine_slots_cases import cut, decode, endless
from small_engine import (
    EOS,
    LENGTH,
    MANY,
    PROMPTS,
    SPLIT,
    assert_well_formed,
    engine,
    groups_of,
    hold_to_many,
    reference,
    responses,
    run,
    sample,
    texts,
)
from tiny import EVERYTHING

from cgrpo_jax import sharding
from cgrpo_jax.inference import slots
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.runtime.program import Program

compiled = small_engine.compiled  # the fixture

# --- stops --------------------------------------------------------------------------------------------------------


def test_a_single_token():
    """An end-of-turn token in the last place, here the only one, is no truncation."""
    indices = responses(4, 20)
    short = sum(sample(PROMPTS, indices, max_length=1), [])
    for row, long in zip(short, sum(texts(sample(PROMPTS, indices)), []), strict=True):
        assert_well_formed(row, max_length=1)
        assert tuple(row.token_ids) == long[:1]
    assert {row.truncated for row in short} == {False, True}


def test_an_empty_response_is_its_end_of_turn_token_alone():
    rows = sum(sample(PROMPTS, responses(4, 20)), [])
    empty = [row for row in rows if len(row.token_ids) == 1]
    assert empty and all(row.token_ids[0] in EOS and not row.truncated for row in empty)


def test_each_request_has_a_limit_of_its_own():
    made, limits = engine(eos_ids=()), (1, 10, 4, 7)
    requests = [Request(p, own, n) for p, own, n in zip(PROMPTS, responses(4, 3), limits, strict=True)]
    made.begin(SPLIT, seed=17, iteration=5)
    groups = groups_of(requests, run(made, requests))
    made.end()
    for group, whole, limit in zip(groups, endless(), limits, strict=True):
        assert all(row.truncated and len(row.logp) == limit for row in group)
        assert [tuple(row.token_ids) for row in group] == [tuple(row.token_ids[:limit]) for row in whole]


def test_a_slot_is_free_for_others_once_a_string_has_ended_its_text():
    """Also where nothing waits when it ends, and a request comes later."""
    rows = sum(endless(), [])
    made = engine(eos_ids=(), stop=[decode(rows[0].token_ids[:1])], decode=decode)
    one, two = (Request(PROMPTS[q], responses(4, 3)[q], LENGTH) for q in (0, 3))
    made.begin(SPLIT, seed=17, iteration=5)
    first = run(made, [one])
    assert len(first[one, 0].token_ids) == 1 and made.live == 0
    second = run(made, [two])
    made.end()
    for number in range(3):
        kept, by_string = cut(rows[9 + number].token_ids, made.stop)
        np.testing.assert_array_equal(second[two, number].token_ids, rows[9 + number].token_ids[:kept])


def test_a_text_that_a_string_has_ended_goes_on_no_further():
    """Its tick of four tokens ends before the host sees the string. In the next tick it is not there."""
    (row,) = endless([PROMPTS[2]], indices=responses(1, 1))[0]
    made = engine(eos_ids=(), stop=[decode(row.token_ids[:1])], decode=decode)
    made.begin(SPLIT, seed=17, iteration=5)
    run(made, [Request(PROMPTS[2], responses(1, 1)[0], LENGTH)])
    assert made.take_stats().slot_steps == 4 * 5
    run(made, [Request(PROMPTS[3], responses(1, 1)[0], 1)])
    assert made.take_stats().slot_steps == 1 * 5
    made.end()


# --- samplings of their own ---------------------------------------------------------------------------------------


def test_a_request_is_drawn_in_a_way_that_the_engine_has_begun_with():
    made = engine()
    made.begin(SPLIT, seed=17, iteration=5)
    with pytest.raises(ValueError, match=r"drawn with Sampling\(temperature=0.5.*begin\(\) was not given"):
        made.add(Request(PROMPTS[0], responses(1, 1)[0], 1, Sampling(0.5)))
    made.end()


# --- how full the slots are ---------------------------------------------------------------------------------------


def test_whoever_asked_hears_at_once_where_nothing_waits():
    """It may ask for more: a critique of the response that has just ended."""
    made = engine(eos_ids=())
    made.begin(SPLIT, seed=17, iteration=5)
    for limit in (1, 3, 10):
        made.add(Request(PROMPTS[1], responses(1, 1)[0], limit))
    ended = []
    while made.busy:
        ended.append([one.max_length for one, _, _ in made.step()])
    made.end()
    assert ended == [[1], [3], [], [10]]  # tokens 4 to 7 end none


# --- what slots hold ----------------------------------------------------------------------------------------------


def cache_bytes(**changes):
    config = dataclasses.replace(EVERYTHING, head_dim=64)
    settings = slots.EngineSettings(config, sharding.one_device(), EOS, 8, 40, 4, "float32", True)
    shapes = slots.slots_shapes(dataclasses.replace(settings, **changes)).cache
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_what_a_cache_takes():
    """2 layers x keys and values x 2 heads x 8 slots x 40 positions x 64 numbers; int8 has a float32 for each 64."""
    assert cache_bytes() == cache_bytes(split=False) == 2 * 2 * 2 * 8 * 40 * 64 * 4
    assert cache_bytes(cache_dtype="bfloat16") * 2 == cache_bytes()
    assert cache_bytes(cache_dtype="int8") * 4 == cache_bytes() * (1 + 4 / 64)
    assert cache_bytes(num_slots=16) == 2 * cache_bytes()


# --- programs, memory and mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["tick", "prefill"])
def test_an_error_in_the_middle_leaves_the_engine_usable(program, monkeypatch):
    calls, call = [], Program.__call__

    def fail(self, *args):
        calls.extend([1] * (self.function is getattr(slots, program)))
        if len(calls) == 3:
            raise MemoryError("no room")
        return call(self, *args)

    made = engine()
    with monkeypatch.context() as patch:
        patch.setattr(Program, "__call__", fail)
        with pytest.raises(MemoryError, match="no room"):
            sample(MANY, make=made)
    hold_to_many(sample(MANY, make=made))


def test_a_run_must_end_before_another_begins():
    made = engine()
    made.begin(SPLIT, seed=17, iteration=5)
    with pytest.raises(ValueError, match="the engine is at work; call end"):
        made.begin(SPLIT, seed=17, iteration=5)
    with pytest.raises(ValueError, match="the engine is at work; call end"):
        sample(make=made)
    request = Request(PROMPTS[1], responses(2, 3)[1], LENGTH)
    reference().hold([PROMPTS[1]], [request.indices], groups_of([request], run(made, [request])))
    made.end()
    with pytest.raises(ValueError, match="not at work; call begin"):
        made.add(request)


def test_rows_are_copies_that_do_not_keep_a_batch_alive():
    row = sample()[0][0]
    assert row.token_ids.base is None and row.logp.base is None
    assert not isinstance(row.token_ids, jax.Array)
