"""The engine: its log-probabilities and its draws, whatever the schedule; what it prefills, compiles and frees."""

import numpy as np
import pytest
import small_engine
from small_engine import (
    EOS,
    LENGTH,
    MANY,
    PARAMS,
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
from tiny import EVERYTHING, plain_logprobs

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.records import RowIndex, Stage

compiled = small_engine.compiled  # the fixture

# --- log-probabilities and draws, against full forward passes -----------------------------------------------------


def test_greedy_decoding_is_the_argmax_of_full_forward_passes():
    groups = sample(temperature=0.0)
    reference(temperature=0).hold(PROMPTS, responses(4, 3), groups)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len({tuple(row.token_ids) for row in group}) == 1  # no noise
        assert_well_formed(group[0])
        expected = plain_logprobs(PARAMS, EVERYTHING, prompt, group[0].token_ids)
        np.testing.assert_allclose(group[0].logp, expected, atol=1e-4)


# --- the text does not depend on the schedule ---------------------------------------------------------------------


def test_order_and_company_do_not_matter():
    made, indices = engine(), responses(len(MANY), 3)
    order = [int(i) for i in np.random.default_rng(0).permutation(len(MANY))]
    hold_to_many(sample([MANY[i] for i in order], [indices[i] for i in order], make=made), order)
    for i in (0, 4, 10):
        hold_to_many(sample([MANY[i]], [indices[i]], make=made), [i])
    backwards = sample(MANY, [group[::-1] for group in indices], make=made)
    hold_to_many([group[::-1] for group in backwards])


def test_requests_may_come_while_others_go_on():
    """Some at a time, a step apart or when nothing goes on any more, as critiques follow the responses they read."""
    made, indices = engine(), responses(len(MANY), 3)
    requests = [Request(prompt, own, LENGTH) for prompt, own in zip(MANY, indices, strict=True)]
    made.begin(SPLIT, seed=17, iteration=5)
    out, beside = {}, 0
    for i, one in enumerate(requests):
        beside += made.live > 0
        made.add(one)
        if i == 6:
            out |= run(made)
        for ended, number, sampled in made.step():
            out[ended, number] = sampled
    out |= run(made)
    made.end()
    assert beside > 6
    hold_to_many(groups_of(requests, out))


# --- randomness ---------------------------------------------------------------------------------------------------


def test_no_seed_is_an_error():
    """A seed of None that silently became 0 would give every run the same noise."""
    with pytest.raises((TypeError, ValueError)):
        sample(seed=None)


def test_every_field_of_an_index_changes_the_text():
    """A retry (attempt + 1) among them."""
    base = RowIndex(question=1, response=1, critique=1, refinement=1, stage=Stage.CRITIQUE, attempt=1)
    indices = [base, *(base.replace(**{f: 2}) for f in ("question", "response", "critique", "refinement", "attempt"))]
    indices += [base.replace(stage=stage) for stage in (Stage.RESPONSE, Stage.REFINEMENT)]
    indices.append(base.replace(question=0, response=2))
    grouped = [indices[:3], indices[3:6], indices[6:]]
    rows = sample([PROMPTS[2]] * 3, grouped, make=engine(eos_ids=()))
    assert len(set(sum(texts(rows), []))) == 9
    reference().hold([PROMPTS[2]] * 3, grouped, rows)


def test_a_question_drawn_twice_gets_different_texts():
    first, _, second, _ = texts(sample([PROMPTS[2], PROMPTS[0], PROMPTS[2], PROMPTS[1]]))
    assert len({*first, *second}) == 6


# --- prompts ------------------------------------------------------------------------------------------------------


def test_the_longest_prompt_fits_and_a_longer_one_is_an_error():
    longest = np.resize(PROMPTS[2], 24)
    groups = sample([longest], responses(1, 3))
    for row in groups[0]:
        assert_well_formed(row)
        np.testing.assert_allclose(row.logp, plain_logprobs(PARAMS, EVERYTHING, longest, row.token_ids), atol=1e-4)
    reference().hold([longest], responses(1, 3), groups)
    with pytest.raises(UserError, match=r"a prompt of 25 tokens and 9 new ones .* 34 tokens \(prompts of 24\)"):
        sample([PROMPTS[0], np.append(longest, 1)], responses(2, 3), max_length=9)
    with pytest.raises(UserError, match="a prompt of 24 tokens and 11 new ones exceed the 34 tokens"):
        sample([PROMPTS[0], longest], responses(2, 3), max_length=11)
    unlimited = Engine(EVERYTHING, eos_ids=EOS, num_slots=5)
    assert unlimited.length == unlimited.widths[-1] == EVERYTHING.max_context


def test_an_empty_prompt_is_an_error():
    with pytest.raises(UserError, match="a prompt is empty"):
        sample([PROMPTS[0], []])


def test_no_prompts_give_no_rows():
    make = engine()
    assert make.generate(SPLIT, [], [], seed=0, iteration=0, max_length=4) == []
    assert make.take_stats().tokens == 0


def test_each_prompt_has_a_list_of_indices_with_something_in_it():
    with pytest.raises(ValueError, match="4 prompts came with 3 lists of indices"):
        sample(PROMPTS, responses(3, 3))
    with pytest.raises(ValueError, match="a request asks for no text"):
        sample(PROMPTS, [*responses(3, 3), []])


def test_prompts_may_ask_for_different_numbers_of_texts():
    indices = [group[:n] for group, n in zip(responses(4, 3), (1, 3, 2, 1), strict=True)]
    expected = [group[: len(own)] for group, own in zip(sample(), indices, strict=True)]
    reference().hold_alike(PROMPTS, indices, sample(PROMPTS, indices), expected)


def test_prompts_that_begin_alike_share_it_and_the_texts_are_the_same():
    """Of 18, 19 and 21 tokens, 17 or 18 are shared: what is left fits the narrow width."""
    made, order = engine(), [4, 5, 6]
    indices = responses(len(MANY), 3)
    assert [len(MANY[i]) - 1 for i in order] == [18, 18, 20]
    groups = sample([MANY[i] for i in order], [indices[i] for i in order], make=made)
    stats = made.take_stats()
    assert stats.prefills == 3 and stats.prompt_tokens == 18 + 1 + 2
    assert stats.shared_tokens >= 17 + 18
    hold_to_many(groups, order)
