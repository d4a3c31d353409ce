"""From refinements to train rows: which are kept, what they are conditioned on, and their advantages."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
from chain_prompts import arithmetic_tokenizer
from scripted_rollouts import PROBLEMS, PROMPTS, by_rule, grade_traces, response, row
from tiny import EVERYTHING, plain_logprobs, random_params

from cgrpo_jax import groups, objective, rollout
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.groups import Grouping, reanchor, select
from cgrpo_jax.inference.critic import Critic, critique
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.generators import Generator, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, LossKind, RowIndex, Stage
from cgrpo_jax.rollout import refine
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows

TOKENIZER = arithmetic_tokenizer()
END = TOKENIZER.end_of_turn_id

# 4. Select.


def refinements(question, *rewards_N):
    return [
        row(RowIndex(question, i, stage=Stage.REFINEMENT), "56", reward=reward) for i, reward in enumerate(rewards_N)
    ]


def chosen(rows, *, num_kept=1, seed=0, iteration=0):
    return [one.index.response for one in select(rows, num_kept=num_kept, seed=seed, iteration=iteration)]


def test_the_highest_rewards_are_kept():
    for iteration in range(20):
        assert chosen(refinements(0, 0.0, 0.5, 1.0, 0.2), iteration=iteration) == [2]
        assert chosen(refinements(0, 0.0, 0.5, 1.0, 0.2), iteration=iteration, num_kept=3) == [2, 1, 3]
    assert sorted(chosen(refinements(0, 1.0, 0.0), num_kept=5)) == [0, 1]
    assert select([], num_kept=1, seed=0, iteration=0) == []


@pytest.mark.parametrize(("rewards_N", "tied"), [((0.0, 1.0, 1.0, 0.0, 1.0), {1, 2, 4}), ((0.0,) * 4, {0, 1, 2, 3})])
def test_ties_are_broken_at_random_and_by_the_seed_only(rewards_N, tied):
    rows = refinements(0, *rewards_N)
    picks = [chosen(rows, iteration=i)[0] for i in range(300)]
    assert picks == [chosen(rows, iteration=i)[0] for i in range(300)]  # the same seed, the same choice
    assert picks != [chosen(rows, iteration=i, seed=1)[0] for i in range(300)]
    counts = collections.Counter(picks)
    assert set(counts) == tied
    # A share of 300 draws has a standard deviation of at most 8.2.
    assert all(abs(count - 300 / len(tied)) < 33 for count in counts.values())
    assert [one.index.response for one in rows] == list(range(len(rows)))  # what was given is left as it was


def test_of_the_kept_ones_only_the_last_may_be_a_tie():
    pairs = {tuple(chosen(refinements(0, 0.0, 1.0, 0.0, 0.0), num_kept=2, iteration=i)) for i in range(60)}
    assert pairs == {(1, 0), (1, 2), (1, 3)}


def test_a_choice_does_not_depend_on_the_other_questions():
    alone = [chosen(refinements(1, *[0.0] * 6), iteration=i) for i in range(30)]
    mixed = refinements(0, 0.0, 0.0) + refinements(1, *[0.0] * 6)
    for i in range(30):
        kept = select(mixed, num_kept=1, seed=0, iteration=i)
        assert [one.index.question for one in kept] == [0, 1]
        assert [kept[1].index.response] == alone[i]
    assert [chosen(refinements(0, *[0.0] * 6), iteration=i) for i in range(30)] != alone  # each has its own draw


# Re-anchor.


def train_rows(responses, kept, *, scale_by_std, num_kept=1):
    grouping = Grouping(max(map(len, responses)), num_kept=num_kept, scale_by_std=scale_by_std)
    return groups.train_rows(reanchor(responses, kept), grouping)


def anchored(kept, num_responses=3, **keywords):
    responses = [[response(q, i) for i in range(num_responses)] for q in range(2)]
    return responses, train_rows(responses, kept, **{"scale_by_std": False} | keywords)


def test_the_number_of_kept_refinements_compiles_nothing_again(monkeypatch):
    shapes = set()
    group_advantages = objective.group_advantages

    def watched(reward_B, group_B, **keywords):
        shapes.add((reward_B.shape, group_B.shape))
        return group_advantages(reward_B, group_B, **keywords)

    monkeypatch.setattr(objective, "group_advantages", watched)
    for num_responses, size in ((5, 16), (8, 32)):  # 10 to 12 rows; 16, a power of two, to 18
        shapes.clear()
        for num_refined in range(3):
            _, groups = anchored([refinements(q, 1.0)[0] for q in range(num_refined)], num_responses=num_responses)
            for q, group in enumerate(groups):
                n = num_responses
                expected = [-1 / (n + 1)] * n + [n / (n + 1)] if q < num_refined else [0.0] * n
                np.testing.assert_allclose([row.advantage for row in group], expected, rtol=1e-6)
        assert shapes == {((size,), (size,))}


def test_a_refinement_without_a_verdict_is_never_kept():
    rows = [one.replace(ungraded=one.index.response < 2) for one in refinements(0, 0.0, 0.0, 0.0)]
    for iteration in range(20):
        kept = select(rows, num_kept=2, seed=0, iteration=iteration)
        assert [one.index.response for one in kept] == [2]


def test_a_response_without_a_verdict_is_no_train_row_and_has_no_part_in_the_baseline():
    failed = response(0, 3).replace(ungraded=True)
    graded = [response(0, 0, 1.0), response(0, 1), response(0, 2)]
    (group,) = train_rows([[failed, *graded]], [], scale_by_std=True)
    (alone,) = train_rows([graded], [], scale_by_std=True)
    assert [one.advantage for one in group] == [one.advantage for one in alone] and group[0].advantage > 0
    assert train_rows([[failed], graded], [], scale_by_std=True)[0] == []


def test_a_kept_refinement_is_a_response_to_the_question_alone():
    """Its tokens are the sampled ones: decoding and encoding them again would give others, and no end of turn."""
    sampled = np.asarray([*(TOKENIZER.encode(digit)[0] for digit in "12"), *TOKENIZER.encode(" 56"), END], np.int32)
    assert TOKENIZER.decode(sampled) == "12 56"
    assert TOKENIZER.encode("12 56") != list(sampled[:-1])
    (critiqued,) = by_rule([response(1, 2)])
    prompt, _ = PROMPTS.for_refinement(PROBLEMS[1].question, critiqued.parent.text, critiqued.text)
    kept = row(
        RowIndex(1, 2, stage=Stage.REFINEMENT), "12 56", prompt_ids=prompt, parent=critiqued, reward=1.0
    ).replace(token_ids=sampled, logp=np.linspace(-3, -1, 5, dtype=np.float32))
    assert len(sampled) == 5
    responses, groups = anchored([kept])
    assert [len(group) for group in groups] == [3, 4]
    refined = groups[1][3]
    np.testing.assert_array_equal(refined.context_ids, PROMPTS.for_question(PROBLEMS[1].question))
    np.testing.assert_array_equal(refined.target_ids, sampled)
    np.testing.assert_array_equal(refined.old_logp, kept.logp)
    assert refined.refined and refined.loss == LossKind.POLICY
    for group, rows in zip(groups, responses, strict=True):
        for trained, given in zip(group, rows, strict=False):
            assert not trained.refined
            np.testing.assert_array_equal(trained.context_ids, given.prompt_ids)
            np.testing.assert_array_equal(trained.target_ids, given.token_ids)
            assert trained.target_ids[-1] == END


def test_a_truncated_refinement_gets_no_end_of_turn():
    kept = refinements(0, 1.0)[0]
    kept = kept.replace(token_ids=kept.token_ids[:-1], logp=kept.logp[:-1], truncated=True)
    _, groups = anchored([kept])
    np.testing.assert_array_equal(groups[0][3].target_ids, TOKENIZER.encode("56"))


# Advantages.


def advantages(rewards_by_question, kept, **keywords):
    responses = [
        [response(q, i, reward) for i, reward in enumerate(group)] for q, group in enumerate(rewards_by_question)
    ]
    groups = train_rows(responses, kept, **{"scale_by_std": False} | keywords)
    return [[one.advantage for one in group] for group in groups]


def test_one_baseline_for_responses_and_refinements():
    """With a baseline of its own a lone refinement would have advantage 0, and so would the failures."""
    first, second = advantages([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], refinements(0, 1.0))
    assert first == pytest.approx([-0.25, -0.25, -0.25, 0.75])
    assert second == pytest.approx([2 / 3, -1 / 3, -1 / 3])  # without a refinement, its n responses alone
    (two, _) = advantages([[0.0, 0.0], [0.0, 0.0]], refinements(0, 1.0, 0.0))
    assert two == pytest.approx([-0.25, -0.25, 0.75, -0.25])


def test_scaling_by_the_standard_deviation_is_an_option_that_something_reads():
    first, second = advantages([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], refinements(0, 1.0), scale_by_std=True)
    # Rewards 0, 0, 0, 1 have a standard deviation of 1/2 (ddof 1).
    assert first == pytest.approx([-0.5, -0.5, -0.5, 1.5], rel=1e-4)
    assert second == [0.0, 0.0, 0.0]


# The whole way, with a model: random weights, and the quickstart's tokenizer and prompts.

CONFIG = dataclasses.replace(EVERYTHING, vocab_size=TOKENIZER.vocab_size, max_context=128)


@functools.cache
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def iteration():
    """Responses, kept refinements and train rows of one iteration in which every response fails."""
    # Many ends of turn, so that some rows end by themselves.
    engine = Engine(CONFIG, eos_ids=[END, *range(150, 165)], num_slots=6, prompt_bucket=64)
    # Some of what seed 4 draws is not how the tokenizer would cut it.
    policy = Generator(engine, params(), PROMPTS, Author.POLICY, weights_step=5, seed=4, iteration=2)
    critic = Critic(kind="execution", check_steps=arithmetic.check_steps)

    async def solve(q, problem):
        responses = await rollout.respond(policy, problem, question=q, num_responses=3, max_length=8)
        responses = await rollout.score(responses, problem, grade_traces)
        failed = rollout.to_refine(responses, refine_max_pass=0.0, pass_threshold=1.0)
        critiqued, _ = await critique(critic, failed, problem, encode=TOKENIZER.encode)
        sampled, _ = await refine(policy, critiqued, problem, max_length=8)
        return responses, await rollout.score(sampled, problem, grade_traces)

    with running_engines(policy) as engines:
        solved = Orchestrator().run([solve(q, problem) for q, problem in enumerate(PROBLEMS)], engines=engines)
    responses = [group for group, _ in solved]
    kept = select([row for _, rows in solved for row in rows], num_kept=2, seed=1, iteration=2)
    return responses, kept, train_rows(responses, kept, scale_by_std=False, num_kept=2)


def test_a_writer_signs_what_it_wrote(iteration):
    responses, kept, _ = iteration
    rows = [one for group in responses for one in group] + kept
    assert len(rows) == 10
    assert {one.truncated for one in rows} == {True, False}
    for one in rows:
        assert one.author == Author.POLICY and one.weights_step == 5 and one.reward == 0.0
        assert len(one.logp) == len(one.token_ids) <= 8
        assert one.text == TOKENIZER.decode(one.token_ids)
        np.testing.assert_allclose(one.logp, plain_logprobs(params(), CONFIG, one.prompt_ids, one.token_ids), atol=1e-4)
    assert [one.parent.parent.index for one in kept] == [
        one.index.replace(refinement=0, stage=Stage.RESPONSE) for one in kept
    ]


def test_tokens_are_the_sampled_ones_end_to_end(iteration):
    _, kept, groups = iteration
    trained = [one for group in groups for one in group if one.refined]
    again = [TOKENIZER.encode(one.text) for one in kept]
    assert any(list(one.token_ids[: len(ids)]) != ids for one, ids in zip(kept, again, strict=True))
    by_tokens = lambda rows: sorted(tuple(ids) for ids in rows)  # noqa: E731
    assert by_tokens(one.target_ids for one in trained) == by_tokens(one.token_ids for one in kept)


def test_a_refinement_is_scored_given_the_question_alone(iteration):
    """Its log-probabilities are those of a full forward pass over [q, y'], which are not those it was sampled with."""
    responses, kept, groups = iteration
    rows = [one for group in groups for one in group]
    scored = score_rows(params(), rows, config=CONFIG, shape=PackShape(2, 48, 10), max_length=8)
    questions = [PROMPTS.for_question(PROBLEMS[q].question) for q, group in enumerate(groups) for _ in group]
    for one, logp, question in zip(rows, scored, questions, strict=True):
        expected = plain_logprobs(params(), CONFIG, question, one.target_ids)
        np.testing.assert_allclose(logp, expected, atol=1e-4)
        if one.refined:
            assert np.abs(logp - one.old_logp).max() > 0.1
        else:
            np.testing.assert_allclose(logp, one.old_logp, atol=1e-4)
    assert sum(one.refined for one in rows) == len(kept) == 4 and len(responses) == 2
