"""The quickstart's task: chains worked by hand, critiques of wrong work, problems, the tokenizer."""

import importlib.resources
import itertools
import random
import re

import pytest
import sentencepiece
import time_growth

from cgrpo_jax.critiques import texts as texts_lib
from cgrpo_jax.critiques.step_check.equations import StepError
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.rewards import grader

ASSETS = importlib.resources.files("cgrpo_jax") / "assets" / "arithmetic"
HELD_OUT = arithmetic.held_out_facts(16)


def test_a_chain_carries_the_last_digit_of_each_result():
    assert arithmetic.trace("7*8+6*3") == [((7, "*", 8), 56), ((6, "+", 6), 12), ((2, "*", 3), 6)]
    assert arithmetic.trace("5*2*9") == [((5, "*", 2), 10), ((0, "*", 9), 0)]
    assert arithmetic.solution("7*8+6*3") == "7*8=56, 6+6=12, 2*3=6. Answer: 56 12 6"
    assert arithmetic.answer("7*8+6*3") == "56 12 6"


def test_a_forced_result_is_what_the_following_steps_build_on():
    forced = arithmetic.trace("7*8+6*3", {1: 54})
    assert forced == [((7, "*", 8), 54), ((4, "+", 6), 10), ((0, "*", 3), 0)]
    assert arithmetic.trace("7*8+6*3", {3: 9})[:2] == arithmetic.trace("7*8+6*3")[:2]
    assert arithmetic.write(forced) == "7*8=54, 4+6=10, 0*3=0. Answer: 54 10 0"


@pytest.mark.parametrize("question", ["", "7", "7*", "7*8-6", "17*8", "7 * 8", "7*8=56"])
def test_what_is_no_chain_is_an_error(question):
    with pytest.raises(UserError, match="is not a chain of one-digit sums and products"):
        arithmetic.trace(question)


@pytest.mark.parametrize(
    ("response", "error", "critique", "unrevealed"),
    [
        (
            "7*8=56, 6+6=13, 3*3=9. Answer: 56 13 9",
            StepError(2, "6+6=13", "13", "12"),
            "Step 2 is wrong: 6+6=12, not 13.",
            "Step 2 is wrong: 6+6=13 does not hold.",
        ),
        (  # other digits than the chain has there
            "7*8=56, 5+6=11, 1*3=3. Answer: 56 11 3",
            StepError(2, "6+6=11", "11", "12"),
            "Step 2 is wrong: 6+6=12, not 11.",
            "Step 2 is wrong: 6+6=11 does not hold.",
        ),
        (  # other digits with the result that was asked for
            "7*8=56, 5+7=12, 2*3=5. Answer: 56 12 5",
            StepError(2, "6+6=5+7=12", "5+7=12", "12"),
            "Step 2 is wrong: 6+6=12, not 5+7=12.",
            "Step 2 is wrong: 6+6=5+7=12 does not hold.",
        ),
        (  # 17*8=56 only ends in 7*8=56
            "17*8=136, 6+6=12, 2*3=6. Answer: 136 12 6",
            StepError(1, "7*8=136", "136", "56"),
            "Step 1 is wrong: 7*8=56, not 136.",
            "Step 1 is wrong: 7*8=136 does not hold.",
        ),
        (  # another operator
            "7*8=56, 6*6=36, 6*3=18. Answer: 56 36 18",
            StepError(2, "6+6=36", "36", "12"),
            "Step 2 is wrong: 6+6=12, not 36.",
            "Step 2 is wrong: 6+6=36 does not hold.",
        ),
        (  # a step left out: what stands in its place
            "7*8=56, 2*3=6. Answer: 56 6",
            StepError(2, "6+6=6", "6", "12"),
            "Step 2 is wrong: 6+6=12, not 6.",
            "Step 2 is wrong: 6+6=6 does not hold.",
        ),
        (
            "7*8=56, 6+6=12. Answer: 56 12",
            StepError(3, "2*3=nothing", "nothing", "6"),
            "Step 3 is wrong: 2*3=6, not nothing.",
            "Step 3 is wrong: 2*3=nothing does not hold.",
        ),
        (  # steps after the answer are not looked at
            "Answer: 7*8=56, 6+6=12, 2*3=6",
            StepError(1, "7*8=nothing", "nothing", "56"),
            "Step 1 is wrong: 7*8=56, not nothing.",
            "Step 1 is wrong: 7*8=nothing does not hold.",
        ),
    ],
    ids=[
        "result",
        "operand",
        "result of other digits",
        "longer number",
        "operator",
        "left out",
        "missing",
        "after the answer",
    ],
)
def test_the_first_wrong_step_is_named(response, error, critique, unrevealed):
    assert arithmetic.check_steps("7*8+6*3", response) == error
    assert texts_lib.execution(False, error) == f"{critique} Conclusion: wrong [END]"
    assert texts_lib.execution(False, error, reveal_value=False) == f"{unrevealed} Conclusion: wrong [END]"
    assert not grader.grade("trace", [response], ["56 12 6"])[0].score


