import random
import subprocess
import sys
import textwrap
import time

import math_verify
import pytest
import slow_grading
import tiny_run
from grader_cases import calls

from cgrpo_jax.datasets import problems
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import comparisons, mathematics, user_functions
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rewards.worker_pool import Outcome
from cgrpo_jax.runs import load_questions, stages


@pytest.fixture(scope="module")
def math_grader():
    with grader_lib.Grader("math", num_workers=1, timeout=30.0) as grader:
        yield grader


def _scores(kind, *rows):
    return [grade.score for grade in grader_lib.grade(kind, *zip(*rows, strict=True))]


def test_exact():
    rows = [
        ("x\nAnswer:  New   York \nbye", "New York"),
        ("New York", " New York"),
        ("Answer: a\nAnswer: b", "a"),
        ("", "a"),
    ]
    assert _scores("exact", *rows) == [1, 1, 0, 0]


def test_trace():
    right = "7*8=56 6+6=12 Answer: 56 12"
    rows = [(right, "56 12"), (right, "56  12 "), (right, "56 13"), ("56 12", "56 12"), (right + " 3", "56 12")]
    assert _scores("trace", *rows) == [1, 1, 0, 0, 0]
    assert grader_lib.grade("trace", [right], ["56 12"]) == [grader_lib.Grade(1.0, "56 12", "equal")]


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ("so 16 - 3 = 13, hence $1,200.50.", "1200.5", 1),
        ("that is 50%.", "50", 1),
        ("it is 50", "50%", 1),
        ("it is 1,234 or 7", "1,234", 0),
        ("7-3", "3", 1),
        ("it is -3", "3", 0),
        ("it is \u22123.", "-3", 1),
        ("0.33333333", "0.333333333", 1),
        ("0.33333", "0.333333333", 0),
        ("none", "3", 0),
        ("<think>it is 3</think> no 4", "3", 0),
        ("<think>it is 3", "3", 0),
        ("9" * 500, "3", 0),
    ],
)
def test_numeric(response, gold, score):
    assert _scores("numeric", (response, gold)) == [score]


@pytest.mark.parametrize("kind", ["math", *comparisons.COMPARE])
def test_odd_responses_get_a_grade(kind, math_grader):
    odd = ["", "\\boxed{", "{{}}" * 50, "Answer:", "\x00\ud800", "\u0665", "-" * 2000, "\\boxed{\\frac{7}{}}"]
    grader = math_grader if kind == "math" else grader_lib.Grader(kind)
    grades = grader.grade(odd, ["B" if kind == "choice" else "1"] * len(odd))
    assert [grade.score for grade in grades] == [0.0] * len(odd)
    assert all(grade.reason for grade in grades)


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        (r"thus $\boxed{\frac{1}{2}}$", "0.5", 1),
        (r"\boxed{3} no, \boxed{4}", "3", 0),
        (r"$x=\boxed{2}$ or $x=\boxed{3}$", "2, 3", 0),  # text between the boxes: only the last one counts
        (r"\boxed{2} or \boxed{3}", "3, 2", 1),
        (r"\boxed{2}, \boxed{3}", "3", 0),  # boxing every candidate does not pay
        ("The answer is 42.", "42", 1),
        (r"<think>\boxed{3}</think> \boxed{4}", "3", 0),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3, \pi/2)", 1),
        (r"\boxed{1,234}", "1234", 1),
        (r"\boxed{\text{(C)}}", r"\text{(C)}", 1),
        ("I don't know", "42", 0),
    ],
)
def test_math(response, gold, score, math_grader):
    assert math_grader.grade([response], [gold])[0].score == score


def test_unreadable_gold_is_never_rewarded(math_grader):
    grade = math_grader.grade([r"\boxed{\frac{}"], [r"\frac{"])[0]
    assert grade.score == 0.0 and "can't be read" in grade.reason
    for kind in ("numeric", "exact", "trace"):
        assert grader_lib.grade(kind, ["Answer:"], [""])[0].score == 0.0


