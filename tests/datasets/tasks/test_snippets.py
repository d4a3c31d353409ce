"""The code task: questions worked by hand, what the grader says of wrong programs, problems, the tokenizer."""

import importlib.resources
import json
import random
import re

import pytest
import sentencepiece

from cgrpo_jax.critiques import texts as texts_lib
from cgrpo_jax.datasets.tasks import snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.rewards import grader

ASSETS = importlib.resources.files("cgrpo_jax") / "assets" / "snippets"
GLOSSARY = snippets.make_glossary(8)
WORDS = {"dofu": ("*", 7), "kebo": ("-", 11)}


def test_a_question_asks_for_an_operation_on_each_argument():
    question = snippets.ask(["plus 3", "dofu", "kebo"])
    assert question == "f(a, b, c): a plus 3, b dofu, c kebo"
    assert snippets.names_in(question) == ["plus 3", "dofu", "kebo"]
    right = snippets.steps(question, WORDS)
    assert right == [("+", 3), ("*", 7), ("-", 11)]
    assert snippets.run(right, (4, 2, 5)) == [7, 14, -6]
    program = snippets.write(right)
    assert program == "def f(a, b, c): return [a+3, b*7, c-11]"
    names = {}
    exec(program, names)
    assert names["f"](4, 2, 5) == [7, 14, -6]


@pytest.mark.parametrize(
    "question", ["", "f(a): ", "f(a): b plus 3", "f(a, b): a plus 3", "f(a): a plus 3, b dofu", "plus 3", "f(a):a dofu"]
)
def test_what_is_no_question_is_an_error(question):
    with pytest.raises(UserError, match="is no question such as"):
        snippets.steps(question, WORDS)


@pytest.mark.parametrize("name", ["plus 1", "plus 21", "plus", "over 3", "dofu 3", "nono", "plus  3"])
def test_what_is_no_operation_is_an_error(name):
    with pytest.raises(UserError, match=f"'{name}' is no operation; use plus, minus, times with a number from 2 to 20"):
        snippets.steps(snippets.ask(["dofu", name]), WORDS)


def test_the_glossary_keeps_apart_what_is_taught():
    assert len(GLOSSARY.taught) == snippets.NUM_TAUGHT and len(GLOSSARY.held_out) == 8
    assert not set(GLOSSARY.taught) & set(GLOSSARY.held_out)
    assert len(set(GLOSSARY.held_out.values())) == 8 and len(set(GLOSSARY.taught.values())) == snippets.NUM_TAUGHT
    assert all(re.fullmatch(r"([^aeiou][aeiou]){2}", word) for word in GLOSSARY.words)
    assert set(GLOSSARY.words.values()) <= set(snippets.operations())
    assert snippets.make_glossary(8) == GLOSSARY != snippets.make_glossary(8, seed=1)
    rng = random.Random(0)
    assert not {snippets.coin(rng, GLOSSARY) for _ in range(5000)} & set(GLOSSARY.words)


@pytest.mark.parametrize("count", [-1, 58])
def test_there_are_as_many_held_out_words_as_operations(count):
    with pytest.raises(UserError, match=f"num_held_out {count} is not possible; 0 to 57 words"):
        snippets.make_glossary(count)


def test_the_first_test_alone_tells_any_two_operations_apart():
    first = snippets.pick_inputs("f(a): a dofu")[0]
    assert len({snippets.run([step], first)[0] for step in snippets.operations()}) == len(snippets.operations())


def test_the_answer_is_three_asserts():
    asserts = json.loads(snippets.answer("f(a, b): a plus 3, b dofu", WORDS))["asserts"]
    assert asserts[:2] == ["assert f(21, 21) == [24, 147]", "assert f(2, 2) == [5, 14]"]
    (a, b, c, d) = map(int, re.fullmatch(r"assert f\((\d), (\d)\) == \[(\d+), (\d+)\]", asserts[2]).groups())
    assert (c, d) == (a + 3, 7 * b)
    assert snippets.answer("f(a, b): a plus 3, b dofu", WORDS) == json.dumps({"asserts": asserts})


RIGHT = [("+", 3), ("*", 7)]


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (RIGHT, "passes all 3 tests"),
        (
            [("+", 5), ("*", 7)],
            "Test 1 of 3 fails: f(1, 1) returns [6, 7]. Tests passed: 0 of 3.\nExpected: [4, 7]",
        ),
        (
            [("+", 3), ("-", 9)],
            "Test 1 of 3 fails: f(1, 1) returns [4, -8], wrong from index 1 on. Tests passed: 0 of 3.\n"
            "Expected: [4, 7], at index 1 7",
        ),
        (  # they agree on 1
            [("+", 3), ("+", 6)],
            "Test 2 of 3 fails: f(2, 2) returns [5, 8], wrong from index 1 on. Tests passed: 1 of 3.\n"
            "Expected: [5, 14], at index 1 14",
        ),
    ],
)
def test_feedback(attempt, said):
    assert snippets.feedback(attempt, RIGHT, [(1, 1), (2, 2), (5, 4)]) == said


