"""Which questions an iteration draws, in which order they end aside, and problems about the responses to them."""

import collections
import itertools
import random

import numpy as np
import pytest
from chain_prompts import CHAINS, make
from scripted_rollouts import PROBLEMS, RIGHT, TOKENIZER, UNREADABLE, WRONG, ScriptedGenerator, response, row

from cgrpo_jax import batches, groups
from cgrpo_jax.batches import Batch
from cgrpo_jax.errors import UserError
from cgrpo_jax.groups import Grouping
from cgrpo_jax.inference.orchestrator import Orchestrator, gather
from cgrpo_jax.records import Problem, RowIndex, Stage
from cgrpo_jax.rollout import Method, Solved

MIXED, EQUAL = (0.0, 1.0), (0.0, 0.0)


def solved(question, rewards=MIXED, refined=(), problem=None, **fields):
    """A question (0 or 1) whose responses, and refinements of the first, have these rewards."""
    refinements = [row(RowIndex(question, 0, stage=Stage.REFINEMENT), "56", reward=r, **fields) for r in refined]
    rows = [response(question, n, reward) for n, reward in enumerate(rewards)]
    return Solved(rows, refinements, collections.Counter(), [], problem or PROBLEMS[question])


# --- drawing on ---------------------------------------------------------------------------------------------------


def run(batch, teaching, *, delays=None, asked=None):
    """Solves an iteration in which the problems of these places in the stream teach; returns the places that train."""
    problems = [Problem(i, str(i), "") for i in range(batch.num_questions + batch.max_extra)]
    done = []

    async def solve(problem, *, question):
        for _ in range(delays(problem.index) if delays else 0):
            await gather([])
        done.append(problem.index)
        return Solved([row(RowIndex(0), "1").replace(index=RowIndex(question))], [], collections.Counter(), [], problem)

    async def judge(one, *, question):
        about = Problem(one.problem.index, "", "", grader=batches.VERDICT)
        return Solved([row(RowIndex(0), "1").replace(index=RowIndex(question))], [], collections.Counter(), [], about)

    def teaches(one):
        if asked is not None:
            asked.append(one.problem.index)
        return one.problem.index in teaching

    solving = batches.solve_all(problems, batch, solve=solve, judge=judge, teaches=teaches)
    found = batches.in_order(Orchestrator().run(list(solving)))
    assert [one.question for one in found] == list(range(len(found)))
    trained = batches.in_batch(found, batch.num_groups, teaches=teaches)
    return done, [(one.problem.index, batches.is_verdict(one)) for one in found], [one.problem.index for one in trained]


def test_without_further_questions_all_train_and_no_group_is_looked_at():
    asked = []
    _, found, trained = run(Batch(4), {1}, asked=asked)
    assert trained == [0, 1, 2, 3] == [index for index, _ in found] and not asked


@pytest.mark.parametrize(
    ("teaching", "drawn", "trained"),
    [
        ({0, 1, 2, 3}, 4, [0, 1, 2, 3]),
        ({0, 2, 3, 4}, 5, [0, 2, 3, 4]),  # 4 in the place of 1
        ({0, 3, 6, 7, 8}, 8, [0, 3, 6, 7]),  # 8 is not asked
        ({2, 5}, 9, [0, 1, 2, 5]),  # the stream has no more: the batch is filled with the first that teach nothing
        (set(), 9, [0, 1, 2, 3]),
    ],
)
def test_which_questions_are_drawn_depends_on_what_they_teach_alone(teaching, drawn, trained):
    """It is the least number of the stream's first questions of which as many teach as the batch has groups."""
    batch, orders = Batch(4, max_extra=5), set()
    for seed in range(30):
        rng = random.Random(seed)
        wait = [rng.randrange(12) for _ in range(9)]
        done, found, kept = run(batch, teaching, delays=wait.__getitem__)
        assert [index for index, _ in found] == list(range(drawn)) and kept == trained
        orders.add(tuple(done))
    assert len(orders) > 5  # the questions did end in different orders


def test_no_more_questions_are_drawn_than_one_for_each_that_teaches_nothing():
    for teaching in itertools.chain(*(itertools.combinations(range(5), n) for n in range(6))):
        _, found, _ = run(Batch(2, max_extra=3), set(teaching))
        firsts = (n for n in range(2, 6) if len(set(range(n)) & set(teaching)) == 2)
        assert len(found) == next(firsts, 5)


def test_a_group_counts_after_refinement():
    grouping = Grouping(2, drop_mentions=True)

    def has_gradient(one, **values):
        return groups.has_gradient(one, Grouping(2, **values) if values else grouping, seed=0, iteration=1)

    assert has_gradient(solved(0, MIXED)) and not has_gradient(solved(0, EQUAL))
    assert has_gradient(solved(0, EQUAL, refined=(0.0, 1.0)))  # rescued
    assert not has_gradient(solved(0, EQUAL, refined=(0.0,))) and not has_gradient(solved(0, (1.0, 1.0)))
    said = solved(0, EQUAL, refined=(1.0,))
    said.refinements[0] = said.refinements[0].replace(text="As the critique says, 56")
    assert not has_gradient(said) and has_gradient(said, drop_mentions=False)
    cut = solved(0, EQUAL, refined=(1.0,), truncated=True)
    cut.responses[:] = [one.replace(truncated=True) for one in cut.responses]
    assert has_gradient(cut) and not has_gradient(cut, mask_truncated=True)
    nothing = solved(0)
    nothing.responses[:] = [one.replace(ungraded=True) for one in nothing.responses]
    assert not has_gradient(nothing)


