"""Hints in the place of critiques, and critiques that are wrong on purpose; more of step 2 is in test_rollout.py."""

import collections
import random
import types

import pytest
from chain_prompts import CHAINS, make
from scripted_rollouts import (
    PROBLEMS,
    RIGHT,
    TOKENIZER,
    WRONG,
    ScriptedGenerator,
    at_once,
    by_rule,
    critiqued_by,
    response,
)

from cgrpo_jax.critiques import texts
from cgrpo_jax.inference.critic import Critic, critique_once, said_of
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.models.hf import thinking_tags
from cgrpo_jax.records import Author, RowIndex, Stage
from cgrpo_jax.rollout import SHOWN, refine
from cgrpo_jax.runs import metrics

HINTS = CHAINS | {
    "hint": "{question}\nThe answer is {answer}.\nCheck.",
    "refine_with_hint": "{question}\nCritique: {hint}\nTry again.",
}


def hinted(script, rows, **settings):
    generator = ScriptedGenerator(script, prompts=make(TOKENIZER, **HINTS))
    done, counts = critiqued_by(Critic(kind="hint", generator=generator, max_length=48, **settings), rows)
    return done, counts, generator


# --- hints --------------------------------------------------------------------------------------------------------


def test_a_hint_is_asked_for_with_the_answer_and_without_the_response():
    done, counts, generator = hinted("7*8", [response(0, 0), response(1, 3)])
    assert generator.asked == [f"{p.question}\nThe answer is {p.answer}.\nCheck." for p in PROBLEMS]
    assert [one.text for one in done] == ["7*8", "7*8"] and {one.verdict for one in done} == {None}
    assert [one.index for one in done] == [RowIndex(0, 0, stage=Stage.CRITIQUE), RowIndex(1, 3, stage=Stage.CRITIQUE)]
    tokens = sum(len(one.token_ids) for one in done)
    assert counts == collections.Counter(critiqued=2, attempts=2, tokens=tokens)


def test_whatever_a_hint_says_it_is_written_once():
    """It has no verdict that could disagree."""
    done, counts, generator = hinted(RIGHT, [response(0, 0)], max_retries=2)
    assert len(generator.calls) == 1 and not done[0].rejected and not counts["fallbacks"]


@pytest.mark.parametrize("usable_from", [1, 3])
def test_a_hint_that_says_nothing_is_written_again(usable_from):
    done, counts, generator = hinted(lambda index: "7*8" if index.attempt >= usable_from else "", [response(0, 0)])
    (hint,) = done
    assert len(generator.calls) == min(usable_from + 1, 3) and len(hint.rejected) == min(usable_from, 3)
    assert len({one.index for one in [hint, *hint.rejected]}) == len(hint.rejected) + 1
    assert (counts["malformed"], counts["fallbacks"]) == (1, int(usable_from > 2)) and not counts["comparable"]
    assert said_of(hint) == ("7*8" if usable_from < 3 else "none") and not hint.ungraded


def test_a_hint_that_was_cut_off_while_thinking_says_nothing():
    class Thinking(ScriptedGenerator):
        async def write(self, *args, **kw):
            return [
                one.replace(opening=thinking_tags.OPENING, truncated=True) for one in await super().write(*args, **kw)
            ]

    critic = Critic(kind="hint", generator=Thinking("7*8", prompts=make(TOKENIZER, **HINTS)), max_retries=1)
    (hint,), counts = critiqued_by(critic, [response(0, 0)])
    assert hint.author == Author.RULE and [one.text for one in hint.rejected] == ["7*8", "7*8"]
    assert metrics.critic_metrics(counts) == {
        "critic/malformed_rate": 1.0,
        "critic/fallback_rate": 1.0,
        "critic/attempts": 2,
        "critic/unanswered": 0,
        "critic/prompts_cut": 0,
    }


