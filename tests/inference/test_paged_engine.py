"""The engine with pages: the same texts as with a contiguous cache, whatever the pages; none leaks."""

import pytest
from small_engine import MANY, SPLIT, engine, hold_to_many, responses, run, sample

from cgrpo_jax.inference.paged_cache import Pages


def paged(number=40, size=8, tokens=16, prompts=3, **keywords):
    return engine(pages=Pages(number, size, tokens, prompts, kernel=False), **keywords)


@pytest.mark.parametrize(
    "pages, slots, chunk",
    [((40, 8, 16, 3), 5, 4), ((9, 8, 16, 3), 5, 3), ((200, 1, 5, 2), 9, 1), ((5, 64, 64, 8), 5, 64)],
    ids=["enough", "few", "of one token", "large"],
)
def test_texts_are_those_of_a_contiguous_cache(pages, slots, chunk):
    made = paged(*pages, num_slots=slots, chunk=chunk)
    hold_to_many(sample(MANY, make=made))
    stats = made.take_stats()
    assert (stats.set_back > 0) == (pages[0] == 9)


def test_no_page_is_held_when_all_has_ended():
    made = paged()
    made.begin(SPLIT, seed=17, iteration=5)
    from cgrpo_jax.inference.request_queue import Request

    requests = [Request(prompt, own, 10) for prompt, own in zip(MANY, responses(len(MANY), 3), strict=True)]
    run(made, requests)
    assert made._scheduler.held() == [0]
    made.end()
