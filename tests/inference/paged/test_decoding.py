"""A paged cache against the full forward pass: prompts in parts, shared pages, texts that decode beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paged_cases import Paged
from tiny import EVERYTHING, plain_logits, random_params

from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged.cache import Pages

PARAMS = random_params(EVERYTHING)
forms = pytest.mark.parametrize("split", [False, True], ids=["stacked", "split"])


def tokens(number, seed=0):
    return np.random.default_rng(seed).integers(0, EVERYTHING.vocab_size, number).astype(np.int32)


def expected(text):
    """The logits after the last token of a text."""
    return np.asarray(plain_logits(PARAMS, EVERYTHING, text))[-1]


def held_to(logits, texts):
    for row, text in zip(logits, texts, strict=True):
        np.testing.assert_allclose(row, expected(text), atol=1e-4)


@forms
@pytest.mark.parametrize("size", [1, 8, 64])
def test_texts_in_pages_of_any_order_are_those_of_full_forward_passes(split, size):
    """Three texts token by token beside two prompts in parts, the second of which goes on in the next call."""
    made = Paged(split=split, size=size, number=130 if size == 1 else 24, fill=np.nan)
    made.each = 40 if size == 1 else 6
    order = np.random.default_rng(1).permutation(np.arange(1, made.pages.number)).reshape(-1)
    per = -(-40 // size)
    pages = [order[i * per : (i + 1) * per] for i in range(3)]
    texts = [tokens(n + 6, seed=n) for n in (7, 19, 26)]
    starts = [7, 19, 26]
    made.step(parts=[(texts[0][:7], 0, pages[0]), (texts[1][:9], 0, pages[1])])
    logits = made.step(
        [texts[0][7]], [7], [pages[0]], parts=[(texts[1][9:19], 9, pages[1]), (texts[2][:6], 0, pages[2])]
    )
    held_to(logits, [texts[0][:8]])
    made.step(parts=[(texts[2][6:22], 6, pages[2])])
    made.step(parts=[(texts[2][22:26], 22, pages[2])])
    for step in range(1, 5):
        length = [start + step for start in starts]
        length[1], length[2] = length[1] - 1, length[2] - 1
        fed = [text[n] for text, n in zip(texts, length, strict=True)]
        held_to(made.step(fed, length, pages), [text[: n + 1] for text, n in zip(texts, length, strict=True)])


@forms
def test_texts_share_the_pages_of_their_beginning_and_a_copy_of_its_last(split):
    """20 tokens in pages of 8: two are shared, the third is copied before each goes on in its own."""
    made, prompt = Paged(split=split, size=8), tokens(20)
    made.step(parts=[(prompt[:16], 0, [3, 5, 2])])
    made.step(parts=[(prompt[16:], 16, [3, 5, 2])])
    made.pool = jax.jit(paged_cache.copy)(
        made.pool, np.array([2, 9], np.int32), np.array([7, 1], np.int32), np.int32(1)
    )
    own = [tokens(4, seed=1), tokens(4, seed=2)]
    for n in range(4):
        logits = made.step([text[n] for text in own], [20 + n] * 2, [[3, 5, 2], [3, 5, 7]])
        held_to(logits, [np.append(prompt, text[: n + 1]) for text in own])


@forms
def test_only_what_belongs_to_a_text_is_written_besides_page_0(split):
    made = Paged(split=split, size=8, fill=3.0)
    made.step([1, 2], [9, 0], [[4, 6], [2]], parts=[(tokens(5), 8, [4, 5])])
    for layer in made.pool if split else list(made.pool):
        changed = (np.asarray(layer) != 3).any(axis=(-1, -2))
        changed[0] = False
        assert {(int(p), int(t)) for p, t in zip(*np.nonzero(changed), strict=True)} == {
            (6, 1), (2, 0), *((5, t) for t in range(5)),
        }  # fmt: skip


def test_heads_are_padded_where_the_kernel_wants_it():
    made, pages = Paged(), Pages(4, 8, tokens=16, prompts=3, kernel=True)
    wide = paged_cache.empty_pool(EVERYTHING, pages, groups=2, tensor=1, dtype=jnp.bfloat16, split=False)
    assert wide.shape == (EVERYTHING.num_layers, 8, 8, 2 * EVERYTHING.num_kv_heads, 128)
    assert paged_cache.pool_axes(wide) == "lptkd"
    assert paged_cache.pool_axes(made.pool) == ("ptkd",) * EVERYTHING.num_layers
