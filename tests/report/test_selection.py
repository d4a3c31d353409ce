from cgrpo_jax.report import selection
from cgrpo_jax.report.groups import Flag, Group, Outcome


def group(iteration, *flags, run=0):
    return Group(run, iteration, 0, "x", (), 0, 0, 0, 0, 0, Outcome.MIXED, frozenset(flags), 0, False)


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
        "last iterations": (2, 2), "rescued": (1, 1), "forgotten": (1, 1), "flagged": (3, 3), "others": (20, 7),
    }  # fmt: skip


def test_each_run_has_its_last_iterations_and_a_seed_its_sample():
    groups = [group(n, run=run) for run in (0, 1) for n in range(10 - run)]
    assert selection.choose(groups, max_groups=4).chosen == [8, 9, 17, 18]
    drawn = [selection.choose(groups, max_groups=8, seed=seed).chosen for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
