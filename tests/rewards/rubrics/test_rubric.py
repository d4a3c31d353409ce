"""Rubrics by hand: what is read, what is refused and why, rewards of weights and pitfalls, and what a grade says."""

import json
import math

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader
from cgrpo_jax.rewards.rubrics import prompts, rubric
from cgrpo_jax.rewards.rubrics.rubric import Item, Rubric, Ruling

TESTS = {"asserts": ["assert f(1) == 2"]}
MIXED = Rubric((Item("cites a", 3.0), Item("cites b", 1.0), Item("guesses", -2.0)))


@pytest.mark.parametrize(
    ("answer", "items", "reference"),
    [
        ('["a", "b"]', (Item("a"), Item("b")), ""),
        ('{"criteria": ["a"], "reference": "r"}', (Item("a"),), "r"),
        ('{"reference": "r"}', (), "r"),
        ("- a\n2. b\n\nc", (Item("a"), Item("b"), Item("c")), ""),
        ('[{"text": "a", "weight": 2}, {"text": "b", "weight": -0.5}]', (Item("a", 2.0), Item("b", -0.5)), ""),
        (json.dumps([{"text": "a", "program": TESTS}]), (Item("a", 1.0, json.dumps(TESTS)),), ""),
        (
            json.dumps([{"program": json.dumps(TESTS), "weight": 4}]),
            (Item("the response's program passes its tests", 4.0, json.dumps(TESTS)),),
            "",
        ),
    ],
)
def test_what_is_read(answer, items, reference):
    assert rubric.read(answer) == Rubric(items, reference) and rubric.fault(answer) == ""


HOSTILE = [
    ("", "it has no criteria"),
    ("[]", "it has no criteria"),
    ('{"criteria": [], "reference": " "}', "it has no criteria"),
    ("[broken", "it is no JSON"),
    ("[" * 5000, "it is no JSON"),
    ("[1]", "criterion 1 is neither a text nor an object"),
    ('["a", " "]', "criterion 2 has no text"),
    ('["a", {"weight": 2}]', "criterion 2 has no text"),
    ('{"criteria": "a"}', "its criteria are no list, or its reference is no text"),
    ('{"criteria": ["a"], "reference": 1}', "its criteria are no list, or its reference is no text"),
    ('{"criterion": ["a"]}', "it has 'criterion' beside criteria and reference"),
    ('[{"text": "a", "points": 2}]', "criterion 1 has 'points' beside text, weight and program"),
    (json.dumps(["a"] * 101), "it has 101 criteria, more than 100"),
    (json.dumps(["a" * 2001]), "criterion 1 has 2001 characters, more than 2000"),
    (json.dumps({"reference": "a" * 100_000}), "it has 100017 characters, more than 100000"),
    ('[{"text": "a", "weight": -1}, {"text": "b", "weight": -2}]', "all of its criteria are pitfalls"),
    ('[{"text": "a", "weight": NaN}]', "weight nan of criterion 1 is no number from -1e+06 to 1e+06 other than 0"),
    ('["a", {"text": "b", "weight": Infinity}]', "weight inf of criterion 2 is no number"),
    ('[{"text": "a", "weight": 0}]', "weight 0 of criterion 1 is no number"),
    ('[{"text": "a", "weight": true}]', "weight True of criterion 1 is no number"),
    ('[{"text": "a", "weight": "2"}]', "weight '2' of criterion 1 is no number"),
    ('[{"text": "a", "weight": 1' + "0" * 400 + "}]", "weight 1000"),
    ('["\\ud800"]', "criterion 1 is not valid Unicode"),
    ('{"criteria": ["a"], "reference": "\\ud800"}', "its reference is not valid Unicode"),
]


@pytest.mark.parametrize(("answer", "why"), HOSTILE)
def test_what_is_refused_and_why(answer, why):
    assert rubric.read(answer) is None and rubric.fault(answer).startswith(why)
    assert grader.Grader("judge").readable([answer, '["a"]']) == [False, True]
    with pytest.raises(UserError, match=r"1 of 2 gold answers can't be read by grader 'judge' \(row 2: ") as refused:
        grader.check_gold("judge", ['["a"]', answer])
    assert why in str(refused.value) and "\n" not in str(refused.value)


def test_pitfalls_alone_may_stand_beside_another_rubric():
    pitfalls = '[{"text": "guesses", "weight": -2}]'
    assert rubric.read(pitfalls, only_pitfalls=True).items == (Item("guesses", -2.0),)
    assert rubric.read("[]", only_pitfalls=True) is None


def test_programs_are_read_once_and_by_what_reads_programs():
    asked = []

    def programs(tests):
        asked.append(list(tests))
        return [text == "good" for text in tests]

    answers = [json.dumps([{"program": text}]) for text in ("good", "bad", "good")]
    assert rubric.readable([*answers, '["a"]', "[]"], programs) == [True, False, True, True, False]
    assert asked == [["bad", "good"]]
    assert rubric.readable(['["a"]'], programs) == [True] and len(asked) == 1