# --- verdict problems ---------------------------------------------------------------------------------------------


def test_verdict_problems_stand_after_their_questions_evenly_spread():
    """128 groups of which 26 are verdict problems: each half, a minibatch, has 13."""
    _, found, trained = run(Batch(128, num_verdicts=26), set())
    assert len(found) == len(trained) == 128
    verdicts = [place for place, (_, is_verdict) in enumerate(found) if is_verdict]
    assert len(verdicts) == 26 and all(found[place][0] == found[place - 1][0] for place in verdicts)
    assert sum(place < 64 for place in verdicts) == 13
    assert [index for index, is_verdict in found if not is_verdict] == list(range(102))


def test_verdict_problems_train_whatever_else_is_drawn():
    _, found, trained = run(Batch(4, num_verdicts=2, max_extra=3), {3, 4})
    assert found == [(0, False), (0, True), (1, False), (1, True), (2, False), (3, False), (4, False)]
    assert trained == [0, 1, 3, 4]  # of 0 and 1 the verdict problems alone


def judged(one, script, *, prompts=None, num=3, iteration=0, **method):
    policy = ScriptedGenerator(script, prompts or make(TOKENIZER, **CHAINS))
    policy.iteration = iteration
    (found,) = Orchestrator().run([batches.judge(policy, one, question=1, method=Method(num, 32, **method))])
    return found, policy


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_verdict_is_rewarded_where_it_is_right(reward):
    one = solved(0, (reward, reward))
    found, policy = judged(one, lambda index: (RIGHT, WRONG, UNREADABLE)[index.response])
    assert [row.reward for row in found.responses] == [reward, 1 - reward, 0.0]
    assert [row.extracted for row in found.responses] == ["right", "wrong", None]
    assert [row.index for row in found.responses] == [RowIndex(1, n) for n in range(3)]
    problem, (call,) = found.problem, policy.calls
    assert problem.answer == ("right" if reward else "wrong") and problem.grader == batches.VERDICT
    assert problem.columns["judged_question"] == 0 and call.max_length == 32
    text = one.responses[problem.columns["judged_response"]].text
    assert problem.question == f"{PROBLEMS[0].question}\nTried: {text}\nCheck."
    assert problem.question in TOKENIZER.decode(call.prompt) and not found.refinements


def test_right_and_wrong_responses_are_as_likely_to_be_judged():
    one = solved(0, (0.0,) * 6 + (1.0,))
    answers = [judged(one, RIGHT, num=1, iteration=i)[0].problem.answer for i in range(64)]
    assert answers[:8] == [judged(one, RIGHT, num=1, iteration=i)[0].problem.answer for i in range(8)]
    assert abs(answers.count("right") - 32) < 16  # four standard deviations


def test_of_a_question_without_verdicts_none_is_known():
    one = solved(0)
    one.responses[:] = [row.replace(ungraded=True, reward=0.0) for row in one.responses]
    found, _ = judged(one, WRONG)
    assert all(row.ungraded for row in found.responses)
    (group,) = groups.reanchor([found.responses], [])
    assert not group.rows


def test_a_problem_about_a_response_without_a_verdict_says_nothing_of_the_policy_as_a_grader():
    """However many there are: the grader that failed is that of the response, and it alone is counted."""
    orchestrator, policy = Orchestrator(), ScriptedGenerator(WRONG, make(TOKENIZER, **CHAINS))
    judging = []
    for number in range(6):
        one = solved(0, problem=Problem(number, "7*8", "56"))
        one.responses[:] = [row.replace(ungraded=True, reward=0.0) for row in one.responses]
        judging.append(batches.judge(policy, one, question=number % 2, method=Method(3, 32)))
    found = orchestrator.run(judging)
    assert all(row.ungraded for one in found for row in one.responses) and orchestrator.health.failures == 0


def test_a_response_is_shown_without_its_thinking_and_cut_to_fit():
    one = solved(0, (0.0, 0.0))
    one.responses[:] = [row.replace(text="7*8</think>54", opening="<think>") for row in one.responses]
    found, _ = judged(one, WRONG)
    assert found.problem.question == f"{PROBLEMS[0].question}\nTried: 54\nCheck."
    assert found.counts["verdict_prompts_cut"] == 0 and not found.responses[0].prompt_cut
    long = solved(0, (0.0, 0.0))
    room = len(make(TOKENIZER, **CHAINS).for_verdict(PROBLEMS[0].question, "")[0]) + 6
    found, policy = judged(long, WRONG, prompts=make(TOKENIZER, room, **CHAINS))
    assert found.counts["verdict_prompts_cut"] == 1 and all(row.prompt_cut for row in found.responses)
    assert len(policy.calls[0].prompt) <= room and np.array_equal(policy.calls[0].prompt, found.responses[0].prompt_ids)


def test_a_question_that_no_verdict_problem_has_room_for_is_said():
    with pytest.raises(UserError, match="nothing left of its response; max_prompt_length is 8; raise it"):
        make(TOKENIZER, 8, **CHAINS).for_verdict(PROBLEMS[0].question, "")
