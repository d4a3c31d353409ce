"""Generation: its log-probabilities, its randomness, where it stops, and how often it compiles."""

import jax
import numpy as np
import pytest
from tiny import EVERYTHING, FAMILIES, plain_logits, plain_logprobs, random_params

from cgrpo_jax import sampling, sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.generate import Generator, Settings, decode, prefill
from cgrpo_jax.records import RowIndex, Stage, TrainRow
from cgrpo_jax.update import PackShape, score_rows

V = EVERYTHING.vocab_size
EOS = (0, 7, 19, 31)  # 0 is also what prompts are padded with
LENGTH = 10
# Prompts of 1 to 16 tokens (a whole bucket). They hold end-of-turn tokens, as those of chat templates do.
PROMPTS = [np.random.default_rng(i).integers(0, V, n).astype(np.int32) for i, n in enumerate((1, 5, 16, 9))]
PROMPTS[1][[0, 2, 4]] = 0
PARAMS = random_params(EVERYTHING)


def generator(*, config=EVERYTHING, eos_ids=EOS, max_rows=12, prompt_bucket=16):
    return Generator(config, eos_ids=eos_ids, max_rows=max_rows, prompt_bucket=prompt_bucket)


def responses(num_questions, num_responses):
    return [[RowIndex(question=q, response=n) for n in range(num_responses)] for q in range(num_questions)]


def sample(prompts=PROMPTS, indices=None, *, make=None, params=PARAMS, **keywords):
    keywords = {"seed": 3, "iteration": 5, "max_length": LENGTH} | keywords
    indices = indices or responses(len(prompts), 3)
    return (make or generator())(params, prompts, indices, **keywords)


def texts(groups):
    return [[tuple(row.token_ids) for row in group] for group in groups]


def assert_well_formed(row, max_length=LENGTH, eos_ids=EOS):
    """An end-of-turn token, if any, is the last; a row without one has the full length and is truncated."""
    assert len(row.token_ids) == len(row.logp) and row.token_ids.dtype == np.int32 and row.logp.dtype == np.float32
    assert not np.isin(row.token_ids[:-1], eos_ids).any()
    assert row.truncated is (row.token_ids[-1] not in eos_ids)
    assert len(row.token_ids) == max_length if row.truncated else 1 <= len(row.token_ids) <= max_length


# Log-probabilities and draws, against full forward passes.


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_log_probabilities_are_those_of_the_full_forward_pass(family):
    config = FAMILIES[family]
    params = random_params(config)
    groups = sample(make=generator(config=config), params=params)
    assert [len(group) for group in groups] == [3] * 4
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for row in group:
            assert_well_formed(row)
            np.testing.assert_allclose(row.logp, plain_logprobs(params, config, prompt, row.token_ids), atol=1e-4)


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


def test_each_token_is_the_draw_of_its_rows_key_from_the_full_forward_pass():
    """The whole chain by its definition: key, uniform, distribution, interval."""
    checked = 0
    for q, group in enumerate(sample()):
        for n, row in enumerate(group):
            keys = sampling.row_keys(3, 5, sampling.index_array([RowIndex(question=q, response=n)]))
            logits = plain_logits(PARAMS, EVERYTHING, np.concatenate([PROMPTS[q], row.token_ids]))
            for t, token in enumerate(row.token_ids):
                (uniform,) = np.asarray(sampling.uniforms(keys, t))
                weight = np.exp(logits[len(PROMPTS[q]) + t - 1])
                edge = np.cumsum(weight) / weight.sum()
                if np.abs(edge - uniform).min() > 1e-4:
                    assert token == np.searchsorted(edge, uniform, side="right")
                    checked += 1
    assert checked > 40


def test_greedy_decoding_is_the_argmax_of_full_forward_passes():
    for prompt, group in zip(PROMPTS, sample(temperature=0.0), strict=True):
        assert len({tuple(row.token_ids) for row in group}) == 1  # no noise
        tokens = list(prompt)
        for token in group[0].token_ids:
            logits = plain_logits(PARAMS, EVERYTHING, tokens)[-1]
            best, second = np.sort(logits)[[-1, -2]]
            assert best - second > 1e-4 and token == logits.argmax()
            tokens.append(token)
        assert_well_formed(group[0])
        np.testing.assert_allclose(
            group[0].logp, plain_logprobs(PARAMS, EVERYTHING, prompt, group[0].token_ids), atol=1e-4
        )


