"""The warm start's lessons: nothing held out leaks into them, and refinements follow what a critique says."""

import functools
import itertools
import re

import numpy as np
import pytest
from sft_cases import HELD_OUT, PROMPTS, TOKENIZER, rows

from cgrpo_jax.datasets.tasks import arithmetic, arithmetic_lessons
from cgrpo_jax.records import LossKind

EQUATION = re.compile(r"(\d+)([+*])(\d+)=")


def texts(row):
    return TOKENIZER.decode(row.context_ids), TOKENIZER.decode(row.target_ids)


@functools.cache
def lessons(count=3000, **keywords):
    """(question, rest of the context, target) of each lesson."""
    decoded = [texts(row) for row in rows(count, **keywords)]
    return [(*context.partition("\n")[::2], target) for context, target in decoded]


def held_out_facts_in(question, rest, target):
    """Facts that the lesson works with: those of its chain, and every equation that it shows."""
    shown = [(int(a), op, int(b)) for a, op, b in EQUATION.findall(rest + target)]
    return HELD_OUT & {*shown, *(fact for fact, _ in arithmetic.trace(question))}


def kind(rest):
    return "solve" if not rest else "refine" if rest.endswith("Try again.") else "critique"


def test_no_lesson_shows_a_held_out_fact():
    assert not [lesson for lesson in lessons() if held_out_facts_in(*lesson)]
    shown = {match for lesson in lessons() for match in EQUATION.findall(" ".join(lesson))}
    taught = set(arithmetic.facts()) - HELD_OUT
    assert {(int(a), op, int(b)) for a, op, b in shown} == taught  # and every other fact is taught


def test_held_out_facts_are_as_rare_as_asked():
    found = [(kind(lesson[1]), len(held_out_facts_in(*lesson))) for lesson in lessons(rare_rate=0.1)]
    assert {which for which, number in found if number} == {"solve"}
    solve = [number for which, number in found if which == "solve"]
    assert set(solve) == {0, 1}
    assert 0.06 < np.mean(solve) < 0.14


def test_lessons_are_supervised_rows_that_end_the_turn():
    for row in rows(300):
        assert row.loss == LossKind.NLL and row.advantage == 1.0 and not row.refined
        assert row.target_ids[-1] == TOKENIZER.end_of_turn_id
        assert TOKENIZER.end_of_turn_id not in row.target_ids[:-1]
        assert 0 not in row.context_ids and 0 not in row.target_ids  # no unknown token
        assert len(row.old_logp) == len(row.target_ids)
        prefix = TOKENIZER.generation_prefix_ids()
        assert tuple(row.context_ids[-len(prefix) :]) == prefix


def test_two_in_five_solve_one_in_ten_criticises_half_refine():
    kinds = [kind(rest) for _, rest, _ in lessons()]
    shares = {name: kinds.count(name) / len(kinds) for name in set(kinds)}
    assert shares == pytest.approx({"solve": 0.25, "critique": 0.1, "refine": 0.65}, abs=0.04)


def test_a_solution_is_the_chains_but_for_rare_slips():
    slips = []
    for question, rest, target in lessons():
        if kind(rest) == "solve":
            slips.append(target != arithmetic.solution(question))
            if slips[-1]:  # the steps after the one that is wrong go on from it
                error = arithmetic.check_steps(question, target)
                assert target == arithmetic.write(arithmetic.trace(question, {error.step: int(error.given)}))
    assert 0.002 < np.mean(slips) < 0.03


def test_a_critique_is_what_recomputing_finds():
    verdicts = []
    for question, rest, target in lessons():
        if kind(rest) == "critique":
            (response, answer) = re.fullmatch(r"Tried: (.*?)\n(The answer is .*\.\n)?Check\.", rest).groups()
            assert target == arithmetic.self_check(question, response)
            assert answer in (None, f"The answer is {arithmetic.answer(question)}.\n")
            verdicts.append(target.endswith("right [END]"))
    assert 0.35 < np.mean(verdicts) < 0.65


def test_a_refinement_follows_what_its_critique_says():
    """What it names is made up more often than not, so that reading it is what pays."""
    seen = dict.fromkeys(["value", "answer", "step", "verdict", "none"], 0)
    made_up = []
    for question, rest, target in lessons():
        if kind(rest) != "refine":
            continue
        attempt, _, critique = re.fullmatch(r"Tried: (.*?)\n(Critique: (.*)\n)?Try again\.", rest).groups()
        assert arithmetic.check_steps(question, attempt) is not None  # only wrong attempts are refined
        if named := re.search(r"Step (\d) is wrong: .*=(\d+), not", critique or ""):
            step, value = map(int, named.groups())
            assert target == arithmetic.write(arithmetic.trace(question, {step: value}))
            made_up.append(target != arithmetic.solution(question))
            seen["value"] += 1
        elif named := re.search(r"The correct answer is (.*?)\.", critique or ""):
            assert target.endswith(f"Answer: {named.group(1)}")
            values = map(int, named.group(1).split())
            assert target == arithmetic.write(arithmetic.trace(question, dict(enumerate(values, start=1))))
            made_up.append(target != arithmetic.solution(question))
            seen["answer"] += 1
        else:  # nothing to follow: the chain as it is
            assert target == arithmetic.solution(question)
            seen["step" if "Step" in (critique or "") else "verdict" if critique else "none"] += 1
    assert all(number > 50 for number in seen.values())
    assert np.mean(made_up) > 0.6


def test_the_seed_decides():
    first, again, other = (
        [texts(row) for row in itertools.islice(stream, 50)]
        for stream in (
            arithmetic_lessons.lessons(PROMPTS, seed=seed, lengths=(3,), held_out=HELD_OUT, rare_rate=0.0)
            for seed in (0, 0, 1)
        )
    )
    assert first == again != other