def test_a_refinement_sees_a_hint_and_no_response():
    done, _, _ = hinted("7*8", [response(0, 4)])
    policy = ScriptedGenerator("56", prompts=make(TOKENIZER, **HINTS), author=Author.POLICY)
    shows = Critic(kind="hint").shows
    (one,), _ = at_once(lambda rows, problem: refine(policy, rows, problem, max_length=32, shows=shows), done)
    assert policy.asked == ["7*8+6\nCritique: 7*8\nTry again."] and one.parent is done[0]


def test_a_hint_that_does_not_come_leaves_a_place():
    class Silent(ScriptedGenerator):
        async def write_hint(self, *_, **__):
            return None, True

    critic = Critic(kind="hint", generator=Silent("7*8"), max_length=48)
    (done,), counts = critiqued_by(critic, [response(0, 0)])
    assert done.author == Author.RULE and done.ungraded and PROBLEMS[0].answer not in done.text
    assert counts == collections.Counter(critiqued=1, attempts=1, prompts_cut=1, unanswered=1, fallbacks=1)


@pytest.mark.parametrize(
    ("kind", "shows"), [("cot", "critique"), ("checklist", "critique"), ("none", "nothing"), ("hint", "hint")]
)
def test_what_a_critic_shows(kind, shows):
    assert Critic(kind=kind).shows == shows and shows in SHOWN


# --- items of a rubric that are not met -----------------------------------------------------------------------------

JUDGED = "met: 1; not met: 2\n- Not met: adds. Evidence: f(1) returns 1.\nExpected: 2"


@pytest.mark.parametrize(
    ("reveal", "said"),
    [
        (True, "Not met: adds. Evidence: f(1) returns 1. Expected: 2. Conclusion: wrong [END]"),
        (False, "Not met: adds. Evidence: f(1) returns 1. Conclusion: wrong [END]"),
    ],
)
def test_the_items_that_failed_become_the_critique(reveal, said):
    rows = [response(0, 0).replace(reward=0.5, feedback=JUDGED)]
    (done,) = by_rule(rows, kind="checklist", grader="judge", reveal_value=reveal)
    assert done.text == said_of(done) == said
    assert (done.verdict, done.author, done.parent) == (False, Author.RULE, rows[0])
    policy = ScriptedGenerator("56", author=Author.POLICY)
    at_once(lambda rows, problem: refine(policy, rows, problem, max_length=32), [done])
    assert said in policy.asked[0]


# --- wrong on purpose ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inverted"),
    [
        ("The answer is wrong. Conclusion: wrong [END]", "The answer is right. Conclusion: right [END]"),
        ("The answer is right. The correct answer is 12. Conclusion: right [END]",
         "The answer is wrong. The correct answer is 12. Conclusion: wrong [END]"),
        ("Step 2 is wrong. Conclusion: Incorrect. [END]", "Step 2 is wrong. Conclusion: correct. [END]"),
        (texts.execution(False, None),
         "Every step that can be checked holds, but the answer is right. Conclusion: right [END]"),
        ("No verdict: the answer it is.", "No verdict: the answer it is."),
    ],
)  # fmt: skip
def test_an_inverted_verdict(text, inverted):
    assert texts.inverted(text, None) == inverted
    said = texts.parse_verdict(text)
    assert texts.parse_verdict(inverted) == (None if said is None else not said)


def test_shuffled_words_keep_the_verdict():
    text = "Step 1 is wrong: 7*8=56, not 54. Conclusion: wrong [END]"
    found = {texts.shuffled(text, random.Random(seed)) for seed in range(5)}
    assert len(found) == 5 and text not in found
    for one in found:
        assert one.endswith(" Conclusion: wrong [END]") and sorted(one.split()) == sorted(text.split())


@pytest.mark.parametrize("corruption", texts.CORRUPTIONS)
def test_a_refinement_sees_the_wrong_critique_and_its_row_keeps_both(corruption):
    rows = [response(0, 0), response(1, 2)]
    kept = by_rule(rows)
    wrong = by_rule(rows, corruption=corruption)
    assert [one.text for one in wrong] == [one.text for one in kept] == [said_of(one) for one in kept]
    for one in wrong:
        assert said_of(one) == one.shown != one.text and one.verdict is False
        assert ("Conclusion: right" in one.shown) == (corruption == "inverted")
    policy = ScriptedGenerator("56", author=Author.POLICY)
    at_once(lambda rows, problem: refine(policy, rows, problem, max_length=32), wrong)
    assert [one.shown in asked for one, asked in zip(wrong, policy.asked, strict=True)] == [True, True]


