"""The engine with pages: the texts of a contiguous cache, whatever the pages, the parts and the mesh; none leaks."""

import numpy as np
import pytest
import small_engine
from engine_slots_cases import cut, decode, endless
from small_engine import MANY, PROMPTS, SPLIT, engine, groups_of, hold_to_many, responses, run, sample

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.request_queue import Request

compiled = small_engine.compiled  # the fixture

ENOUGH, FEW = Pages(40, 8, tokens=16, prompts=3, kernel=False), Pages(9, 8, tokens=16, prompts=3, kernel=False)


@pytest.mark.parametrize(
    "pages, slots, chunk",
    [
        (ENOUGH, 5, 4),
        (FEW, 5, 3),
        (Pages(200, 1, tokens=5, prompts=2, kernel=False), 9, 1),
        (Pages(5, 64, tokens=64, prompts=8, kernel=False), 5, 64),
    ],
    ids=["enough", "few", "of one token", "large"],
)
def test_texts_are_those_of_a_contiguous_cache(pages, slots, chunk):
    made = engine(pages=pages, num_slots=slots, chunk=chunk)
    hold_to_many(sample(MANY, make=made))
    stats = made.take_stats()
    assert (stats.set_back > 0) == (stats.reentered_tokens > 0) == (pages is FEW)
    assert stats.tokens <= stats.slot_steps
    assert stats.prefills <= len(MANY) and stats.prompt_tokens <= sum(len(prompt) - 1 for prompt in MANY)
    assert stats.tokens == sum(len(row.token_ids) for group in small_engine.many() for row in group)


def test_samples_share_a_prefill_and_prompts_their_beginning():
    """Prompts 4 and 6 begin with the same 18 tokens, two pages of 8; the first 9 tokens of both are computed once."""
    made = engine(pages=ENOUGH, num_slots=9)
    order = [4, 6]
    sample([MANY[i] for i in order], [responses(len(MANY), 3)[i] for i in order], make=made)
    stats, whole = made.take_stats(), [len(MANY[i]) - 1 for i in order]
    assert stats.prefills == 2 and stats.prompt_tokens == whole[0] + whole[1] - 16
    assert stats.shared_tokens == 2 * whole[0] + 16 + 2 * whole[1]


@pytest.mark.parametrize("pages", [ENOUGH, FEW], ids=["enough", "few"])
def test_no_page_is_held_when_all_has_ended(pages):
    made = engine(pages=pages)
    made.begin(SPLIT, seed=17, iteration=5)
    requests = [Request(prompt, own, 10) for prompt, own in zip(MANY, responses(len(MANY), 3), strict=True)]
    hold_to_many(groups_of(requests, run(made, requests)))
    assert made._scheduler.held() == [0] and made.live == made.waiting == 0
    made.end()


def test_a_string_ends_a_text_and_its_pages_are_free_for_others():
    rows = sum(endless(), [])
    stop = [decode(rows[0].token_ids[:1]), decode(rows[5].token_ids[2:4])]
    made = engine(eos_ids=(), stop=stop, decode=decode, pages=FEW)
    for row, whole in zip(sum(sample(PROMPTS, make=made), []), rows, strict=True):
        kept, _ = cut(whole.token_ids, stop)
        np.testing.assert_array_equal(row.token_ids, whole.token_ids[:kept])


def test_the_longest_text_that_fits_is_said():
    with pytest.raises(UserError, match="8 pages of 4 tokens hold texts of at most 32 tokens, not of 34; use more"):
        engine(pages=Pages(9, 4, tokens=16, prompts=3, kernel=False))


def test_what_attention_over_pages_lacks_is_refused_whoever_builds_the_engine():
    """Values in int8 without a scale would all be -1, 0 or 1."""
    made = engine(pages=ENOUGH, cache_dtype="int8")
    with pytest.raises(UserError, match='attention over pages has no scale for each position.*use "contiguous"'):
        made.begin(SPLIT, seed=0, iteration=0)
    with pytest.raises(UserError, match="has no scale"):
        made.programs(SPLIT, [])
