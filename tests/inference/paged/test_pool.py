"""The pages of a data group: none leaks, holders share what they begin with, and what is found is what was entered."""

import numpy as np
import pytest

from cgrpo_jax.inference.paged.pool import PagePool


def test_pages_are_held_and_free_again_at_once():
    pool = PagePool(number=5, size=4)
    assert (pool.free, pool.held, pool.of(0), pool.of(1), pool.of(4), pool.of(5)) == (4, 0, 0, 1, 1, 2)
    first = pool.allocate(3)
    pool.hold(first[:1])
    pool.release(first)
    assert pool.free == 3 and pool.held == 1 and pool.most == 3
    pool.release(first[:1])
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4] and pool.most == 4


def test_mistakes_are_errors():
    pool = PagePool(number=3, size=4)
    with pytest.raises(ValueError, match="3 pages are asked for, 2 of 2 are free"):
        pool.allocate(3)
    pages = pool.allocate(1)
    pool.release(pages)
    for wrong in (pool.release, pool.hold):
        with pytest.raises(ValueError, match="are free: no text holds them"):
            wrong(pages)


def test_beginnings_are_found_as_long_as_someone_holds_them():
    pool, prompt = PagePool(number=9, size=4), list(range(10))
    pages = pool.allocate(3)
    pool.enter(prompt, pages)
    assert pool.beginning(prompt) == (pages[:2], pages[2])
    assert pool.beginning(prompt[:8]) == (pages[:2], None)
    assert pool.beginning([*prompt, 1]) == (pages[:2], None)  # the third page does not hold as much
    assert pool.beginning([*prompt[:4], 9]) == (pages[:1], None)
    assert pool.beginning([9, *prompt]) == ([], None)
    assert pool.beginning(prompt[4:8]) == ([], None)  # the second page, after another first one
    pool.hold(pages[:1])
    pool.release(pages)
    assert pool.beginning(prompt) == (pages[:1], None)
    pool.release(pages[:1])
    assert pool.beginning(prompt) == ([], None)


def test_the_first_who_holds_a_beginning_is_the_one_that_is_shared():
    pool = PagePool(number=9, size=2)
    one, two = pool.allocate(2), pool.allocate(2)
    pool.enter([1, 2, 3], one)
    pool.enter([1, 2, 3], two)
    assert pool.beginning([1, 2, 3]) == (one[:1], one[1])
    pool.release(one)
    assert pool.beginning([1, 2, 3]) == ([], None)


def test_a_thousand_random_texts_leak_no_page():
    """Against a list of who holds what: pages are those of holders, beginnings those of pages, free the others."""
    rng, pool = np.random.default_rng(0), PagePool(number=40, size=4)
    texts, reused = [], 0
    for _ in range(1000):
        if texts and (rng.random() < 0.5 or pool.free < 12):
            pool.release(texts.pop(rng.integers(len(texts)))[1])
        else:
            tokens = rng.integers(0, 2, rng.integers(1, 30)).tolist()
            shared, last = pool.beginning(tokens)
            holders = [(other, pages) for other, pages in texts]
            for place, page in enumerate(shared):
                end = 4 * (place + 1)
                assert any(o[:end] == tokens[:end] and p[place] == page for o, p in holders if len(o) >= end)
            if last is not None:
                place = len(shared)
                assert any(o[: len(tokens)] == tokens and p[place] == last for o, p in holders if len(p) > place)
            reused += len(shared)
            if pool.of(len(tokens)) - len(shared) > pool.free:
                continue
            own = pool.allocate(pool.of(len(tokens)) - len(shared))
            pool.hold(shared)
            pool.enter(tokens, [*shared, *own])
            texts.append((tokens, [*shared, *own]))
        count = np.bincount([page for _, pages in texts for page in pages], minlength=40)
        assert pool.held == (count > 0).sum() and not count[0]
    assert reused > 50
    for _, pages in texts:
        pool.release(pages)
    assert pool.free == 39 and pool.beginning([0]) == ([], None) and not pool._known and not pool._keys
