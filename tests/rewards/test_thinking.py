"""Where thinking ends: in every kind of grader, whoever has opened it."""

import json
import time

import pytest

from cgrpo_jax.rewards import grade
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.rewards.thinking import after_thinking

ADD = json.dumps({"asserts": ["assert add(1, 2) == 3"]})
PROGRAM = "\n```python\ndef add(a, b):\n    return a + b\n```"
# A right and a wrong answer of each kind, with its gold answer.
ANSWERS = {
    "math": (r"so \boxed{5}", r"so \boxed{6}", "5"),
    "numeric": ("The answer is 5", "The answer is 6", "5"),
    "choice": ("The answer is B", "The answer is C", "B"),
    "exact": ("Answer: Paris", "Answer: Rome", "Paris"),
    "trace": ("Answer: 1 2", "Answer: 1 3", "1 2"),
    "code": (PROGRAM, PROGRAM.replace("+", "-"), ADD),
}
# A response, whether its prompt opened the thinking, and its scores: after the thinking, and anywhere.
RESPONSES = [
    ("{right}", False, 1, 1),
    ("{wrong}", False, 0, 0),
    ("{right}", True, 0, 1),  # cut off within what the prompt opened
    ("<think>{right}", False, 0, 1),
    ("<think>{right}", True, 0, 1),  # opened twice
    ("hm</think>\n\n{right}", True, 1, 1),
    ("hm</think>\n\n{right}", False, 1, 1),
    ("{right}\n</think>\n{wrong}", True, 0, 0),
    ("{wrong}\n</think>\n{right}", True, 1, 1),
    ("<think>{wrong}\n</think>\n{right}", False, 1, 1),
    ("{right}\n</think>\n", True, 0, 1),  # says nothing after it
    ("</think>\n{right}\n<think>\n{wrong}", True, 1, 0),  # goes on to think
    ("{wrong}</think>{wrong}</think>\n{right}", True, 1, 1),
    ("[THINK]{wrong}\n[/THINK]\n{right}", False, 1, 1),
    ("<|begin_of_thought|>{right}", False, 0, 1),
]


@pytest.fixture(scope="module")
def graders():
    with Grader("math", num_workers=1) as after, Grader("math", num_workers=1, thinking="anywhere") as anywhere:
        for kind, (right, _, gold) in ANSWERS.items():  # starts the workers
            after.submit(right, gold, kind=kind).result(), anywhere.submit(right, gold, kind=kind).result()
        yield after, anywhere


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_counts_after_the_thinking_or_anywhere(graders, kind):
    right, wrong, gold = ANSWERS[kind]
    found = {}
    for response, opened, *expected in RESPONSES:
        text = response.replace("{right}", right).replace("{wrong}", wrong)
        rows = [one.submit(text, gold, kind=kind, thinking_opened=opened) for one in graders]
        scores = [row.result().score for row in rows]
        compared = 2 if kind in ("math", "numeric", "code") else 1  # others read to the end of a line, tags and all
        if scores[:compared] != expected[:compared]:
            found[response, opened] = scores
    assert not found


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_response_cut_off_within_its_thinking_has_no_answer(graders, kind):
    right, _, gold = ANSWERS[kind]
    cut = graders[0].submit(right, gold, kind=kind, thinking_opened=True).result()
    assert (cut.score, cut.extracted, cut.timed_out, cut.failed) == (0.0, None, False, False)


def test_who_grades_once_says_what_the_prompt_opened():
    assert [one.score for one in grade("exact", ["5"], ["5"])] == [1.0]
    assert [one.score for one in grade("exact", ["5"], ["5"], thinking_opened=True)] == [0.0]
    assert [one.score for one in grade("exact", ["<think>5"], ["<think>5"], thinking="anywhere")] == [1.0]


def test_a_users_function_gets_whole_responses(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def length(completions, **_):\n    return [float(len(text)) for text in completions]\n")
    with Grader(f"{file}:length", num_workers=1) as grader:
        texts = ["<think>a</think>b", "ab"]
        rows = [grader.submit(text, "", thinking_opened=True) for text in texts]
        assert [row.result().score for row in rows] == [float(len(text)) for text in texts]


@pytest.mark.parametrize(
    "text, opened, said",
    [
        ("<think>a</think>b", False, "b"),
        ("a</think>b", False, "b"),
        ("b<think>a", False, "b"),
        ("b", False, "b"),
        ("b", True, ""),
        ("a</think>\r\n\n  b\n", True, "  b\n"),  # a program keeps its indentation
        ("<think>\n\n</think>\n\nb", False, "b"),
        ("", True, ""),
        ("a < think> b", False, "a < think> b"),
        ("<think>[/THINK]b", False, "b"),
    ],
)
def test_after_thinking(text, opened, said):
    assert after_thinking(text, opened=opened) == said


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<", "[THINK] [/THINK]"])
def test_it_takes_linear_time(piece):
    started = time.process_time()
    after_thinking(piece * (1_000_000 // len(piece)), opened=True)
    assert time.process_time() - started < 0.5
