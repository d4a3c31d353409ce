"""Critiques (by a model that says what a script tells it, or by rule) and refinements; see `test_reanchor.py` for the
rest of the stages."""

import collections
import dataclasses
import gc
import types

import numpy as np
import pytest
from chain_prompts import CHAINS, make
from scripted_rollouts import (
    END,
    INDICATIVE,
    PROBLEMS,
    PROMPTS,
    RIGHT,
    TOKENIZER,
    UNREADABLE,
    WRONG,
    WRONG_TEXTS,
    ScriptedGenerator,
    at_once,
    by_rule,
    critiqued_by,
    grade_traces,
    key_of,
    response,
)

from cgrpo_jax import rollout
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.inference.critic import Critic, critique, with_feedback
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, RowIndex, Stage
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rollout import refine, to_refine

# 2. Critique by a model.


def by_attempt(*texts):
    return lambda index: texts[min(index.attempt, len(texts) - 1)]


def cot(script, rows, *, num_critiques=1, **settings):
    generator = ScriptedGenerator(script)
    critic = Critic(kind="cot", generator=generator, max_length=48, **settings)
    return *critiqued_by(critic, rows, num_critiques), generator


def refined_by(policy, critiqued, **settings):
    return at_once(lambda rows, problem: refine(policy, rows, problem, max_length=32, **settings), critiqued)


def test_a_critique_that_agrees_is_taken_at_once():
    rows = [response(0, 0), response(1, 3), response(1, 4, 1.0)]
    done, counts, generator = cot(lambda index: RIGHT if index.response == 4 else WRONG, rows)
    assert [len(calls) for calls in generator.attempts] == [3] and {call.max_length for call in generator.calls} == {48}
    assert [one.text for one in done] == [WRONG, WRONG, RIGHT]
    assert [one.verdict for one in done] == [False, False, True]
    assert [one.parent for one in done] == rows
    assert [one.author for one in done] == [Author.CRITIC] * 3
    assert [one.index for one in done] == [RowIndex(q, r, stage=Stage.CRITIQUE) for q, r in ((0, 0), (1, 3), (1, 4))]
    tokens = sum(len(one.token_ids) for one in done)
    assert counts == collections.Counter(
        critiqued=3, attempts=3, comparable=3, valid=3, judged_failed=2, judged_passed=1, tokens=tokens
    )


@pytest.mark.parametrize(
    ("first", "counted"),
    [(UNREADABLE, dict(malformed=1, judged_failed=1)), (RIGHT, dict(false_right=1, judged_failed=2))],
    ids=["malformed", "disagrees"],
)
def test_a_critique_that_can_not_be_used_is_written_again_with_another_key(first, counted):
    rows = [response(0, 0), response(1, 1)]
    script = lambda index: first if index.question == 1 and not index.attempt else WRONG  # noqa: E731
    done, counts, generator = cot(script, rows)
    assert [one.text for one in done] == [WRONG, WRONG]
    once, (again,) = generator.attempts  # only the one that could not be used
    assert [call.indices[0].attempt for call in once] == [0, 0]
    assert again.indices == [RowIndex(question=1, response=1, stage=Stage.CRITIQUE, attempt=1)]
    np.testing.assert_array_equal(again.prompt, once[1].prompt)
    assert done[1].index.attempt == 1 and done[1].parent is rows[1]
    tokens = sum(len(TOKENIZER.encode(text)) + 1 for text in (WRONG, first, WRONG))
    assert counts == collections.Counter(critiqued=2, attempts=3, comparable=2, valid=1, tokens=tokens, **counted)


def test_only_first_attempts_enter_the_rates():
    _, counts, _ = cot(by_attempt(RIGHT, RIGHT, UNREADABLE), [response(0, 0)])
    assert (counts["false_right"], counts["malformed"], counts["judged_failed"]) == (1, 0, 1)
    _, counts, _ = cot(by_attempt(WRONG, RIGHT), [response(0, 0, 1.0)])
    assert (counts["false_wrong"], counts["false_right"], counts["judged_passed"]) == (1, 0, 1)


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("text", [UNREADABLE, RIGHT])
def test_after_all_retries_the_indicative_critique_takes_its_place(text, max_retries):
    (done,), counts, generator = cot(text, [response(1, 2)], max_retries=max_retries)
    assert (done.text, done.author, done.verdict) == (INDICATIVE, Author.RULE, False)
    assert list(done.token_ids) == TOKENIZER.encode(INDICATIVE)
    assert counts["fallbacks"] == 1 and counts["attempts"] == max_retries + 1
    assert [call.indices[0].attempt for call in generator.calls] == list(range(max_retries + 1))
    assert len({key_of(call.indices[0]) for call in generator.calls}) == max_retries + 1
    assert PROBLEMS[1].answer not in done.text


