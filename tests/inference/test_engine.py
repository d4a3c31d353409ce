"""The engine: its log-probabilities and its draws, whatever the schedule; what it prefills, compiles and frees."""

import jax
import numpy as np
import pytest
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
    many,
    reference,
    responses,
    run,
    sample,
    texts,
)
from tiny import EVERYTHING, FAMILIES, plain_logprobs, random_params

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.slot_scheduler import Request
from cgrpo_jax.records import RowIndex, Stage, TrainRow
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows

# --- log-probabilities and draws, against full forward passes -----------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_and_log_probabilities_are_those_of_the_full_forward_pass(family):
    """Five slots for twelve texts: most begin where another has ended."""
    config = FAMILIES[family]
    params = random_params(config)
    groups = sample(make=engine(config=config, prompt_bucket=24), params=kv_cache.split_layers(params))
    assert [len(group) for group in groups] == [3] * 4
    reference(config, params).hold(PROMPTS, responses(4, 3), groups)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for row in group:
            assert_well_formed(row)
            np.testing.assert_allclose(row.logp, plain_logprobs(params, config, prompt, row.token_ids), atol=1e-4)


def test_stacked_weights_give_the_same():
    """Which accelerators have, and a CPU has apart (decoding.py)."""
    indices = responses(len(MANY), 3)
    groups = sample(MANY, indices, params=PARAMS)
    reference().hold(MANY, indices, groups)
    reference().hold_alike(MANY, indices, groups, many())


def test_sampled_log_probabilities_are_the_trainers():
    """Also where sampling was truncated: both are of the whole softmax(logits / temperature)."""
    groups = sample(temperature=0.6, top_p=0.9, top_k=20)
    rows = [
        TrainRow(context_ids=prompt, target_ids=row.token_ids, old_logp=row.logp, advantage=1.0)
        for prompt, group in zip(PROMPTS, groups, strict=True)
        for row in group
    ]
    scored = score_rows(PARAMS, rows, config=EVERYTHING, shape=PackShape(4, 32, 8), max_length=LENGTH, temperature=0.6)
    for row, logp in zip(rows, scored, strict=True):
        np.testing.assert_allclose(row.old_logp, logp, atol=1e-4)


def test_greedy_decoding_is_the_argmax_of_full_forward_passes():
    groups = sample(temperature=0.0)
    reference(temperature=0).hold(PROMPTS, responses(4, 3), groups)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len({tuple(row.token_ids) for row in group}) == 1  # no noise
        assert_well_formed(group[0])
        expected = plain_logprobs(PARAMS, EVERYTHING, prompt, group[0].token_ids)
        np.testing.assert_allclose(group[0].logp, expected, atol=1e-4)


# --- the text does not depend on the schedule ---------------------------------------------------------------------


@pytest.mark.parametrize("num_slots, chunk, bucket", [(2, 3, 12), (12, 64, 24), (40, 1, 24)])
def test_slots_chunk_and_bucket_do_not_matter(num_slots, chunk, bucket):
    """Fewer slots than a prompt has texts, fewer than there are texts, and more."""
    hold_to_many(sample(MANY, make=engine(num_slots=num_slots, chunk=chunk, prompt_bucket=bucket)))


def test_data_groups_do_not_matter():
    mesh = sharding.make_mesh(fsdp=3, devices=jax.devices()[:3])
    made = engine(num_slots=3, mesh=mesh)
    params = jax.device_put(SPLIT, jax.sharding.NamedSharding(mesh, sharding.WHOLE))
    hold_to_many(sample(MANY, make=made, params=params))
    stats = made.take_stats()
    assert stats.slot_steps % 9 == 0 and stats.prefills < 3 * len(MANY)  # fewer than texts


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


def test_responses_end_before_refinements_and_these_before_critiques():
    made = engine(num_slots=2, eos_ids=())
    requests = [
        Request(PROMPTS[1], [RowIndex(0, n, stage=stage) for n in range(2)], 4)
        for stage in (Stage.CRITIQUE, Stage.REFINEMENT, Stage.RESPONSE)
    ]
    made.begin(SPLIT, seed=17, iteration=5)
    ended = [one.stage for one, _ in run(made, requests)]
    assert ended == 2 * [Stage.RESPONSE] + 2 * [Stage.REFINEMENT] + 2 * [Stage.CRITIQUE]
    made.end()


# --- randomness ---------------------------------------------------------------------------------------------------


def test_same_seed_same_text_and_another_seed_or_iteration_other_text():
    make = engine(eos_ids=())  # ten tokens a row: no two are the same by chance
    base = texts(sample(make=make))
    assert texts(sample(make=make)) == base
    for change in ({"seed": 4}, {"iteration": 6}, {"seed": 5, "iteration": 3}):
        for before, after in zip(sum(base, []), sum(texts(sample(make=make, **change)), []), strict=True):
            assert before != after


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


@pytest.mark.parametrize("num_slots", [2, 5])
def test_a_prompt_is_prefilled_once_however_many_samples(num_slots):
    """All its tokens but the last, which decoding takes; a prompt of one token has nothing to prefill."""
    made = engine(num_slots=num_slots)
    rows = sum(sample(PROMPTS, responses(4, 7), make=made), [])
    stats = made.take_stats()
    assert stats.prompt_tokens == sum(len(prompt) - 1 for prompt in PROMPTS) and stats.prefills == 3
    assert stats.tokens == sum(len(row.token_ids) for row in rows) and len(rows) == 28
    assert stats.tokens <= stats.slot_steps and stats.tokens_waiting <= stats.tokens and stats.seconds > 0
    assert made.take_stats().tokens == 0


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
