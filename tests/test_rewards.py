import subprocess
import sys
import textwrap

import pytest

from cgrpo_jax import math_worker, rewards
from cgrpo_jax.errors import UserError

# SymPy would need the factorial's 10^(10^10) digits: this hangs whatever the machine.
HANGS = r"\boxed{10^{10^{10}}!}"


@pytest.fixture(scope="module")
def math_grader():
    with rewards.Grader("math", num_workers=1, timeout=30.0) as grader:
        yield grader


def _scores(kind, *rows):
    return [grade.score for grade in rewards.grade(kind, *zip(*rows, strict=True))]


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
    assert rewards.grade("trace", [right], ["56 12"]) == [rewards.Grade(1.0, "56 12", "equal")]


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


@pytest.mark.parametrize("kind", rewards.KINDS)
def test_odd_responses_get_a_grade(kind, math_grader):
    odd = ["", "\\boxed{", "{{}}" * 50, "Answer:", "\x00\ud800", "\u0665", "-" * 2000, "\\boxed{\\frac{7}{}}"]
    grader = math_grader if kind == "math" else rewards.Grader(kind)
    grades = grader.grade(odd, ["1"] * len(odd))
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
        assert rewards.grade(kind, ["Answer:"], [""])[0].score == 0.0


def test_check_gold_names_rows():
    rewards.check_gold("math", ["18", r"\frac{14}{3}", "p - q", "-0.5"])
    with pytest.raises(UserError, match=r"2 of 3 gold answers .*row 0: ''; row 2: '\?\?\?'"):
        rewards.check_gold("math", ["", "1", "???"])
    with pytest.raises(UserError, match=r"7 of 8 .*row 5: 'x'; \.\.\."):
        rewards.check_gold("numeric", ["x", "$1,000.50", *["x"] * 6])
    rewards.check_gold("numeric", ["50%", "-3", ".5", "\u22122."])
    with pytest.raises(UserError, match="row 1: ' '"):
        rewards.check_gold("exact", ["a", " "])


def test_plain_numbers_that_skip_the_parser_are_readable():
    for number in ("0", "-7", "12.50", "9" * 30):
        assert rewards._PLAIN_NUMBER.fullmatch(number) and math_worker.readable(number)


def test_unknown_kind():
    with pytest.raises(UserError, match="'maths' is unknown; choose one of math, exact, numeric, trace"):
        rewards.grade("maths", [], [])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="shorter"):
        rewards.grade("exact", ["a", "b"], ["a"])


def test_timeout_kills_the_worker_and_the_next_row_is_graded():
    with rewards.Grader("math", num_workers=1, timeout=0.5) as grader:
        hung, fine = grader.grade([HANGS, r"\boxed{7}"], ["7", "7"])
    assert hung == rewards.Grade(0.0, None, "timed out after 0.5 s", timed_out=True)
    assert fine.score == 1.0


def test_worker_crash_is_a_zero_and_the_next_row_is_graded(math_grader):
    import os

    future = math_grader._schedule(os._exit, 3)
    assert math_grader._outcome(future, os._exit, (3,)) == (None, "worker died (exit code 3)", False)
    assert math_grader.grade([r"\boxed{7}"], ["7"])[0].score == 1.0


def test_idle_worker_killed_from_outside(math_grader):
    import os
    import signal

    pid = math_grader._schedule(os.getpid).result()
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
        from cgrpo_jax.math_worker import loaded_modules
        if __name__ == "__main__":
            with rewards.Grader("math", num_workers=1) as grader:
                assert grader.grade(["\\\\boxed{7}"], ["7"])[0].score == 1.0
                modules = grader._schedule(loaded_modules).result()
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


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{5} \boxed{6", "5"),
        (r"\boxed{1}$, $\boxed{2}$ and $\boxed{3}", "1, 2, 3"),
        ("none", None),
    ],
)
def test_boxed(text, box):
    assert math_worker.boxed(text) == box


def test_without_thinking():
    assert math_worker.without_thinking("<think>a</think>b") == "b"
    assert math_worker.without_thinking("a</think>b") == "b"
    assert math_worker.without_thinking("b<think>a") == "b"
    assert math_worker.without_thinking("b") == "b"