@pytest.mark.parametrize("script, texts", [(by_attempt(UNREADABLE, RIGHT, WRONG), 2), (RIGHT, 3), (WRONG, 0)])
def test_attempts_that_were_rejected_stay_with_what_takes_their_place(script, texts):
    of = response(1, 2)
    (done,), _, _ = cot(script, [of])
    assert [one.text for one in done.rejected] == [
        script(one.index) if callable(script) else script for one in done.rejected
    ]
    assert [one.index.attempt for one in (*done.rejected, done)] == list(range(texts + 1))  # no two have the same
    assert all(one.parent is of and not one.rejected for one in done.rejected)


def test_a_critique_of_a_right_response_falls_back_to_right():
    (done,), _, _ = cot(UNREADABLE, [response(0, 0, 1.0)])
    assert done.text == "The answer is right. Conclusion: right [END]" and done.verdict is True


@pytest.mark.parametrize("see_answer", [True, False])
def test_the_reference_answer_is_shown_only_if_asked_for(see_answer):
    rows = [response(0, 0), response(1, 0)]
    _, _, generator = cot(by_attempt(UNREADABLE, WRONG), rows, see_answer=see_answer)
    shown = ["\nThe answer is 56 12.", "\nThe answer is 5 20."] if see_answer else ["", ""]
    prompts = [f"{p.question}\nTried: {t}{s}\nCheck." for p, t, s in zip(PROBLEMS, WRONG_TEXTS, shown, strict=True)]
    assert generator.asked == prompts * 2  # in the retry as well
    assert ("56 12" in generator.asked[0]) is see_answer


def test_the_reference_solution_is_shown_with_the_answer_to_a_critic_that_may_see_it():
    rows = [response(0, 0), response(1, 0)]
    _, _, generator = cot(by_attempt(UNREADABLE, WRONG), rows, see_answer=True, see_solution=True)
    shown = [f"{p.question}\nTried: {t}\nThe answer is {p.answer}. {p.solution}\nCheck." for p, t in
             zip(PROBLEMS, WRONG_TEXTS, strict=True)]  # fmt: skip
    assert generator.asked == shown * 2  # in the retry as well


def test_several_critiques_of_one_response():
    rows = [response(0, 0), response(0, 1)]
    script = lambda index: UNREADABLE if key_of(index)[2] == 1 and not index.attempt else WRONG  # noqa: E731
    done, counts, generator = cot(script, rows, num_critiques=2)
    assert [(one.index.response, one.index.critique, one.index.attempt) for one in done] == [
        (0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1),
    ]  # fmt: skip
    assert [one.parent.index.response for one in done] == [0, 0, 1, 1]
    assert (counts["critiqued"], counts["attempts"], counts["malformed"]) == (4, 6, 2)
    assert [len(calls) for calls in generator.attempts] == [4, 2]


def test_no_two_rows_of_an_iteration_have_one_key():
    """Two responses, two critiques each, two refinements after each, and two critiques of each of those."""
    responses = [response(0, 0), response(0, 1)]
    first, _, critic = cot(UNREADABLE, responses, num_critiques=2)
    policy = ScriptedGenerator(WRONG_TEXTS[0])
    refinements, _ = refined_by(policy, first, refinements_per_critique=2)
    scored = [one.replace(reward=0.0) for one in refinements]
    second, _, judge = cot(UNREADABLE, scored, num_critiques=2)
    assert (len(first), len(refinements), len(second)) == (4, 8, 16)
    drawn = [one.index for one in responses]
    calls = [call for generator in (critic, policy, judge) for call in generator.calls]
    drawn += [index for call in calls for index in call.indices]
    assert len({key_of(index) for index in drawn}) == len(drawn) == 2 + 3 * 4 + 8 + 3 * 16


def test_cut_prompts_are_counted():
    short = make(TOKENIZER, 24, **CHAINS)
    generator = ScriptedGenerator(by_attempt(UNREADABLE, WRONG), prompts=short)
    critic = Critic(kind="cot", generator=generator)
    rows = [response(0, 0).replace(text="7*8=56, " * 9), response(0, 1).replace(text="56")]
    _, counts = critiqued_by(critic, rows)
    assert counts["prompts_cut"] == 2  # the first, and again at its retry
    assert len(generator.calls) == 4 and all(len(call.prompt) <= 24 for call in generator.calls)