def test_another_critique_is_shown_that_was_said_of_another_response():
    rows = [response(0, number) for number in range(40)]
    done = by_rule(rows, corruption=texts.ANOTHER, others=("Say a.", "Say b."))
    assert {one.shown for one in done} == {"Say a.", "Say b."} and all(one.text != one.shown for one in done)
    assert [one.shown for one in done] == [
        one.shown for one in by_rule(rows, corruption=texts.ANOTHER, others=("Say a.", "Say b."))
    ]


def test_a_critique_is_judged_before_it_is_made_wrong():
    generator = ScriptedGenerator(WRONG)
    critic = Critic(kind="cot", generator=generator, corruption="inverted")
    (done,), counts = critiqued_by(critic, [response(0, 0)])
    assert counts["valid"] == 1 and not counts["fallbacks"]
    assert done.text == WRONG and done.verdict is False and "Conclusion: right [END]" in done.shown


def test_a_share_of_the_critiques_is_drawn_by_seed_iteration_and_row():
    rows = [response(0, number) for number in range(400)]

    def drawn(**of):
        generator = types.SimpleNamespace(**({"seed": 0, "iteration": 0} | of))
        done = by_rule(rows, corruption="inverted", corrupted_share=0.25, generator=generator)
        return [one.shown is not None for one in done]

    first = drawn()
    # A share of 1/4 of 400 draws has a standard deviation of 8.7.
    assert abs(sum(first) - 100) < 35
    assert first == drawn() and first != drawn(seed=1) and first != drawn(iteration=1)
    nothing = by_rule(rows[:9], corruption="shuffled", corrupted_share=0.0)
    assert not any(one.shown for one in nothing)


# --- once ---------------------------------------------------------------------------------------------------------


def once(critic, row, **numbers):
    numbers = {"number": 0, "num_critiques": 1} | numbers
    asked = critique_once(critic, row, PROBLEMS[row.index.question], encode=TOKENIZER.encode, **numbers)
    return Orchestrator().run([asked])[0]


@pytest.mark.parametrize("text, verdict", [(RIGHT, True), (WRONG, False), ("Conclusion: perhaps [END]", None)])
def test_a_critique_is_taken_as_it_is_whatever_it_says(text, verdict):
    generator = ScriptedGenerator(text)
    row = response(0, 1)
    found = once(
        Critic("cot", generator=generator, max_length=30, corruption="inverted"), row, number=2, num_critiques=3
    )
    assert (found.text, found.verdict, found.shown, found.rejected) == (text, verdict, None, ())
    assert found.parent is row and len(generator.calls) == 1
    assert found.index == RowIndex(0, response=1, critique=2, stage=Stage.CRITIQUE)


def test_a_hint_that_says_nothing_is_taken_too():
    generator = ScriptedGenerator("", prompts=make(TOKENIZER, **HINTS))
    assert once(Critic("hint", generator=generator, max_length=30), response(0, 0)).text == ""
    assert len(generator.calls) == 1


def test_a_rule_says_once_what_it_always_says():
    for kind in ("indicative", "none"):
        found = once(Critic(kind, corruption="inverted"), response(0, 0))
        assert (found.author, found.shown, found.verdict) == (Author.RULE, None, False)
    assert found.text == by_rule([response(0, 0)], kind="indicative")[0].text


def test_what_an_endpoint_leaves_out_has_a_place_without_words():
    class Silent(ScriptedGenerator):
        async def write_critique(self, *_, **__):
            return None, False

    found = once(Critic("cot", generator=Silent(WRONG)), response(0, 0))
    assert found.ungraded and (found.text, found.verdict, len(found.token_ids)) == ("", None, 0)