def test_the_grader_says_the_same():
    """The real one, which runs the programs, of right and wrong ones of one to three arguments."""
    rng, cases = random.Random(0), []
    for length in (1, 2, 3):
        for question, _ in zip(snippets.questions(rng, [length], GLOSSARY, hard=True), range(8), strict=False):
            right = snippets.steps(question, GLOSSARY.words)
            attempt = [step if rng.random() < 0.6 else rng.choice(snippets.operations()) for step in right]
            cases.append((question, attempt, snippets.feedback(attempt, right, snippets.pick_inputs(question))))
    answers = [snippets.answer(question, GLOSSARY.words) for question, _, _ in cases]
    grades = grader.grade("code", [snippets.write(attempt) for _, attempt, _ in cases], answers)
    assert [grade.reason for grade in grades] == [said for _, _, said in cases]
    passed = [said.startswith("passes") for _, _, said in cases]
    assert [grade.score for grade in grades] == passed
    assert 0 < sum(passed) < len(passed)


# Problems.


def make(num, **changes):
    return snippets.make_problems(num, **(dict(seed=0, length=2, glossary=GLOSSARY, hard_share=0.6) | changes))


def held_out_in(question):
    return sum(name in GLOSSARY.held_out for name in snippets.names_in(question))


def test_problems_are_different_and_the_same_again():
    problems = make(200)
    questions = [problem.question for problem in problems]
    assert len(set(questions)) == 200 and [problem.index for problem in problems] == list(range(200))
    counts = [held_out_in(question) for question in questions]
    assert set(counts) == {0, 1} and sum(counts) == 120
    assert 0 < sum(counts[:50]) < 50  # hard and easy ones are mixed
    assert make(200) == problems and make(200, seed=1) != problems
    assert {name for question in questions for name in snippets.names_in(question)} >= set(GLOSSARY.words)
    assert held_out_in(make(1, length=3, hard_share=1.0)[0].question) == 1


def test_held_out_questions_are_not_those_of_training():
    train = [problem.question for problem in make(60, length=1, hard_share=0.0)]
    test = [problem.question for problem in make(20, length=1, hard_share=0.0, seed=1, exclude=train)]
    assert len(set(test)) == 20 and not set(train) & set(test)
    assert set(train) & {problem.question for problem in make(20, length=1, hard_share=0.0, seed=1)}


def test_no_question_is_hard_without_held_out_words():
    assert len(make(20, glossary=snippets.make_glossary(0))) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "there are fewer than 100 questions of 1 operations; ask for fewer"),  # 57 + 24
        ({"length": 5}, "5 operations are not possible, programs have 1 to 4 arguments; change data.chain_length"),
    ],
)
def test_problems_that_can_not_be_made(changes, message):
    with pytest.raises(UserError, match=message):
        make(100, hard_share=0.0, **changes)


def test_every_solution_passes():
    problems = make(6)
    answers = [problem.answer for problem in problems]
    grader.check_gold("code", answers)
    assert all(grade.score == 1 for grade in grader.grade("code", [p.solution for p in problems], answers))


# The tokenizer.


def pieces(model):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


def test_the_packages_tokenizer_is_what_its_recipe_writes(tmp_path):
    snippets.train_tokenizer(tmp_path / "new")
    assert pieces(tmp_path / "new" / "tokenizer.model") == pieces(ASSETS / "tokenizer.model")


def test_the_tokenizer_knows_all_that_the_task_writes():
    tokenizer = load_tokenizer(ASSETS)
    assert tokenizer.eos_ids == (tokenizer.end_of_turn_id,)
    rng, texts = (
        random.Random(0),
        ["The answer is right. Conclusion: right [END]", "the program raises SyntaxError: `a$`"],
    )
    for question, _ in zip(snippets.questions(rng, [1, 2, 3, 4], GLOSSARY, hard=True), range(50), strict=False):
        right = snippets.steps(question, GLOSSARY.words)
        attempt = [rng.choice(snippets.operations()) for _ in right]
        said = snippets.feedback(attempt, right, snippets.pick_inputs(question))
        texts += [question, snippets.write(attempt), texts_lib.of_tests(False, said), texts_lib.indicative(False)]
        texts += [texts_lib.of_tests(False, said, reveal_value=False), texts_lib.of_tests(True, "passes all 3 tests")]
    for text in texts:
        ids = tokenizer.encode(text)
        assert 0 not in ids and tokenizer.end_of_turn_id not in ids
        assert tokenizer.decode(ids) == text


def test_texts_are_short():
    tokenizer = load_tokenizer(ASSETS)
    assert len(tokenizer.encode("f(a, b): a plus 3, b dofu")) == 8
    assert len(tokenizer.encode("def f(a, b): return [a+3, b*17]")) == 9
    said = snippets.feedback([("+", 3), ("+", 9)], RIGHT, [(1, 1), (2, 2), (5, 4)])
    assert len(tokenizer.encode(texts_lib.of_tests(False, said))) <= 24
