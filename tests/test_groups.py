"""Kept refinements and responses as one group, and what its advantages are relative to, against numbers by hand."""

import collections

import numpy as np
import pytest
from scripted_rollouts import response, row

from cgrpo_jax import groups, rollout
from cgrpo_jax.groups import Group, Grouping, reanchor, select, train_rows
from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.rollout import to_refine


def refined(question, number, reward=1.0, **fields):
    return row(RowIndex(question, number, stage=Stage.REFINEMENT), "56", reward=reward, **fields)


def advantages(rows, **values):
    (trained,) = train_rows([Group(rows[0].prompt_ids, rows, 0)], Grouping(len(rows), **values))
    return [one.advantage for one in trained]


# --- which are refined, and which are kept ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "max_pass", "expected"),
    [("failed", 0.5, [0, 2]), ("all", 0.5, [0, 1, 2]), ("failed", 0.2, []), ("all", 0.2, []), ("all", 1.0, [0, 1, 2])],
)
def test_which_responses_are_refined(which, max_pass, expected):
    responses = [response(0, n, reward) for n, reward in enumerate((0.0, 1.0, 0.0))]
    responses.append(response(0, 3).replace(ungraded=True))
    chosen = to_refine(responses, refine_max_pass=max_pass, pass_threshold=1.0, which=which)
    assert [one.index.response for one in chosen] == expected


def test_of_a_question_that_all_pass_all_can_be_refined():
    responses = [response(0, n, 1.0) for n in range(3)]
    assert to_refine(responses, refine_max_pass=1.0, pass_threshold=1.0) == []
    assert to_refine(responses, refine_max_pass=1.0, pass_threshold=1.0, which="all") == responses


def test_a_refinement_at_random_may_be_a_wrong_one():
    rows = [refined(0, n, reward) for n, reward in enumerate((0.0, 1.0, 0.0, 0.0))]
    picks = [select(rows, num_kept=1, seed=0, iteration=i, order="random")[0].index.response for i in range(400)]
    assert picks == [
        select(rows, num_kept=1, seed=0, iteration=i, order="random")[0].index.response for i in range(400)
    ]
    counts = collections.Counter(picks)
    # A share of 1/4 of 400 draws has a standard deviation of 8.7.
    assert set(counts) == {0, 1, 2, 3} and all(abs(count - 100) < 35 for count in counts.values())
    assert {select(rows, num_kept=1, seed=0, iteration=i)[0].index.response for i in range(20)} == {1}


# --- one group ----------------------------------------------------------------------------------------------------


def names(group):
    return [("y'" if one.stage == Stage.REFINEMENT else "y") + str(one.index.response) for one in group.rows]


def test_refinements_stand_beside_the_responses():
    responses = [[response(q, n) for n in range(3)] for q in range(2)]
    first, second = reanchor(responses, [refined(1, 2), refined(1, 0)])
    assert names(first) == ["y0", "y1", "y2"] and names(second) == ["y0", "y1", "y2", "y'2", "y'0"]


def test_a_refinement_takes_the_place_of_what_it_refines():
    responses = [[response(q, n) for n in range(3)] for q in range(2)]
    first, second = reanchor(responses, [refined(1, 2), refined(1, 0)], join="replace")
    assert names(first) == ["y0", "y1", "y2"] and names(second) == ["y'0", "y1", "y'2"]


def test_of_two_refinements_of_a_response_one_takes_the_place_of_another_that_failed():
    responses = [response(0, n, reward) for n, reward in enumerate((0.0, 0.0, 1.0, 0.0))]
    twice = [refined(0, 0), refined(0, 0).replace(index=RowIndex(0, 0, 0, 1, Stage.REFINEMENT))]
    assert names(reanchor([responses], twice, join="replace")[0]) == ["y'0", "y1", "y2", "y'0"]  # the last of equals
    four = [*twice, refined(0, 1), refined(0, 3)]
    assert names(reanchor([responses], four, join="replace")[0]) == ["y'0", "y'1", "y'3", "y'0"]


def test_a_response_without_a_verdict_leaves_a_group_that_is_replaced_too():
    responses = [response(0, 0).replace(ungraded=True), response(0, 1), response(0, 2)]
    assert names(reanchor([responses], [refined(0, 2)], join="replace")[0]) == ["y1", "y'2"]


def test_of_more_refinements_than_responses_with_a_verdict_the_first_enter():
    responses = [response(0, n).replace(ungraded=n > 1) for n in range(8)]
    kept = [refined(0, 1), refined(0, 5), *(refined(0, n) for n in range(2, 7))]
    assert names(reanchor([responses], kept, join="replace")[0]) == ["y'5", "y'1"]
    assert names(reanchor([responses], kept)[0])[2:] == ["y'1", "y'5", "y'2", "y'3", "y'4", "y'5", "y'6"]