# 2. Critique by a rule.


@pytest.mark.parametrize(
    ("settings", "wrong", "right"),
    [
        (dict(kind="indicative"), "The answer is wrong.", "The answer is right."),
        (
            dict(kind="indicative_gt"),
            "The answer is wrong. The correct answer is 56 12.",
            "The answer is right. The correct answer is 56 12.",
        ),
        (
            dict(kind="execution", check_steps=arithmetic.check_steps),
            "Step 1 is wrong: 7*8=56, not 54.",
            "Every step that can be checked holds.",
        ),
        (
            dict(kind="execution", check_steps=arithmetic.check_steps, reveal_value=False),
            "Step 1 is wrong: 7*8=54 does not hold.",
            "Every step that can be checked holds.",
        ),
        (
            dict(kind="execution", check_steps=lambda question, text: None),
            "Every step that can be checked holds, but the answer is wrong.",
            "Every step that can be checked holds.",
        ),
        (dict(kind="none"), "The answer is wrong.", "The answer is right."),
    ],
    ids=["indicative", "indicative_gt", "execution", "execution, unrevealed", "execution, nothing found", "none"],
)
def test_critiques_by_rule(settings, wrong, right):
    rows = [response(0, 0), response(0, 1, 1.0)]
    done, counts = critiqued_by(Critic(**settings), rows, num_critiques=2)
    texts = [f"{wrong} Conclusion: wrong [END]"] * 2 + [f"{right} Conclusion: right [END]"] * 2
    assert [one.text for one in done] == texts
    assert [one.verdict for one in done] == [False, False, True, True]
    assert [one.parent for one in done] == [rows[0], rows[0], rows[1], rows[1]]
    assert all(one.author == Author.RULE and one.stage == Stage.CRITIQUE for one in done)
    assert all(TOKENIZER.decode(one.token_ids) == one.text for one in done)
    assert counts == collections.Counter(critiqued=4)  # nothing was attempted, so no rate of a model's is reported


@pytest.mark.parametrize("reveal", [True, False])
@pytest.mark.parametrize("grader", ["run", "problem"])
def test_programs_are_critiqued_by_their_tests(reveal, grader):
    problem = PROBLEMS[0].replace(grader="code" if grader == "problem" else "")
    found = "Test 1 of 2 fails: add(1, 2) returns 4. Tests passed: 1 of 2."
    rows = [response(0, 0).replace(feedback=f"{found}\nExpected: 3")]
    critic = Critic(kind="execution", grader="code" if grader == "run" else "math", reveal_value=reveal)
    ((((one,), _),)) = Orchestrator().run([critique(critic, rows, problem, encode=TOKENIZER.encode)])
    assert one.text == f"{found}{' Expected: 3.' if reveal else ''} Conclusion: wrong [END]"
    assert one.verdict is False


# The unsupervised variant: the verdict is the reward.


def unscored(number):
    return response(0, number).replace(reward=None)


def test_without_rewards_any_readable_verdict_is_taken():
    rows = [unscored(0), unscored(1), unscored(2)]
    script = {0: by_attempt(RIGHT), 1: by_attempt(UNREADABLE, WRONG), 2: by_attempt(UNREADABLE)}
    done, counts, generator = cot(lambda index: script[index.response](index), rows)
    assert [one.verdict for one in done] == [True, False, None]  # who can't be read has said nothing
    assert done[2].author == Author.RULE
    assert [len(calls) for calls in generator.attempts] == [3, 2, 1]
    assert (counts["valid"], counts["comparable"], counts["malformed"], counts["fallbacks"]) == (1, 3, 2, 1)
    assert not counts["judged_failed"] and not counts["judged_passed"]
    assert [one.reward for one in by_verdict(rows, done)] == [1.0, 0.0, 0.0]


def by_verdict(rows, verdicts, num_critiques=1, runs=None):
    scored = rollout.score_by_verdict(rows, verdicts, PROBLEMS[0], num_critiques=num_critiques)
    return (runs or Orchestrator()).run([scored])[0]


def verdicts(*said):
    """A critique that did not come is "none"."""
    return [types.SimpleNamespace(verdict=None if one == "none" else one, ungraded=one == "none") for one in said]


