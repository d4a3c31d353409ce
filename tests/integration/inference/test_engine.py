"""What takes longer than a unit test may, of tests/inference/test_engine.py."""

import jax
import numpy as np
import pytest
from small_engine import (
    LENGTH,
    MANY,
    PARAMS,
    PROMPTS,
    SPLIT,
    assert_well_formed,
    engine,
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
from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.records import RowIndex, Stage, TrainRow
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows


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


def test_same_seed_same_text_and_another_seed_or_iteration_other_text():
    make = engine(eos_ids=())  # ten tokens a row: no two are the same by chance
    base = texts(sample(make=make))
    assert texts(sample(make=make)) == base
    for change in ({"seed": 4}, {"iteration": 6}, {"seed": 5, "iteration": 3}):
        for before, after in zip(sum(base, []), sum(texts(sample(make=make, **change)), []), strict=True):
            assert before != after


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
