import dataclasses

import iteration_cases
import pytest

from cgrpo_jax import groups as groups_lib
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import initial_state, log
from cgrpo_jax.runs.iteration import Generated, Iteration
from cgrpo_jax.training.learner import Updates


@pytest.fixture(scope="module")
def done():
    return iteration_cases.make()


@pytest.fixture(scope="module")
def rows(done):
    return done.all_rows(grader="exact", reward_source="verifier")


def test_every_text_has_a_row_after_what_it_answers(rows):
    stages = "".join(row.rollout.stage.name[2] for row in rows)  # s: response, i: critique, f: refinement
    assert stages.lower() == "ss" + "ii" + "fff" + "i" + "sss" + "ss"
    assert [row.is_rejected for row in rows[:4]] == [False, False, True, False]
    assert len({row.rollout.index for row in rows}) == len(rows)


def test_what_became_of_each_row(rows):
    said = [row.dropped for row in rows if row.rollout.stage != Stage.CRITIQUE]
    assert said == [
        *("", ""),  # the responses to the question that was rescued
        *("", "mention", "not_selected"),
        *("", "ungraded", "skipped_update"),
        *("zero_advantage", "zero_advantage"),
    ]
    assert not any(row.dropped or row.train_row or row.grader for row in rows if row.rollout.stage == Stage.CRITIQUE)


def test_a_row_beyond_the_cap_says_so(done):
    """Unless it has no advantage anyway."""
    capped = dataclasses.replace(done.updates, capped=[[False, False, False], [False, True], [True, True]])
    rows = dataclasses.replace(done, updates=capped).all_rows(grader="exact", reward_source="verifier")
    placed = [row.dropped for row in rows if row.place is not None]
    assert placed == ["", "", "", "", "sampler_cap", "zero_advantage", "zero_advantage"]


def test_what_is_said_of_an_iteration_that_trains_nothing(done):
    row = {"frac_all_wrong": 0.5, "frac_all_right": 0.25}
    equal = dataclasses.replace(done, rows=[[one.replace(advantage=0.0) for one in group] for group in done.rows])
    assert log.untrained(equal, row) == (
        "iteration 4 trained nothing, for no row has an advantage: all responses are wrong in 50% of the groups, all "
        "right in 25% (said once)"
    )
    masked = [[one.replace(masked=True) for one in done.rows[0]], *done.rows[1:]]
    capped = dataclasses.replace(done.updates, capped=[[True] * 3, [True] * 2, [True] * 2])
    assert log.untrained(dataclasses.replace(done, rows=masked, updates=capped), row) == (
        "iteration 4 trained nothing: of 5 rows with an advantage 3 were cut off (objective.mask_truncated) and 2 are "
        "beyond objective.tis_cap (said once)"
    )


def test_rows_stand_in_their_groups_as_they_train(done, rows):
    placed = [row for row in rows if row.place is not None]
    assert [(row.rollout.index.question, row.place) for row in placed] == [
        *((0, 0), (0, 1), (0, 2)),
        *((1, 0), (1, 1)),
        *((2, 0), (2, 1)),
    ]
    for row in placed:
        q, place = row.rollout.index.question, row.place
        assert row.train_row is done.rows[q][place] and row.rollout is done.groups[q].rows[place]
        assert row.trainer_logp is done.updates.trainer_logps[q][place]
    assert [row.train_row.refined for row in placed[:3]] == [False, False, True]
    without = iteration_cases.make(scored=False).all_rows(grader="exact", reward_source="verifier")
    assert all(row.trainer_logp is None for row in without)


def test_a_question_that_another_one_was_drawn_for_is_written_and_not_trained(done):
    """The third, of four, had no gradient, and the fourth trains in its place."""
    drawn = dataclasses.replace(done, groups=done.groups[:2], rows=done.rows[:2])
    rows = drawn.all_rows(grader="exact", reward_source="verifier")
    said = {row.dropped for row in rows if row.rollout.index.question == 2}
    assert said == {"drawn_on"} and drawn.num_extra == 1
    assert [row.text for row in drawn.kept] == ["fine"]
    without = dataclasses.replace(done, groups=done.groups[1:], rows=done.rows[1:])
    assert without.kept == [] and len(without.refinements) == 3
    assert [row.dropped for row in rows if row.rollout.index.question == 1] == ["", "ungraded", "skipped_update"]
    assert [len(group) for group in rollouts.train_groups(rows)] == [3, 2]
    progress = initial_state.Progress(extra_questions=4)
    progress.add(drawn, all_failed=0.5)
    assert progress.extra_questions == 5 and progress.all_failed_start is None and progress.num_tokens > 0
    progress.add(dataclasses.replace(done, number=0), all_failed=0.5)
    assert progress.extra_questions == 5 and progress.all_failed_start == 0.5


@pytest.mark.parametrize("out", [0, 1, 2])
def test_what_was_trained_is_read_back_where_rows_have_no_verdict(tmp_path, out):
    """Of three questions one is drawn on, and one, of either kind, has no row with a verdict."""
    rewards = [(0.0, 1.0), (None, None), (1.0, 0.0)]
    solved = [iteration_cases.solved(n, rewards=one) for n, one in enumerate(rewards)]
    trained = [one for n, one in enumerate(solved) if n != out]
    groups = groups_lib.reanchor([one.responses for one in trained], [])
    rows = groups_lib.train_rows(groups, groups_lib.Grouping(3))
    updates = Updates([], [[True] * len(group) for group in rows], None)
    done = Iteration(0, iteration_cases.PROBLEMS, Generated(solved, [], 0, 0, {}), [], groups, rows, updates)
    path = tmp_path / "rows.parquet"
    all_rows = done.all_rows(grader="exact", reward_source="verifier")
    rollouts.write(path, all_rows, iteration=0, spell=str)
    given = [len(group) for group in rows]
    assert given == ([2, 2] if out == 1 else [0, 2] if out == 0 else [2, 0])
    assert [len(group) for group in rollouts.train_groups(rollouts.read(path))] == given
    assert {row.dropped for row in all_rows if row.rollout.index.question == out and row.grader} == {"drawn_on"}


def test_who_rewarded(done, rows):
    graders = {(row.rollout.index.question, row.grader) for row in rows if row.rollout.stage != Stage.CRITIQUE}
    assert graders == {(0, "exact"), (1, "math"), (2, "exact")}
    verdicts = done.all_rows(grader="exact", reward_source="critic")
    assert {row.grader for row in verdicts if row.rollout.stage != Stage.CRITIQUE} == {"critic"}