def test_check_gold_names_rows():
    grader_lib.check_gold("math", ["18", r"\frac{14}{3}", "p - q", "-0.5"])
    with pytest.raises(UserError, match=r"2 of 3 gold answers .*row 1: ''; row 3: '\?\?\?'"):
        grader_lib.check_gold("math", ["", "1", "???"])
    with pytest.raises(UserError, match=r"7 of 8 .*row 6: 'x'; \.\.\."):
        grader_lib.check_gold("numeric", ["x", "$1,000.50", *["x"] * 6])
    grader_lib.check_gold("numeric", ["50%", "-3", ".5", "\u22122."])
    with pytest.raises(UserError, match="row 2: ' '"):
        grader_lib.check_gold("exact", ["a", " "])


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_check_gold_says_which_names_tests_use():
    good, unclear = '{"asserts": ["assert f(1)"]}', '{"asserts": ["assert f(1) == h(g(2))"]}'
    grader_lib.check_gold("code", [good], timeout=30.0)
    with pytest.raises(UserError, match="1 of 2 gold answers can't be read by grader 'code'") as caught:
        grader_lib.check_gold("code", [good, unclear], timeout=30.0)
    why = "its tests use f, g and h: say in `names` which come from the program"
    assert f"(row 2: {unclear!r}, {why}); fix" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_tests_of_programs_may_use_numpy_where_it_is_allowed():
    gold = '{"asserts": ["import numpy as np; assert np.all(f(1) == np.ones(1))"]}'
    with pytest.raises(UserError, match="1 of 1 gold answers can't be read by grader 'code'.*numpy"):
        grader_lib.check_gold("code", [gold], timeout=30.0)
    grader_lib.check_gold("code", [gold], timeout=30.0, numpy=True)


def test_gold_answers_are_checked_with_the_limits_of_the_run(monkeypatch):
    made, workers = [], grader_lib.Workers

    def make(number, **options):
        made.append((number, options["timeout"]))
        return workers(number, **options)

    monkeypatch.setattr(grader_lib, "Workers", make)
    grader_lib.check_gold("math", ["p - q"], timeout=33.0, num_workers=1)
    assert made == [(1, 33.0)]
    config = tiny_run.config({"grader.kind": "math", "grader.timeout": 34.0, "grader.num_workers": 3})
    limits = load_questions._limits(config, stages.of_training(config))
    problems._check_gold([Problem(0, "?", "p - q"), Problem(1, "?", "B", grader="choice")], limits)
    assert made == [(1, 33.0), (3, 34.0)]


def test_unknown_kind():
    with pytest.raises(
        UserError, match="'maths' is unknown; use one of math, exact, trace, numeric, choice, code, judge, or"
    ):
        grader_lib.grade("maths", [], [])


def test_worker_crash_is_a_zero_and_the_next_row_is_graded(math_grader):
    import os

    died = math_grader._pool("math").call(os._exit, 3).outcome()
    assert died == Outcome(None, "worker died (exit code 3)")
    assert math_grader.grade([r"\boxed{7}"], ["7"])[0].score == 1.0


@pytest.mark.parametrize("number", [1, 3])
def test_a_response_whose_worker_dies_twice_has_no_verdict(monkeypatch, number):
    """The second time it is alone."""
    monkeypatch.setattr(mathematics, "grade", slow_grading.grade)
    with grader_lib.Grader("math", num_workers=1, timeout=30.0) as grader:
        sizes = calls(grader, monkeypatch)
        grades = grader.grade(["die"] + ["1"] * (number - 1), ["1"] * number)
    assert grades[0] == grader_lib.Grade(0.0, None, "worker died (exit code 9)", failed=True)
    assert [grade.score for grade in grades[1:]] == [1.0] * (number - 1)
    assert sizes == [number] + [1] * number


def test_a_worker_that_is_killed_once_costs_no_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(mathematics, "grade", slow_grading.grade)
    with grader_lib.Grader("math", num_workers=1, timeout=30.0) as grader:
        assert grader.grade([f"once {tmp_path}/file 1"], ["1"])[0].score == 1.0


def test_a_grader_that_raises_gives_no_verdict(monkeypatch):
    """A `TimeoutError` of its own is not the time limit."""
    monkeypatch.setattr(mathematics, "grade", slow_grading.grade)
    with grader_lib.Grader("math", num_workers=1, timeout=30.0) as grader:
        raised, fine = grader.grade(["late", "1"], ["1", "1"])
        alone = grader._pool("math").call(slow_grading.grade, "late", "1").outcome()
    assert raised == grader_lib.Grade(0.0, None, "grader failed: TimeoutError: a service is slow", failed=True)
    assert fine.score == 1.0 and not alone.timed_out