# --- rewards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "reward"),
    [
        ([1, 1, 0], 1.0),  # (3 + 1) / 4
        ([1, 0, 0], 0.75),
        ([0, 1, 0], 0.25),
        ([1, 1, 1], 0.5),  # (3 + 1 - 2) / 4
        ([0, 1, 1], -0.25),
        ([0, 0, 0], 0.0),
        ([0, 0, 1], -0.5),
        ([1, 0.4, 0.25], 0.725),  # (3 + 0.4 - 0.5) / 4
    ],
)
def test_the_reward_of_weights_and_pitfalls(shares, reward):
    assert rubric.score(MIXED, shares) == pytest.approx(reward, abs=1e-15)
    scaled = Rubric(tuple(Item(item.text, item.weight * 7) for item in MIXED.items))
    assert rubric.score(scaled, shares) == pytest.approx(reward, abs=1e-15)


def test_a_reference_is_an_item_of_weight_one():
    with_reference = Rubric((Item("a", 3.0),), "r")
    assert rubric.score(with_reference, [1.0, 0.5]) == 3.5 / 4
    assert rubric.score(Rubric((), "r"), [0.5]) == 0.5


@pytest.mark.parametrize("weights", [(1.0, 2.0, -1.0), (1e6, 1e-3, -1e6)])
def test_a_reward_is_finite_and_at_most_one(weights):
    one = Rubric(tuple(Item("a", weight) for weight in weights))
    for shares in ([0, 0, 0], [1, 1, 0], [1, 1, 1], [0.5, 0.5, 0.5]):
        assert math.isfinite(rubric.score(one, shares)) and rubric.score(one, shares) <= 1


# --- grades -------------------------------------------------------------------------------------------------------


def test_a_grade_names_each_item_that_costs_reward_with_its_evidence():
    grade = rubric.grade(MIXED, [Ruling(1.0, evidence="as a says"), Ruling(0.0), Ruling(1.0, evidence="I guess 3.")])
    assert (grade.score, grade.extracted, grade.failed) == (0.25, "1 of 4", False)
    assert grade.reason == "met: 1; not met: 2, 3\n- Not met: cites b.\n- To be avoided: guesses. Evidence: I guess 3."
    assert rubric.findings(grade.reason) == ["Not met: cites b.", "To be avoided: guesses. Evidence: I guess 3."]


def test_of_several_judgements_a_grade_says_how_many():
    grade = rubric.grade(MIXED, [Ruling(0.8, 5), Ruling(1.0, 5), Ruling(0.4, 5)])
    assert grade.score == pytest.approx((2.4 + 1 - 0.8) / 4)
    assert grade.reason == (
        "met: 1, 2, 3\n- Not met: cites a (by 1 of 5 judgements).\n- To be avoided: guesses (by 2 of 5 judgements)."
    )


@pytest.mark.parametrize(
    ("worth", "said"),
    [(1.0, []), (0.5, ["A reference response is as good"]), (0.0, ["A reference response is better"])],
)
def test_a_grade_against_a_reference(worth, said):
    grade = rubric.grade(Rubric((Item("a"),), "r"), [Ruling(1.0), Ruling(worth)])
    assert grade.reason.startswith(f"met: 1; against the reference: {worth:g}")
    assert rubric.findings(grade.reason) == said and grade.extracted == f"{1 + worth:g} of 2"


@pytest.mark.parametrize("shares", [(1, 1, 0), (1, 0, 0), (0.9, 1, 0), (1, 1, 0.1), (0, 0, 1)])
def test_whatever_costs_reward_is_named(shares):
    grade = rubric.grade(MIXED, [Ruling(share) for share in shares])
    assert (grade.score < 1) == bool(rubric.findings(grade.reason))


def test_what_was_expected_may_be_left_out():
    evidence = "Test 1 of 1 fails: f(1) returns 1. Tests passed: 0 of 1.\nExpected: 2"
    reason = rubric.grade(
        Rubric((Item("adds", program="x"), Item("b"))), [Ruling(0.0, evidence=evidence), Ruling(0)]
    ).reason
    assert rubric.findings(reason)[0] == (
        "Not met: adds. Evidence: Test 1 of 1 fails: f(1) returns 1. Tests passed: 0 of 1. Expected: 2"
    )
    hidden = rubric.findings(reason, reveal=False)
    assert hidden[0].endswith("Tests passed: 0 of 1.") and hidden[1] == "Not met: b."


@pytest.mark.parametrize(
    "number, lines", [(1, "Write 1 line, for criterion 1,"), (3, "Write 3 lines, one for each of ")]
)
def test_a_judge_is_told_how_many_lines_to_write(number, lines):
    asked = prompts.to_check(prompts.Case("What?", "This."), [Item(f"it says {i}") for i in range(number)])
    assert lines in asked.splitlines()[-1]
    assert '"1: yes"' not in asked  # an example that models of a billion parameters repeat