def test_most_of_several_verdicts_decide():
    rows = [unscored(i) for i in range(4)]
    said = verdicts(True, True, None, True, False, None, False, False, True, True, True, True)
    scored = by_verdict(rows, said, 3)
    assert [one.reward for one in scored] == [1.0, 0.0, 0.0, 1.0] and not any(one.ungraded for one in scored)
    assert by_verdict(rows[:1], said[3:5], 2)[0].reward == 0.0  # half is not more than half
    assert by_verdict([], [], 3) == []


@pytest.mark.parametrize(
    ("said", "reward", "ungraded"),
    [
        (["none"], 0.0, True),
        ([True, True, "none"], 1.0, False),
        ([True, False, "none"], 0.0, True),
        ([True, None, "none"], 0.0, True),
        ([False, None, "none"], 0.0, False),
        ([False, "none", "none"], 0.0, True),
        ([True, "none"], 0.0, True),
        ([False, "none"], 0.0, False),
    ],
)
def test_a_row_has_no_verdict_where_critiques_that_did_not_come_might_decide(said, reward, ungraded):
    runs = Orchestrator()
    (one,) = by_verdict([unscored(0)], verdicts(*said), len(said), runs)
    assert (one.reward, one.ungraded, runs.failures) == (reward, ungraded, int(ungraded))


def test_a_critic_that_never_answers_ends_the_run_like_a_grader():
    silent = [
        rollout.score_by_verdict([unscored(0), unscored(1)], verdicts("none", "none"), problem, num_critiques=1)
        for problem in (Problem(i, "a question", "") for i in range(4))
    ]
    said = r"grader 'critic' gave no verdict on any of 8 responses \(0 of 1 critiques call it right, and 1 did not come"
    with pytest.raises(GradingError, match=said):
        Orchestrator().run(silent)


def test_a_critique_that_is_not_answered_is_told_from_one_that_can_not_be_read():
    """The endpoint answers nothing about response 0, and nothing when it is asked again about response 1."""

    class Silent(ScriptedGenerator):
        async def write_critique(self, problem, row, index, **options):
            if index.response == 0 or index.attempt:
                return None, False
            return await super().write_critique(problem, row, index, **options)

    for script, missing in ((UNREADABLE, [True, True, True]), (WRONG, [True, False, False])):
        critic = Critic(kind="cot", generator=Silent(script))
        done, counts = critiqued_by(critic, [unscored(i) for i in range(3)])
        assert [one.ungraded for one in done] == missing and counts["unanswered"] == sum(missing)
    done, _, _ = cot(UNREADABLE, [unscored(0)])
    assert done[0].verdict is None and not done[0].ungraded


# 3. Refine.


def group(question, *rewards_N):
    return [response(question, i, reward) for i, reward in enumerate(rewards_N)]


@pytest.mark.parametrize(
    ("refine_max_pass", "expected"),
    [
        (0.0, [(1, 0), (1, 1), (1, 2), (1, 3)]),
        (0.25, [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]),
        (0.5, [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]),
        (1.0, [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]),
    ],
)
def test_which_responses_are_refined(refine_max_pass, expected):
    responses = [group(0, 1.0, 0.0, 0.0, 0.0), group(1, 0.0, 0.0, 0.0, 0.0)]
    found = [
        one for group in responses for one in to_refine(group, refine_max_pass=refine_max_pass, pass_threshold=1.0)
    ]
    assert [(one.index.question, one.index.response) for one in found] == expected


def test_a_question_above_the_share_is_not_refined_and_a_pass_never_is():
    responses = [group(0, 1.0, 1.0, 0.0), group(1, 1.0, 0.0)]
    find = lambda share: [  # noqa: E731
        one for group in responses for one in to_refine(group, refine_max_pass=share, pass_threshold=1.0)
    ]
    assert [one.index.question for one in find(0.5)] == [1]
    assert len(find(0.0)) == 0 and len(find(0.9)) == 2
    assert to_refine(group(0, 1.0, 1.0), refine_max_pass=1.0, pass_threshold=1.0) == []
    partial = [response(0, 0).replace(reward=0.6)]
    assert to_refine(partial, refine_max_pass=0.0, pass_threshold=0.5) == []
    assert len(to_refine(partial, refine_max_pass=0.0, pass_threshold=1.0)) == 1