@pytest.mark.parametrize(
    "response",
    [
        "7*8=56, 6+6=12, 2*3=6. Answer: 56 12 6",
        "so 7*8=56 and then 6+6=12\n2*3=6 Answer: 1",  # only the steps are judged
        "7*8=56, 6+6=12, 2*3=6, 6*9=54. Answer: 54",  # what follows the chain is not
    ],
)
def test_right_steps_hold_whatever_stands_around_them(response):
    assert arithmetic.check_steps("7*8+6*3", response) is None
    assert texts_lib.execution(False, None) == (
        "Every step that can be checked holds, but the answer is wrong. Conclusion: wrong [END]"
    )


def test_other_digits_are_wrong_though_their_result_is_the_chains():
    response = "7*8=56, 5+7=12, 2*3=6. Answer: 56 12 6"
    assert arithmetic.check_steps("7*8+6*3", response).step == 2


def test_digits_without_end_are_quoted_in_part_and_read_in_linear_time():
    error = arithmetic.check_steps("7*8+6*3", "7*8=" + "5" * 4000)
    assert error.given == "5" * 20 and len(error.text) == 24
    for piece in ("1", "1+", "1*1", "7*8=5", "7*8=56 "):
        assert time_growth.is_linear(lambda text: arithmetic.check_steps("7*8+6*3", text), piece, short=12_000)


def test_self_check_recomputes_up_to_the_first_wrong_step():
    check = arithmetic.self_check
    assert check("7*8+6*3", arithmetic.solution("7*8+6*3")) == (
        "7*8=56, 6+6=12, 2*3=6. Every step that can be checked holds. Conclusion: right [END]"
    )
    assert check("7*8+6*3", "7*8=56, 6+6=13, 3*3=9. Answer: 56 13 9") == (
        "7*8=56. Step 2 is wrong: 6+6=12, not 13. Conclusion: wrong [END]"
    )
    assert check("7*8+6*3", "7*8=54") == "Step 1 is wrong: 7*8=56, not 54. Conclusion: wrong [END]"


def test_made_up_results_are_never_the_true_one():
    rng = random.Random(0)
    assert {arithmetic.made_up_result(rng, 56) for _ in range(3000)} == set(range(82)) - {56}


@pytest.mark.parametrize("count", range(50))
def test_held_out_facts_are_products_in_both_orders(count):
    for seed in (0, 1, 7):
        chosen = arithmetic.held_out_facts(count, seed=seed)
        assert len(chosen) == count
        assert {(b, op, a) for a, op, b in chosen} == chosen
        assert all(op == "*" and 3 <= a <= 9 and 3 <= b <= 9 for a, op, b in chosen)
        assert chosen <= set(arithmetic.facts())
        assert chosen == arithmetic.held_out_facts(count, seed=seed)


def test_held_out_facts_depend_on_the_seed_and_have_a_limit():
    assert arithmetic.held_out_facts(16, seed=1) != HELD_OUT
    for count in (-1, 50):
        with pytest.raises(UserError, match=f"num_held_out {count} is not possible"):
            arithmetic.held_out_facts(count)


def held_out_in(question):
    return sum(fact in HELD_OUT for fact, _ in arithmetic.trace(question))