# Randomness.


@pytest.mark.parametrize("max_rows", [6, 2])
def test_text_does_not_depend_on_how_rows_are_divided_into_calls(max_rows):
    """Two prompts a call, and fewer rows than one prompt has continuations."""
    together, apart = sample(), sample(make=generator(max_rows=max_rows))
    assert texts(together) == texts(apart)
    for a, b in zip(sum(together, []), sum(apart, []), strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
        assert a.truncated == b.truncated


def test_text_does_not_depend_on_the_other_rows_of_a_batch():
    indices = responses(4, 3)
    everything = texts(sample())
    order = [2, 0, 3, 1]
    assert texts(sample([PROMPTS[i] for i in order], [indices[i] for i in order])) == [everything[i] for i in order]
    assert texts(sample([PROMPTS[2]], [indices[2]])) == [everything[2]]
    assert texts(sample(PROMPTS, [group[::-1] for group in indices])) == [group[::-1] for group in everything]


def test_no_call_decodes_more_rows_than_allowed(monkeypatch):
    sizes = []

    def spy(params, tokens_QP, length_Q, live_B, *rest, **keywords):
        sizes.append(len(live_B))
        return prefill(params, tokens_QP, length_Q, live_B, *rest, **keywords)

    monkeypatch.setattr("cgrpo_jax.generate.prefill", spy)
    for max_rows in (12, 6, 2):
        sizes.clear()
        sample(make=generator(max_rows=max_rows))
        assert max(sizes) <= max_rows and sum(sizes) >= 12


def test_same_seed_same_text_and_another_seed_or_iteration_other_text():
    make = generator(eos_ids=())  # ten tokens a row: no two are the same by chance
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
    base = RowIndex(question=1, response=1, critique=1, refinement=1, stage=Stage.CRITIQUE, attempt=1)
    indices = [base, *(base.replace(**{f: 2}) for f in ("question", "response", "critique", "refinement", "attempt"))]
    indices += [base.replace(stage=stage) for stage in (Stage.RESPONSE, Stage.REFINEMENT)]
    indices.append(base.replace(question=0, response=2))
    rows = sample([PROMPTS[2]] * 3, [indices[:3], indices[3:6], indices[6:]], make=generator(eos_ids=()))
    assert len(set(sum(texts(rows), []))) == 9


def test_a_question_drawn_twice_gets_different_texts():
    first, _, second, _ = texts(sample([PROMPTS[2], PROMPTS[0], PROMPTS[2], PROMPTS[1]]))
    assert len({*first, *second}) == 6


# Prompts.


def run_program(tokens_QP, length_Q, **static):
    """The compiled program itself, with the arrays that `Generator` would give it."""
    num_samples = 3
    index_B6 = sampling.index_array(sum(responses(len(tokens_QP), num_samples), []))
    static = dict(max_length=LENGTH, temperature=1.0, top_p=1.0, top_k=0, eos_ids=EOS) | static
    settings = Settings(EVERYTHING, sharding.one_device(), num_samples=num_samples, **static)
    live_B = np.ones(len(index_B6), bool)
    state = prefill(PARAMS, tokens_QP, length_Q, live_B, np.uint32(3), np.uint32(5), index_B6, settings=settings)
    return [np.asarray(x) for x in decode(PARAMS, state, settings=settings)[1]]


def padded(fill):
    tokens = np.broadcast_to(fill, (4, 16)).astype(np.int32)
    tokens = tokens.copy()
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    return tokens, np.array([len(prompt) for prompt in PROMPTS], np.int32)


def test_what_prompts_are_padded_with_changes_nothing():
    noise = np.random.default_rng(9).integers(0, V, (4, 16))
    for a, b in zip(run_program(*padded(0)), run_program(*padded(noise)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_wider_bucket_changes_nothing():
    narrow, wide = sample(), sample(make=generator(prompt_bucket=24))
    assert texts(narrow) == texts(wide)


def test_the_longest_prompt_fits_and_a_longer_one_is_an_error():
    longest = np.resize(PROMPTS[2], EVERYTHING.max_context - LENGTH)
    ((row,),) = sample([longest], responses(1, 1))
    assert_well_formed(row)
    np.testing.assert_allclose(row.logp, plain_logprobs(PARAMS, EVERYTHING, longest, row.token_ids), atol=1e-4)
    with pytest.raises(UserError, match="a prompt of 55 tokens and 10 new ones exceed the model's context of 64"):
        sample([PROMPTS[0], np.append(longest, 1)])


def test_an_empty_prompt_is_an_error():
    with pytest.raises(UserError, match="a prompt is empty"):
        sample([PROMPTS[0], []])


def test_no_prompts_give_no_rows():
    make = generator()
    assert make(PARAMS, [], [], seed=0, iteration=0, max_length=4) == []
    assert make.take_stats().tokens == 0


@pytest.mark.parametrize("sizes", [[3, 3, 3], [3, 2, 4, 3], [0, 0, 0, 0]], ids=str)
def test_indices_must_fit_the_prompts(sizes):
    """Lists of 2 and 4 have as many rows as lists of 3 and 3: they must not be handed out in turn."""
    with pytest.raises(ValueError, match="4 prompts came with indices for"):
        sample(PROMPTS, [[RowIndex(question=q, response=n) for n in range(size)] for q, size in enumerate(sizes)])


# Stops.


def test_rows_end_at_the_first_end_of_turn_token_or_at_the_limit():
    rows = sum(sample(), [])
    for row in rows:
        assert_well_formed(row)
    assert {row.truncated for row in rows} == {False, True}
    # An end-of-turn token is only where a row is cut: with none, the same text goes on.
    for ended, endless in zip(rows, sum(sample(make=generator(eos_ids=())), []), strict=True):
        assert endless.truncated and len(endless.token_ids) == LENGTH
        np.testing.assert_array_equal(ended.token_ids, endless.token_ids[: len(ended.token_ids)])


def test_a_single_token():
    """An end-of-turn token in the last place, here the only one, is no truncation."""
    short = sum(sample(max_length=1), [])
    for row, long in zip(short, sum(texts(sample()), []), strict=True):
        assert_well_formed(row, max_length=1)
        assert tuple(row.token_ids) == long[:1]
    assert {row.truncated for row in short} == {False, True}


def test_decoding_stops_when_every_row_is_done():
    """Buffers are written until the last row ends, and not after."""
    eos_ids = tuple(range(0, V, 3))  # a third of the vocabulary: rows end soon
    tokens_BT, logp_BT, length_B, done_B = run_program(*padded(0), eos_ids=eos_ids)
    assert done_B.all() and 1 < length_B.max() < LENGTH
    assert (logp_BT[:, : length_B.max()] < 0).all()  # finished rows go on until then, unread
    assert not logp_BT[:, length_B.max() :].any() and not tokens_BT[:, length_B.max() :].any()


# Programs and totals.


def test_the_number_of_programs_does_not_depend_on_the_data():
    make = generator()
    for count in (4, 2, 1):  # calls are of 4 prompts, the last one of a power of two
        sample(PROMPTS[:count], make=make)
    before = prefill._cache_size(), decode._cache_size()
    rng = np.random.default_rng(0)
    for i in range(20):
        prompts = [rng.integers(0, V, rng.integers(1, 17)) for _ in range(rng.integers(1, 12))]
        sample(prompts, make=make, iteration=i, seed=7 * i)
    assert (prefill._cache_size(), decode._cache_size()) == before


def test_totals_count_what_was_sampled_and_prefilled():
    make = generator(max_rows=3)
    rows = sum(sample(make=make), [])
    stats = make.take_stats()
    assert stats.tokens == sum(len(row.token_ids) for row in rows)
    assert stats.prompt_tokens == sum(map(len, PROMPTS))  # once a prompt, not once a row
    assert stats.seconds > 0
    assert make.take_stats().tokens == 0


def test_rows_are_copies_that_do_not_keep_a_batch_alive():
    row = sample()[0][0]
    assert row.token_ids.base is None and row.logp.base is None
    assert not isinstance(row.token_ids, jax.Array)