def test_responses_without_a_verdict_are_not_refined_and_count_for_no_share():
    failed = response(0, 9).replace(ungraded=True)

    def found(rows, share):
        return [one.index.response for one in to_refine(rows, refine_max_pass=share, pass_threshold=1.0)]

    assert found([failed, *group(0, 0.0, 0.0), failed], 0.0) == [0, 1]
    assert found([*group(0, 1.0, 0.0), failed, failed], 0.4) == []  # half of those with a verdict pass
    assert found([failed], 1.0) == []


def test_a_response_without_a_verdict_accepts_any_critique_that_can_be_read():
    failed = [response(0, i).replace(ungraded=True) for i in range(2)]
    done, counts, _ = cot(lambda index: WRONG if index.response else RIGHT, failed)
    assert [one.verdict for one in done] == [True, False] and counts["attempts"] == 2
    assert counts == {"critiqued": 2, "attempts": 2, "tokens": counts["tokens"]}  # nobody knows if they are valid
    (_, counts, _) = cot(UNREADABLE, failed[:1], max_retries=0)
    assert counts["malformed"] == 1 and not counts["comparable"]


def test_a_grade_that_has_failed_is_no_verdict():
    async def grade(texts, problem, thinking_opened):
        return [
            grader_lib.Grade(0.0, None, "judge failed: timeout", failed=True),
            grader_lib.Grade(0.0, "1", "not equal"),
        ]

    (scored,) = Orchestrator().run([rollout.score(group(0, 0.0, 0.0), PROBLEMS[0], grade)])
    assert [(one.reward, one.ungraded) for one in scored] == [(0.0, True), (0.0, False)]


@pytest.mark.parametrize("shows", ["critique", "nothing"])
def test_refinements_are_sampled_after_question_response_and_critique(shows):
    critiqued = by_rule([response(0, 4), response(1, 2)])
    policy = ScriptedGenerator(WRONG_TEXTS[0], author=Author.POLICY)
    rows, counts = refined_by(policy, critiqued, refinements_per_critique=2, shows=shows)
    parts = ["\nCritique: Step 1 is wrong: 7*8=56, not 54. Conclusion: wrong [END]",
             "\nCritique: Step 2 is wrong: 5*4=20, not 21. Conclusion: wrong [END]"]  # fmt: skip
    parts = parts if shows == "critique" else ["", ""]
    assert policy.asked == [
        f"{p.question}\nTried: {t}{c}\nTry again." for p, t, c in zip(PROBLEMS, WRONG_TEXTS, parts, strict=True)
    ]
    assert [call.max_length for call in policy.calls] == [32, 32]
    assert [one.index for one in rows] == [
        RowIndex(q, n, refinement=r, stage=Stage.REFINEMENT) for q, n in ((0, 4), (1, 2)) for r in (0, 1)
    ]
    assert [one.parent for one in rows] == [critiqued[0], critiqued[0], critiqued[1], critiqued[1]]
    assert rows[3].parent.parent.index == RowIndex(1, 2)
    assert counts["refine_prompts_cut"] == 0


def test_a_refinement_of_a_retried_critique_starts_its_own_count():
    done, _, _ = cot(by_attempt(UNREADABLE, WRONG), [response(0, 0)])
    (one,), _ = refined_by(ScriptedGenerator("56"), done)
    assert done[0].index.attempt == 1
    assert one.index == RowIndex(question=0, stage=Stage.REFINEMENT)


def test_a_response_too_long_for_the_refine_prompt_is_cut_and_counted():
    rows = [response(0, 0).replace(text="7*8=54, " * 9), response(0, 1)]
    policy = ScriptedGenerator("56", prompts=make(TOKENIZER, 60, **CHAINS))
    _, counts = refined_by(policy, by_rule(rows, kind="indicative"))
    assert counts["refine_prompts_cut"] == 1
    assert len(policy.calls) == 2 and all(len(call.prompt) <= 60 for call in policy.calls)


def test_a_refine_prompt_that_can_not_be_made_leaves_no_coroutine_behind():
    made = iter([(PROMPTS.for_question("56"), False)])

    def for_refinement(*_):
        for prompt in made:
            return prompt
        raise UserError("no room")

    policy = ScriptedGenerator("56", prompts=types.SimpleNamespace(for_refinement=for_refinement))
    with pytest.raises(UserError, match="no room"):
        refined_by(policy, by_rule([response(0, 0), response(0, 1)]))
    assert not policy.calls
    gc.collect()  # a coroutine that was never awaited says so when it goes