def test_a_response_too_large_for_the_parser_is_wrong(monkeypatch):
    def parse(text):
        raise RecursionError

    monkeypatch.setattr(mathematics, "parse", parse)
    assert mathematics.grade("so it is ((((1", "7") == (0.0, None, "the response is too large to be read")


def test_idle_worker_killed_from_outside(math_grader):
    import os
    import signal

    pid = math_grader._pool("math").call(os.getpid).outcome().value
    os.kill(pid, signal.SIGKILL)
    grades = math_grader.grade([r"\boxed{7}"] * 3, ["7"] * 3)
    assert [grade.score for grade in grades] == [1.0] * 3


def test_workers_import_neither_main_nor_jax(tmp_path):
    """The main module leaves a line each time it is run; with plain spawn each worker would run it again."""
    program = """
        import pathlib, sys
        with open(sys.argv[1], "a") as log:
            log.write("ran\\n")
        from cgrpo_jax import rewards
        from cgrpo_jax.rewards.mathematics import loaded_modules
        if __name__ == "__main__":
            with rewards.Grader("math", num_workers=1) as grader:
                assert grader.grade(["\\\\boxed{7}"], ["7"])[0].score == 1.0
                modules = grader._pool("math").call(loaded_modules).outcome().value
            assert "math_verify" in modules and not {"jax", "numpy", "tensorflow", "torch"} & set(modules), modules
            assert "math_verify" not in sys.modules and "sympy" not in sys.modules
            assert __spec__ is None and __file__
    """
    script, log = tmp_path / "main.py", tmp_path / "log"
    script.write_text(textwrap.dedent(program))
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, str(script), str(log)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert log.read_text() == "ran\n"


# --- several responses to one question ----------------------------------------------------------------------------


def test_responses_to_one_question_go_to_a_worker_together(math_grader, monkeypatch):
    sizes = calls(math_grader, monkeypatch)
    texts = [f"{i}: \\boxed{{{i}}}" for i in range(11)]
    first = [math_grader.submit(text, "10") for text in texts]
    second = math_grader.submit("so \\boxed{3}", "3")
    assert sizes == [8, 3]  # the second question sent what was held back of the first
    assert second.result().score == 1.0 and sizes == [8, 3, 1]
    assert [row.result().score for row in first] == [0.0] * 10 + [1.0]
    held = math_grader.submit("so \\boxed{4}", "3")
    math_grader.send()
    assert sizes == [8, 3, 1, 1] and held.result().score == 0.0


def test_one_grader_serves_problems_of_several_kinds():
    with grader_lib.Grader("exact", num_workers=1, timeout=30.0) as grader:
        rows = [
            ("Answer: a", "a", ""),
            ("\\boxed{1/2}", "0.5", "math"),
            ("(B)", "B", "choice"),
            ("5 km", "5", "numeric"),
        ]
        assert [grader.submit(r, a, kind=kind).result().score for r, a, kind in rows] == [1.0] * 4
        assert grader.readable(["", "a"]) == [False, True]
        assert grader.readable(["B", "1"], kind="choice") == [True, False]
        with pytest.raises(UserError, match="'maths' is unknown"):
            grader.submit("a", "a", kind="maths")


def test_the_tolerance_of_numeric():
    assert grader_lib.grade("numeric", ["3.14"], ["3.14159"], tolerance=1e-2)[0].score == 1.0
    assert grader_lib.grade("numeric", ["3.14"], ["3.14159"], tolerance=1e-4)[0].score == 0.0


# --- what a model may write ---------------------------------------------------------------------------------------


def test_a_response_of_100_000_characters(math_grader):
    long = "so $x = 3$ and we go on, " * 4000
    assert [grade.score for grade in math_grader.grade([long + r"\boxed{7}", r"\boxed{7}" + long], ["7", "7"])] == [
        1,
        1,
    ]
    for kind in comparisons.COMPARE:
        gold, began = "B" if kind == "choice" else "7", time.process_time()
        odd = [long, "{" * 100_000, "\\boxed{" * 14_000, "1" * 100_000, "1,111" * 20_000, "answer" + " " * 100_000]
        odd += ["\\boxed{1}" + " " * 100_000 + "\\boxed{2}", "answer is (" + " " * 100_000, "the answer is " * 7000]
        assert not any(grade.score for grade in grader_lib.grade(kind, odd, [gold] * len(odd)))
        assert time.process_time() - began < 5  # linear: a hundredth of it on an idle machine


