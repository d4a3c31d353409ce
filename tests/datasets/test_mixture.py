"""The order of questions: each epoch a permutation, mixtures with their shares, and the same after any stop."""

import collections

import pytest

from cgrpo_jax.datasets import mixture as mixture_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem

MIXTURE = {"small": 0.3, "large": 0.7}
PROBLEMS = [Problem(i, f"s{i}", "", source="small") for i in range(5)]
PROBLEMS += [Problem(i, f"l{i}", "", source="large") for i in range(70)]


def drawn(steps, *, batch_size=8, mixture=MIXTURE, seed=3, problems=PROBLEMS):
    return [
        problem
        for step in steps
        for problem in mixture_lib.draw(problems, mixture, seed=seed, step=step, batch_size=batch_size)
    ]


def test_each_epoch_is_another_permutation_and_batches_span_epochs():
    stream = [
        i for step in range(5) for i in mixture_lib.batch_indices(seed=3, step=step, batch_size=8, num_problems=20)
    ]
    assert sorted(stream[:20]) == sorted(stream[20:]) == list(range(20))
    assert stream[:20] != stream[20:] and stream[:20] != list(range(20))
    whole = mixture_lib.batch_indices(seed=3, step=0, batch_size=40, num_problems=20)  # a batch of two epochs
    assert whole == stream
    assert mixture_lib.batch_indices(seed=4, step=0, batch_size=40, num_problems=20) != stream


def test_batch_indices_refuses_a_negative_step():
    with pytest.raises(ValueError, match="step -1"):
        mixture_lib.batch_indices(seed=0, step=-1, batch_size=1, num_problems=1)


# --- mixtures -----------------------------------------------------------------------------------------------------


def test_shares_are_exact_in_a_block_and_even_within_it():
    sources = [problem.source for problem in drawn(range(250))]
    for block in (sources[:1000], sources[1000:]):
        assert collections.Counter(block) == {"small": 300, "large": 700}
    for start in range(0, 2000, 10):
        assert 2 <= sources[start : start + 10].count("small") <= 4


def test_each_set_has_its_own_epochs():
    questions = collections.defaultdict(list)
    for problem in drawn(range(250)):
        questions[problem.source].append(problem.question)
    for source, size in (("small", 5), ("large", 70)):
        stream = questions[source]
        epochs = [tuple(stream[at : at + size]) for at in range(0, len(stream) - size + 1, size)]
        assert len(epochs) > 10 and all(len(set(epoch)) == size for epoch in epochs)
        assert len(set(epochs)) > len(epochs) / 2


def test_a_step_depends_on_nothing_but_seed_and_step():
    whole = drawn(range(40))
    assert drawn(reversed(range(40))) == [p for step in reversed(range(40)) for p in whole[step * 8 : step * 8 + 8]]
    assert drawn(range(1), batch_size=320) == whole  # also over two epochs, or many, of a set
    assert drawn(range(40), seed=4) != whole
    assert drawn(range(40), mixture={"small": 3, "large": 7}) == whole  # shares of their sum
    assert drawn(range(10), mixture={}) != whole[:80]


@pytest.mark.parametrize("mixture", [MIXTURE, {}])
def test_steps_that_draw_on_move_those_after_them(mixture):
    whole = drawn(range(5), mixture=mixture)
    read = [mixture_lib.draw(PROBLEMS, mixture, seed=3, step=0, batch_size=8, more=4)]
    assert read[0] == whole[:12]  # of which two of the last four were drawn
    read.append(mixture_lib.draw(PROBLEMS, mixture, seed=3, step=1, batch_size=8, before=2, more=4))
    assert read[1] == whole[10:22]
    assert mixture_lib.draw(PROBLEMS, mixture, seed=3, step=2, batch_size=8, before=2) == whole[18:26]


def test_shares_of_three_are_rounded_to_a_thousandth():
    picked = mixture_lib.mixture_indices(seed=0, step=0, batch_size=1000, sizes=[3, 3, 3], weights=[1, 1, 1])
    assert sorted(collections.Counter(which for which, _ in picked).values()) == [333, 333, 334]


@pytest.mark.parametrize(
    "text, message",
    [
        ("gsm8k", "'gsm8k' is not NAME:WEIGHT, such as gsm8k:0.3, with a positive weight"),
        ("gsm8k:x", "'gsm8k:x' is not NAME:WEIGHT"),
        ("gsm8k:0", "'gsm8k:0' is not NAME:WEIGHT"),
        ("gsm8k:nan", "'gsm8k:nan' is not NAME:WEIGHT"),
        (":1", "':1' is not NAME:WEIGHT"),
        ("a:1,a:2", "names 'a' twice"),
        ("a:1,b:10000", "gives 'a' less than a thousandth"),
    ],
)
def test_bad_mixtures(text, message):
    with pytest.raises(UserError, match=message):
        mixture_lib.parse_mixture(text)


def test_mixture_of_versions_and_of_other_sources():
    assert mixture_lib.parse_mixture("my_set:1.0.0:2, b:1") == {"my_set:1.0.0": 2.0, "b": 1.0}
    mixture_lib.check_mixture({}, ["a"])
    with pytest.raises(UserError, match="data.mixture names a, c, the training questions are of a, b"):
        mixture_lib.check_mixture({"a": 1, "c": 1}, ["b", "a", "a"])


# --- resume -------------------------------------------------------------------------------------------------------
