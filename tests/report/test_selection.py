import dataclasses

from cgrpo_jax.report import selection
from cgrpo_jax.report.groups import Flag, Group, Outcome


def group(iteration, *flags, run=0, problem="x"):
    return Group(run, iteration, 0, problem, (), 0, 0, 0, 0, 0, Outcome.MIXED, frozenset(flags), 0, False)


def test_all_are_shown_where_they_fit():
    found = selection.choose([group(n) for n in range(5)], max_groups=5)
    assert found.chosen == [0, 1, 2, 3, 4] and found.reasons["others"] == (5, 5)


def test_the_last_iterations_come_first_then_what_tells_most():
    groups = [group(n) for n in range(20)]
    groups[3], groups[4], groups[5] = group(3, Flag.RESCUED), group(4, Flag.FORGOTTEN), group(5, Flag.CUT_OFF)
    assert selection.choose(groups, max_groups=2).chosen == [18, 19]
    assert selection.choose(groups, max_groups=5).chosen == [3, 4, 5, 18, 19]
    found = selection.choose(groups, max_groups=7, seed=1)
    assert {3, 4, 5, 18, 19} < set(found.chosen) and len(found.chosen) == 7
    assert found.reasons == {
        "last iterations": (2, 2), "never solved": (0, 0), "solved again": (0, 0), "rescued": (1, 1),
        "forgotten": (1, 1), "flagged": (3, 3),
        "others": (20, 7),
    }  # fmt: skip


def test_of_what_was_never_solved_each_question_is_shown_once_as_it_was_asked_last():
    groups = [group(n, Flag.RESCUED) for n in range(40)]
    for n, problem in ((3, "y"), (9, "y"), (5, "z"), (6, "w")):
        groups[n] = group(n, Flag.NEVER_SOLVED, problem=problem)
    found = selection.choose(groups, max_groups=30)
    assert {5, 6, 9} < set(found.chosen) and found.reasons["never solved"] == (3, 3)
    assert len({5, 6, 9} & set(selection.choose(groups, max_groups=20).chosen)) == 2  # a tenth of all, at most


def test_each_run_has_its_last_iterations_and_a_seed_its_sample():
    groups = [group(n, run=run) for run in (0, 1) for n in range(10 - run)]
    assert selection.choose(groups, max_groups=4).chosen == [8, 9, 17, 18]
    drawn = [selection.choose(groups, max_groups=8, seed=seed).chosen for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_first_time_that_a_rescued_question_is_solved_is_shown():
    groups = [group(n, problem=str(n)) for n in range(40)]
    for n, flags, passed in ((3, [Flag.RESCUED], 0), (5, [], 0), (8, [], 2), (9, [], 3)):
        groups[n] = dataclasses.replace(group(n, *flags, problem="y"), passed=passed)
    found = selection.choose(groups, max_groups=10)
    assert {3, 8} < set(found.chosen) and found.reasons["solved again"] == (1, 1)
