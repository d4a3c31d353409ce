"""Which tests are left out where a share of them is run: helpers/share.py."""

import pytest
import share

CASES = [f"test_a[{number}]" for number in range(8)] + ["test_b", "test_c"]


@pytest.fixture
def give(monkeypatch):
    def give(percent, seed):
        monkeypatch.setenv("CGRPO_TEST_SHARE", str(percent))
        monkeypatch.setenv("CGRPO_TEST_SEED", seed)
        return share.of(CASES, kind=lambda name: name.partition("[")[0])

    return give


def test_all_are_tried_where_nothing_is_said(monkeypatch):
    monkeypatch.delenv("CGRPO_TEST_SHARE", raising=False)
    assert share.of(CASES) == CASES


@pytest.mark.parametrize("percent, number", [(1, 1), (20, 2), (21, 3), (99.9, 10), (100, 10)])
def test_a_share_is_rounded_up_and_stays_in_order(give, percent, number):
    drawn = give(percent, "x")
    assert len(drawn) == number and drawn == [name for name in CASES if name in drawn]
    assert give(percent, "x") == drawn


def test_no_kind_has_two_before_each_has_one(give):
    for seed in map(str, range(20)):
        assert [name[:6] for name in give(30, seed)] == ["test_a", "test_b", "test_c"]


def test_every_case_is_drawn_sooner_or_later(give):
    """Half of ten: b and c always, three of the eight cases of a, which 60 commits draw all but surely."""
    drawn = [give(50, str(seed)) for seed in range(60)]
    assert {name for some in drawn for name in some} == set(CASES)
    assert len({tuple(some) for some in drawn}) > 10