def test_solutions_may_be_inserted_in_the_place_of_refinements():
    failed = [[response(0, 5)], [response(1, 2), response(1, 3)]]
    insert = lambda *given: rollout.insert_solution(*given, encode=TOKENIZER.encode, end_of_turn=END)  # noqa: E731
    rows = [one for group, problem in zip(failed, PROBLEMS, strict=True) for one in insert(group, problem)]
    assert insert([], PROBLEMS[0]) == []
    assert [one.text for one in rows] == [problem.solution for problem in PROBLEMS]
    assert [one.parent for one in rows] == [failed[0][0], failed[1][0]]
    for one in rows:
        assert list(one.token_ids) == [*TOKENIZER.encode(one.text), END]
        assert one.author == Author.SOLUTION and one.stage == Stage.REFINEMENT
    scoring = [rollout.score([one], problem, grade_traces) for one, problem in zip(rows, PROBLEMS, strict=True)]
    scored = [one for (one,) in Orchestrator().run(scoring)]
    assert [(one.reward, one.feedback) for one in scored] == [(1.0, "equal")] * 2 and rows[0].feedback == ""


# A teacher's feedback.


def feedback(rows, critiques, taught="failed"):
    found, counts = with_feedback(rows, critiques, PROBLEMS[0], PROMPTS, taught=taught, pass_threshold=1.0)
    assert not counts["feedback_prompts_cut"]
    return found


def test_a_failed_response_is_scored_after_its_question_itself_and_its_critique():
    rows = [response(0, 0), response(0, 1, 1.0), response(0, 2)]
    critiques, _ = critiqued_by(Critic(kind="indicative"), rows, 2)
    found = feedback(rows, critiques[:4])  # the last has none
    assert [row.feedback_ids is not None for row in found] == [True, False, False]
    expected, _ = PROMPTS.for_refinement(PROBLEMS[0].question, WRONG_TEXTS[0], INDICATIVE)
    np.testing.assert_array_equal(found[0].feedback_ids, expected)
    assert [row.text for row in found] == [row.text for row in rows] and found[1] is rows[1]
    assert [row.feedback_ids is not None for row in feedback(rows, critiques, "all")] == [True, True, True]
    assert all(row.feedback_ids is None for row in feedback(rows, critiques, "none"))


def test_a_response_without_a_verdict_has_no_teacher_and_a_refinements_critique_is_not_its_responses():
    row = response(0, 0).replace(ungraded=True)
    critiques, _ = critiqued_by(Critic(kind="indicative"), [response(0, 0)])
    assert feedback([row], critiques)[0].feedback_ids is None
    of_refinement = [one.replace(index=one.index.replace(refinement=1)) for one in critiques]
    assert feedback([response(0, 0)], of_refinement)[0].feedback_ids is None


def test_a_teachers_own_prompt_may_leave_the_response_out():
    critiques, _ = critiqued_by(Critic(kind="indicative"), [response(0, 0)])
    prompts = dataclasses.replace(PROMPTS, teacher="{question}\nCritique: {critique}\nTry again.")
    (found,), _ = with_feedback([response(0, 0)], critiques, PROBLEMS[0], prompts, taught="failed", pass_threshold=1.0)
    text = TOKENIZER.decode(found.feedback_ids)
    assert text.endswith(f"{PROBLEMS[0].question}\nCritique: {INDICATIVE}\nTry again.") and WRONG_TEXTS[0] not in text


def test_a_teachers_prompt_that_is_cut_is_counted():
    critiques, _ = critiqued_by(Critic(kind="indicative"), [response(0, 0)])
    expected, _ = PROMPTS.for_refinement(PROBLEMS[0].question, WRONG_TEXTS[0], INDICATIVE)
    short = make(TOKENIZER, len(expected) - 3, **CHAINS)
    (found,), counts = with_feedback(
        [response(0, 0)], critiques, PROBLEMS[0], short, taught="failed", pass_threshold=1.0
    )
    assert counts == {"feedback_prompts_cut": 1} and len(found.feedback_ids) <= len(expected) - 3


def test_a_teacher_sees_what_a_wrong_critique_shows():
    critiques, _ = critiqued_by(Critic(kind="indicative"), [response(0, 0)])
    shown = [one.replace(shown="All right.") for one in critiques]
    (found,) = feedback([response(0, 0)], shown)
    text = TOKENIZER.decode(found.feedback_ids)
    assert "All right." in text and INDICATIVE not in text