@pytest.mark.parametrize(("join", "rows"), [("append", 9), ("replace", 7)])
def test_rows_of_a_group(join, rows):
    grouping = Grouping(7, num_kept=2, join=join)
    assert grouping.max_rows == rows
    assert [grouping.num_rows(found) for found in (0, 1, 2, 5)] == ([7] * 4 if join == "replace" else [7, 8, 9, 9])


# --- advantages ---------------------------------------------------------------------------------------------------


def test_the_baseline_may_be_that_of_the_first_turn():
    rows = [response(0, 0), response(0, 1), response(0, 2), refined(0, 1)]
    np.testing.assert_allclose(advantages(rows), [-1 / 4, -1 / 4, -1 / 4, 3 / 4])
    np.testing.assert_allclose(advantages(rows, baseline="initial"), [0, 0, 0, 1])


def test_rows_near_the_greatest_length_lose_reward():
    rows = [response(0, n) for n in range(3)]
    rows = [one.replace(token_ids=np.zeros(n, np.int32)) for one, n in zip(rows, (12, 16, 20), strict=True)]
    # Half of 0, 1/2 and 1 over the last 8 of 20 tokens: rewards 0, -1/4, -1/2.
    values = dict(length_penalty=0.5, length_buffer=8, max_length=20)
    rows[0] = rows[0].replace(reward=1.0)  # then 1, -1/4, -1/2, of mean 1/12
    np.testing.assert_allclose(advantages(rows, **values), [11 / 12, -4 / 12, -7 / 12], rtol=1e-6)


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("scale_by_std", [False, True])
def test_of_questions_that_all_rows_solve_or_none_does_length_teaches_nothing(reward, scale_by_std):
    rows = [response(0, n).replace(reward=reward, token_ids=np.zeros(8 + n, np.int32)) for n in range(12)]
    values = dict(length_penalty=0.5, length_buffer=8, max_length=20, scale_by_std=scale_by_std)
    assert advantages(rows, **values) == [0] * 12


def test_what_was_cut_off_is_in_the_baseline_and_trains_nothing():
    rows = [response(0, 0), response(0, 1, 1.0), response(0, 2).replace(truncated=True)]
    (trained,) = train_rows([Group(rows[0].prompt_ids, rows, 0)], Grouping(3, mask_truncated=True))
    assert [one.masked for one in trained] == [False, False, True]
    np.testing.assert_allclose([one.advantage for one in trained], [-1 / 3, 2 / 3, -1 / 3], rtol=1e-6)
    (plain,) = train_rows([Group(rows[0].prompt_ids, rows, 0)], Grouping(3))
    assert not any(one.masked for one in plain)


def test_other_rewards_add_to_the_advantage_alone():
    # 1 + 0.5 * 0, 0 + 0.5 * 2 and 0 + nothing: 1, 1, 0, whose mean is 2/3.
    values = ((1.0, 0.0), (0.0, 2.0), (0.0, None))
    rows = [
        response(0, n).replace(reward=reward, rewards=(("short", other),)) for n, (reward, other) in enumerate(values)
    ]
    np.testing.assert_allclose(advantages(rows, weights=(1.0, 0.5)), [1 / 3, 1 / 3, -2 / 3], rtol=1e-6)
    assert [one.index.response for one in to_refine(rows, refine_max_pass=0.5, pass_threshold=1.0)] == [1, 2]
    kept = select([one.replace(index=one.index.replace(stage=Stage.REFINEMENT)) for one in rows], num_kept=1, seed=0,
                  iteration=0)  # fmt: skip
    assert kept[0].index.response == 0
    each = advantages(rows, weights=(1.0, 0.5), normalize_each=True)
    # 2/3, -1/3, -1/3 over 0.57735, and half of -1, 1 over 1.41421; the row without the second has its first alone.
    np.testing.assert_allclose(each, [1.1547 - 0.35355, -0.57735 + 0.35355, -0.57735], rtol=1e-4)


@pytest.mark.parametrize("baseline", ["group", "initial"])
@pytest.mark.parametrize("scale_by_std", [False, True])
def test_equal_rewards_teach_nothing(baseline, scale_by_std):
    rows = [*(response(0, n).replace(reward=0.1) for n in range(3)), refined(0, 0, 0.1)]
    assert advantages(rows, baseline=baseline, scale_by_std=scale_by_std) == [0, 0, 0, 0]


# --- the configuration's names are these functions' ----------------------------------------------------------------


def test_every_choice_of_the_configuration_has_its_function():
    from cgrpo_jax.runs import keys
    from cgrpo_jax.runs.refinement_sections import Refine

    rules = {name: known.rules for name, known, _ in keys.items(Refine())}
    for name, known in (("which", rollout.REFINED), ("select", groups.ORDERS), ("group", groups.JOINS)):
        (rule,) = rules[name]
        said = rule(name, "nothing of these")
        assert said.endswith(f"use one of {', '.join(known)}.")
