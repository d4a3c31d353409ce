"""The next call is dispatched before the last is read: the same texts, whatever ends them, and no device waits."""

import numpy as np
import pytest
import small_engine
from engine_slots_cases import cut, decode, endless
from small_engine import LENGTH, MANY, PROMPTS, SPLIT, engine, groups_of, hold_to_many, responses, run, sample, texts

from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.sampling import Sampling

compiled = small_engine.compiled  # the fixture

ENOUGH, FEW = Pages(40, 8, tokens=16, prompts=3, kernel=False), Pages(7, 8, tokens=16, prompts=3, kernel=False)
CACHES = pytest.mark.parametrize("pages", [None, ENOUGH, FEW], ids=["slots", "enough pages", "few pages"])


class Leaf:
    """An array of a report that says when it is read."""

    def __init__(self, array, on_read):
        self.array, self.on_read = array, on_read

    def __array__(self, dtype=None, copy=None):
        self.on_read()
        return np.asarray(self.array)


class Watched:
    """What an engine's slots are, with a record of which call is dispatched and read when."""

    def __init__(self, running, events):
        self.running, self.events, self.number = running, events, 0
        self.write = getattr(running, "write", None)

    def tick(self, *given):
        return self._seen(self.running.tick(*given))

    def run(self, *given):
        return self._seen(self.running.run(*given))

    def _seen(self, report):
        number = self.number
        self.number += 1
        self.events.append(("dispatched", number))
        return report.replace(steps=Leaf(report.steps, lambda: self.events.append(("read", number))))


def watched(made):
    """Returns the events of an engine to come."""
    events, make = [], made.make_running
    made.make_running = lambda *given, **keywords: Watched(make(*given, **keywords), events)
    return events


@CACHES
def test_a_call_is_dispatched_before_the_last_is_read(pages):
    """Two are in flight, no more. The last may find no text that goes on; then nobody reads it."""
    made = engine(eos_ids=(), num_slots=5, pages=pages, overlap=True)
    events = watched(made)
    sample(PROMPTS[:1], responses(1, 3), make=made)
    at = {event: i for i, event in enumerate(events)}
    dispatched, read = ([n for what, n in events if what == which] for which in ("dispatched", "read"))
    assert dispatched == list(range(len(dispatched))) and read == list(range(len(read)))
    assert 3 <= len(read) and len(dispatched) - len(read) in (0, 1)
    for n in read:
        assert n + 1 == len(dispatched) or at["dispatched", n + 1] < at["read", n]
        assert n + 2 >= len(dispatched) or at["read", n] < at["dispatched", n + 2]


def test_by_default_a_call_is_read_before_the_next():
    made = engine(eos_ids=())
    events = watched(made)
    sample(PROMPTS[:1], responses(1, 3), make=made)
    assert events == [(what, n) for n in range(len(events) // 2) for what in ("dispatched", "read")]


@CACHES
@pytest.mark.parametrize("num_slots", [5, 9])
def test_texts_are_the_same(pages, num_slots):
    made = engine(pages=pages, num_slots=num_slots, overlap=True)
    hold_to_many(sample(MANY, make=made))
    stats = made.take_stats()
    assert stats.tokens == sum(len(row.token_ids) for group in small_engine.many() for row in group)
    assert (stats.set_back > 0) == (pages is FEW)
    assert stats.tokens <= stats.slot_steps


@CACHES
def test_what_is_sampled_after_a_stop_string_is_dropped(pages):
    """The devices hear of it a call later; the slot is then another text's."""
    whole = sum(endless(), [])
    stop = [decode(whole[row].token_ids[part]) for row, part in ((1, slice(1, 3)), (4, slice(1, 4)), (10, slice(1)))]
    expected = [cut(row.token_ids, stop) for row in whole]
    assert len({kept for kept, _ in expected}) > 2
    made = engine(eos_ids=(), stop=stop, decode=decode, pages=pages, overlap=True)
    for row, before, (kept, by_string) in zip(sum(sample(make=made), []), whole, expected, strict=True):
        np.testing.assert_array_equal(row.token_ids, before.token_ids[:kept])
        np.testing.assert_allclose(row.logp, before.logp[:kept], atol=1e-4)
        assert row.truncated is not by_string
    assert made.take_stats().tokens == sum(kept for kept, _ in expected)


def test_a_call_that_is_still_in_flight_says_nothing_of_texts_that_come_later():
    """A string ends the only text, with which the devices go on in the next call; then another comes into its slot."""
    rows = sum(endless(), [])
    made = engine(eos_ids=(), num_slots=5, stop=[decode(rows[0].token_ids[:1])], decode=decode, overlap=True)
    one, two = (Request(PROMPTS[q], responses(4, 3)[q], LENGTH) for q in (0, 3))
    made.begin(SPLIT, seed=17, iteration=5)
    run(made, [one])
    assert made.in_flight == 1 and not made.busy and made.step() == []
    second = run(made, [two])
    made.end()
    for number in range(3):
        kept, _ = cut(rows[9 + number].token_ids, made.stop)
        np.testing.assert_array_equal(second[two, number].token_ids, rows[9 + number].token_ids[:kept])


@CACHES
def test_requests_may_come_while_others_go_on(pages):
    made, indices = engine(pages=pages, overlap=True), responses(len(MANY), 3)
    requests = [Request(prompt, own, LENGTH) for prompt, own in zip(MANY, indices, strict=True)]
    made.begin(SPLIT, seed=17, iteration=5)
    out = {}
    for i, one in enumerate(requests):
        made.add(one)
        if i == 6:
            out |= run(made)
        for ended, number, sampled in made.step():
            out[ended, number] = sampled
    out |= run(made)
    made.end()
    hold_to_many(groups_of(requests, out))


def test_each_request_is_drawn_in_its_own_way():
    """A text in flight keeps its way when another, with its own, comes into the slot beside it."""
    ways = (Sampling(), Sampling(0.0), Sampling(2.0, top_k=3))
    found = []
    for overlap in (False, True):
        requests = [
            Request(p, own, LENGTH, ways[i % 3])
            for i, (p, own) in enumerate(zip(MANY, responses(len(MANY), 2), strict=True))
        ]
        made = engine(overlap=overlap)
        made.begin(SPLIT, seed=17, iteration=5, others=ways[1:])
        found.append(groups_of(requests, run(made, requests)))
        made.end()
    assert texts(found[0]) == texts(found[1])


@CACHES
def test_an_end_drops_what_is_in_flight(pages):
    made = engine(pages=pages, overlap=True)
    made.begin(SPLIT, seed=17, iteration=5)
    made.add(Request(PROMPTS[2], responses(1, 9)[0], LENGTH))
    made.step()
    assert made.in_flight and made.live
    made.end()
    assert not made.in_flight and not made.busy
    hold_to_many(sample(MANY, make=made))
