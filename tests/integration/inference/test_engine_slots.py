"""What takes longer than a unit test may, of tests/inference/test_engine_slots.py."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from compilations import compilations
from engine_slots_cases import cut, decode, endless
from small_engine import (
    LENGTH,
    MANY,
    PARAMS,
    PROMPTS,
    SPLIT,
    assert_well_formed,
    engine,
    groups_of,
    hold_to_many,
    responses,
    run,
    sample,
    texts,
)
from tiny import EVERYTHING, FAMILIES, plain_logprobs, random_params

from cgrpo_jax import sharding
from cgrpo_jax.inference import kv_cache, slots
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import RowIndex

# For what depends on lengths alone: compiled in no time.
SMALL = dataclasses.replace(FAMILIES["smollm2"], num_layers=1, vocab_size=16, max_context=64)
SMALL_PARAMS = kv_cache.split_layers(random_params(SMALL))


def test_rows_end_at_the_first_end_of_turn_token_or_at_the_limit():
    rows = sum(sample(), [])
    for row in rows:
        assert_well_formed(row)
    assert {row.truncated for row in rows} == {False, True}
    # An end-of-turn token is only where a row is cut: with none, the same text goes on.
    for ended, whole in zip(rows, sum(endless(), []), strict=True):
        assert whole.truncated and len(whole.token_ids) == LENGTH
        np.testing.assert_array_equal(ended.token_ids, whole.token_ids[: len(ended.token_ids)])


@pytest.mark.parametrize("num_slots", [12, 5])
def test_stop_strings_end_a_text_wherever_they_end(num_slots):
    """Twelve slots tick for four tokens each: strings end within one, with one, and begin in the one before.

    In five slots, texts begin in the place of those that a string has ended.
    """
    whole = endless()
    rows = sum(whole, [])
    stop = [
        decode(rows[1].token_ids[1:3]),  # within the first tick
        decode(rows[4].token_ids[1:4]),  # it ends the first tick
        decode(rows[6].token_ids[2:6]),  # over two ticks
        decode(rows[8].token_ids[1:10]),  # over three, to the last token that the text may have
        decode(rows[10].token_ids[:1]),  # the first token
    ]
    expected = [cut(row.token_ids, stop) for row in rows]
    for row, kept in {1: 3, 4: 4, 6: 6, 8: 10, 10: 1}.items():
        assert expected[row] == (kept, True)
    assert (LENGTH, False) in expected
    made = engine(eos_ids=(), num_slots=num_slots, stop=stop, decode=decode)
    stopped = sum(sample(make=made), [])
    for row, before, (kept, by_string) in zip(stopped, rows, expected, strict=True):
        np.testing.assert_array_equal(row.token_ids, before.token_ids[:kept])
        np.testing.assert_allclose(row.logp, before.logp[:kept], atol=1e-4)
        assert row.truncated is not by_string
    assert made.take_stats().tokens == sum(kept for kept, _ in expected)  # not what a tick sampled after a string


@pytest.mark.parametrize("num_slots, groups", [(3, 1), (16, 1), (40, 1), (20, 2)])
def test_slots_are_busy_while_requests_wait(num_slots, groups, monkeypatch):
    """Lengths of 1 to 40, the mean far below the longest: a batch that waits for its longest would be a third full."""
    steps = []

    def spy(params, state, orders, *rest, **keywords):
        before = np.where(orders.begin_S, 0, np.asarray(state.sampled_S))
        state, report = tick(params, state, orders, *rest, **keywords)
        took = np.asarray(report.sampled_S) - before
        steps.append([int((took <= i).sum()) for i in range(int(report.steps))])
        waited.append(made.waiting > 0)
        return state, report

    tick, waited = slots.tick, []
    monkeypatch.setattr("cgrpo_jax.inference.slots.tick", spy)
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(1.8, 0.9, 400)), 1, 40).astype(int)
    mesh = sharding.make_mesh(fsdp=groups, devices=jax.devices()[:groups])
    made = engine(config=SMALL, eos_ids=(), num_slots=num_slots, length=44, longest_prompt=4, chunk=16, mesh=mesh)
    params = jax.device_put(SMALL_PARAMS, jax.sharding.NamedSharding(mesh, sharding.WHOLE))
    requests = [Request(rng.integers(0, 16, 4), [RowIndex(question=q)], int(n)) for q, n in enumerate(lengths)]
    made.begin(params, seed=0, iteration=0)
    out = run(made, requests)
    made.end()
    assert [len(out[one, 0].token_ids) for one in requests] == lengths.tolist()
    stats = made.take_stats()
    assert stats.tokens == lengths.sum() and stats.slot_steps_waiting > 0.5 * stats.slot_steps
    assert stats.occupancy >= 0.9
    idle = [n for tick, waits in zip(steps, waited, strict=True) if waits for n in tick]
    assert (
        max(idle) < max(1, -(-num_slots * groups // 16)) and len(idle) * num_slots * groups == stats.slot_steps_waiting
    )


def test_int8_caches_give_nearly_the_same_log_probabilities():
    """An entry is off by at most 1/254 of the largest of its head: about 1 % of scores and sums in two layers.

    So logits, whose deviation is about 2, and log-probabilities are off by a few hundredths.
    """
    groups = sample(MANY, make=engine(cache_dtype="int8"))
    errors = []
    for prompt, group in zip(MANY, groups, strict=True):
        for row in group:
            assert_well_formed(row)
            errors.append(row.logp - plain_logprobs(PARAMS, EVERYTHING, prompt, row.token_ids))
    errors = np.abs(np.concatenate(errors))
    assert 1e-5 < errors.mean() < 0.02 and errors.max() < 0.2


def test_slots_that_are_read_in_blocks_give_the_same(monkeypatch):
    """Blocks of 8 of 40 positions; texts end in the first to the fifth, and reach over windows of 5."""
    monkeypatch.setattr(kv_cache, "READ_SPLIT", 8)
    hold_to_many(sample(MANY, make=engine(length=35)))
    assert kv_cache.cache_length(35, split=True) == 40 and kv_cache.cache_length(8, split=True) == 8


@pytest.mark.parametrize("groups", [1, 2])
def test_nothing_is_compiled_but_the_programs_of_each_width(groups):
    """Neither the number of requests nor their lengths, limits or what they share counts; nor that a run is the second.

    Of each width: several prompts, one, what continues a copy, and a copy; and one program that decodes, one that
    makes empty slots.
    """
    rng, mesh = np.random.default_rng(0), sharding.make_mesh(fsdp=groups, devices=jax.devices()[:groups])
    params = jax.device_put(SMALL_PARAMS, jax.sharding.NamedSharding(mesh, sharding.WHOLE))
    made = engine(config=SMALL, num_slots=7, prompt_bucket=6, longest_prompt=12, mesh=mesh)
    assert len(made.widths) == 2
    with compilations() as compiled:
        for i in range(90):
            number = rng.integers(1, 12)
            prompts = [rng.integers(0, 2, rng.integers(1, 13)) for _ in range(number)]
            indices = responses(number, int(rng.integers(1, 9)))
            sample(prompts, indices, make=made, params=params, seed=i, max_length=int(rng.integers(1, 20)))
            if i == 70:
                enough = len(compiled)
    assert len(compiled) == enough <= 4 * 2 + 2


def test_each_request_is_drawn_in_its_own_way():
    """Of one engine at work: each text, and its log-probabilities, are what they are where all are drawn so."""
    ways = (Sampling(), Sampling(0.0), Sampling(0.5, top_p=0.8), Sampling(2.0, top_k=3))
    requests = [
        Request(p, own, LENGTH, sampling)
        for p, own, sampling in zip(PROMPTS, responses(4, 3), (None, *ways[1:]), strict=True)
    ]
    made = engine()
    made.begin(SPLIT, seed=17, iteration=5, others=ways[1:])
    groups = groups_of(requests, run(made, requests))
    made.end()
    for q, (prompt, own, way) in enumerate(zip(PROMPTS, responses(4, 3), ways, strict=True)):
        (alone,) = sample([prompt], [own], **dataclasses.asdict(way))
        assert texts([groups[q]]) == texts([alone])
        for row, other in zip(groups[q], alone, strict=True):
            np.testing.assert_allclose(row.logp, other.logp, atol=1e-4)


@pytest.mark.parametrize("pages", [None, Pages(12, 4, tokens=16, prompts=3, kernel=False)], ids=["slots", "pages"])
def test_nothing_is_compiled_after_the_engine_has_compiled_all(pages):
    """Every program that this workload and any other can come to need."""
    rng, said, hot = np.random.default_rng(1), [], Sampling(temperature=2.0)
    made = engine(config=SMALL, num_slots=6, prompt_bucket=3, longest_prompt=12, pages=pages)
    made.compile(SMALL_PARAMS, [Sampling(), hot], on_program=lambda *program: said.append(program))
    number = 2 * (2 + 1) if pages else 3 * 2 + 2 + 3 + 2  # with pages: 16 and 4 tokens of prompts in a step, or none
    assert len(made.widths) == 3 and len(said) == number and not made.busy
    assert [program[:2] for program in said] == [(i, len(said)) for i in range(len(said))]
    assert said[0][2].startswith("decoding beside 16 tokens of prompts" if pages else "prefill of 1 x 3 tokens")
    assert said[-1][2].startswith("decoding, ")
    stats = made.take_stats()
    assert not stats.tokens and not stats.prefills and not stats.slot_steps
    with compilations() as compiled:
        for i in range(40):
            number = rng.integers(1, 12)
            prompts = [rng.integers(0, 2, rng.integers(1, 13)) for _ in range(number)]
            keywords = dict(make=made, params=SMALL_PARAMS, seed=i, temperature=1.0 + i % 2)
            sample(prompts, responses(number, int(rng.integers(1, 9))), **keywords)
    assert not compiled


def test_the_end_frees_caches_and_weights():
    def held():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    made = engine()
    before, params = held(), jax.tree.map(jax.numpy.copy, SPLIT)
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    made.begin(params, seed=17, iteration=5)
    made.add(Request(PROMPTS[2], responses(1, 9)[0], LENGTH))
    made.step()
    leaf = weakref.ref(made._running.slots.cache[0]["k"])
    assert held() >= before + weights + leaf().nbytes and made.live and made.waiting
    made.end()
    del params
    assert leaf() is None and held() == before
    assert not made.busy and not made.live and not made.waiting