def make(num, **keywords):
    keywords = dict(seed=0, length=3, held_out=HELD_OUT, hard_share=0.6) | keywords
    return arithmetic.make_problems(num, **keywords)


def test_problems_are_different_and_of_the_share_asked_for():
    problems = make(250)
    questions = [problem.question for problem in problems]
    assert len(set(questions)) == 250
    assert [problem.index for problem in problems] == list(range(250))
    counts = [held_out_in(question) for question in questions]
    assert (counts.count(1), counts.count(0)) == (150, 100)
    assert 0 < sum(counts[:50]) < 50  # hard and easy ones are mixed
    assert all(re.fullmatch(r"[2-9]([+*][2-9]){3}", question) for question in questions)
    assert make(250) == problems and make(250, seed=1) != problems


@pytest.mark.parametrize(("share", "hard"), [(0.0, 0), (0.34, 14), (1.0, 40)])
def test_the_share_of_hard_questions(share, hard):
    assert sum(held_out_in(problem.question) for problem in make(40, hard_share=share)) == hard


def test_without_held_out_facts_no_question_is_hard():
    assert len(make(20, held_out=frozenset())) == 20


def test_held_out_questions_are_not_those_of_training():
    train = [problem.question for problem in make(400, length=2)]
    test = [problem.question for problem in make(200, length=2, seed=1, exclude=train)]
    assert len(set(test)) == 200 and not set(train) & set(test)
    assert set(train) & {problem.question for problem in make(200, length=2, seed=1)}  # nothing but `exclude` did it


def test_more_questions_than_there_are_is_an_error():
    with pytest.raises(UserError, match="fewer than 200 different chains of 1 steps"):
        make(200, length=1, hard_share=0.0)  # 8 * 2 * 8 = 128, less the 16 products


def test_every_answer_is_accepted_and_every_neighbour_is_not():
    problems = make(60)
    answers = [problem.answer for problem in problems]
    grader.check_gold("trace", answers)
    assert all(grade.score == 1 for grade in grader.grade("trace", [p.solution for p in problems], answers))
    for problem in problems:
        assert arithmetic.check_steps(problem.question, problem.solution) is None
        assert problem.solution.endswith(f"Answer: {problem.answer}")
    last = [f"Answer: {answer.split()[-1]}" for answer in answers]  # a lucky last digit
    assert not any(grade.score for grade in grader.grade("trace", last, answers))


# The tokenizer.


def pieces(model):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


def test_the_packages_tokenizer_is_what_its_recipe_writes(tmp_path):
    arithmetic.train_tokenizer(tmp_path / "new")
    assert pieces(tmp_path / "new" / "tokenizer.model") == pieces(ASSETS / "tokenizer.model")


def test_the_tokenizer_knows_all_that_the_task_writes():
    tokenizer = load_tokenizer(ASSETS)
    unknown = 0
    assert tokenizer.end_of_turn_id == 3 and tokenizer.eos_ids == (3,)
    rng = random.Random(0)
    texts = [f"7*8={value}" for value in range(100)]
    for question in itertools.islice(arithmetic.rare_chains(rng, [1, 2, 3, 4], HELD_OUT), 50):
        wrong = arithmetic.write(arithmetic.trace(question, {1: 3}))
        error = arithmetic.check_steps(question, wrong)
        texts += [question, wrong, arithmetic.solution(question), arithmetic.self_check(question, wrong)]
        texts += [texts_lib.execution(False, error), texts_lib.execution(False, error, reveal_value=False)]
        texts += [texts_lib.execution(passed, None) for passed in (True, False)]
        texts += [texts_lib.indicative(passed, answer=arithmetic.answer(question)) for passed in (True, False)]
        texts.append(arithmetic.self_check(question, "no steps"))
    for text in texts:
        ids = tokenizer.encode(text)
        assert unknown not in ids and tokenizer.end_of_turn_id not in ids
        assert tokenizer.decode(ids) == text


def test_numbers_up_to_two_digits_are_one_token():
    tokenizer = load_tokenizer(ASSETS)
    assert all(len(tokenizer.encode(str(number))) == 1 for number in range(100))
    assert len(tokenizer.encode("7*8=56, 6+6=12. Answer: 56 12")) == 15