def test_two_boxed_answers(math_grader):
    texts = [r"\boxed{3}. Wait: \boxed{4}", r"\boxed{3} and \boxed{4}", r"either \boxed{3} if odd, or else \boxed{4}"]
    assert [grade.score for grade in math_grader.grade(texts, ["4"] * 3)] == [1, 0, 1]
    assert [grade.score for grade in math_grader.grade(texts, ["3"] * 3)] == [0, 0, 0]
    assert [grade.score for grade in math_grader.grade(texts, ["3,4"] * 3)] == [0, 1, 0]


# --- short cuts ---------------------------------------------------------------------------------------------------


def by_math_verify(box, answer):
    """math-verify's own verdict, without the short cuts."""
    predicted = mathematics.parse(f"\\boxed{{{box}}}")
    return math_verify.verify(mathematics.parse(f"\\boxed{{{answer}}}"), predicted, timeout_seconds=None)


def test_integers_are_compared_as_math_verify_does():
    rng = random.Random(0)
    numbers = [
        0,
        1,
        2,
        9,
        10,
        11,
        100,
        999,
        1000,
        10**14,
        10**15 - 1,
        *(rng.randrange(10 ** rng.randint(1, 15)) for _ in range(12)),
    ]
    numbers += [-n for n in numbers if n]
    for a in numbers:
        assert mathematics._INTEGER.fullmatch(str(a))
        for b in {a, -a, a + 1, a * 10, rng.choice(numbers)}:
            if mathematics._INTEGER.fullmatch(str(b)):
                assert by_math_verify(str(a), str(b)) == (a == b), (a, b)
    for text in ("-0", "007", "1e5", "1 000", "1.0", "1" * 16):
        assert not mathematics._INTEGER.fullmatch(text)


GOLD = [
    "42", r"\frac{14}{3}", "p - q", r"\left( 3, \frac{\pi}{2} \right)", r"\text{Evelyn}", "x=5", r"\pm 2", "[0,1)",
    r"\{1,2\}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"50\%", r"90^\circ", r"\$18.90", "0.5", "58_9", "3:4", "x>2",
    r"(-\infty,0)\cup(1,\infty)", r"\sqrt{2}", r"6 - 5i", r"10,\!080", r"\text{(C)}", "even", "1,2", r"4\frac{2}{3}",
]  # fmt: skip


@pytest.mark.parametrize("answer", GOLD)
def test_equal_texts_are_equal_to_math_verify(answer):
    assert mathematics.readable(answer) and by_math_verify(answer, answer)


SURE = [
    "0", "-7", "12.50", "9" * 30, "1,234", "-1,234,567.5", r"\frac{1}{2}", r"-\frac{14}{3}", r"\dfrac{1}{2}", "3/4",
    "-3/4", r"50\%", "50%", r"\sqrt{2}", r"2\sqrt{3}", "x", "A", r"\pi", r"3\pi", "$18$", "(1,2)", "(-3, 4)",
    "90^\\circ",    r"\$5",
]  # fmt: skip


@pytest.mark.parametrize("answer", SURE)
def test_answers_that_skip_the_parser_are_readable(answer):
    assert mathematics.surely_readable(answer) and mathematics.readable(answer)


@pytest.mark.parametrize("answer", ["", " ", "???", "1/0/0", r"\frac{", "abc def", "1,23", "$", "--1", "(,)"])
def test_others_are_asked_about(answer):
    assert not mathematics.surely_readable(answer)


# --- programs -----------------------------------------------------------------------------------------------------


def test_functions_are_told_from_kinds(tmp_path):
    assert (
        user_functions.is_name("rewards.py:f")
        and user_functions.is_name("a.b:f")
        and user_functions.is_name("/x y/r.py:f")
    )
    assert not any(map(user_functions.is_name, ["math", "a:", ":f", "a:b c", ""]))
    with pytest.raises(UserError, match="there is no file .*nothing.py"):
        user_functions.resolved(f"{tmp_path}/nothing.py:f")


@pytest.mark.parametrize(
    ("responses", "answers", "said"),
    [
        ("5", ["5"], "responses must be a list of texts, not '5'"),
        (["5"], [5], r"answers must be a list of texts, not \[5\]"),
        (["5", "6"], ["5"], "there are 2 responses and 1 answers; give one for each"),
    ],
)
def test_what_is_no_list_of_texts_is_named(responses, answers, said):
    with pytest.raises(UserError, match=said):
        grader_lib.grade("numeric", responses, answers)
