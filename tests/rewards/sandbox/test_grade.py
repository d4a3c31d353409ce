"""Programs graded by tests: right ones pass, and of wrong ones the reason is given."""

import json
import os
import pathlib
import time

import graded
import pytest
from graded import ADD, SUM

from cgrpo_jax.rewards import grader
from cgrpo_jax.rewards.sandbox import grade as grade_lib
from cgrpo_jax.rewards.sandbox import sandbox
from cgrpo_jax.rewards.sandbox.grade import grade, readable
from cgrpo_jax.rewards.sandbox.names import of_solution

pytestmark = graded.MARKS

SORT = json.dumps({"asserts": ["assert in_order([3, 1, 2]) == [1, 2, 3]"]})
PROMPT = 'import math\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef area(r):\n    """The area of a circle."""\n'
AREA = json.dumps(
    {
        "prompt": PROMPT,
        "entry_point": "area",
        "check": "def check(candidate):\n    for r in (1, 2):\n"
        "        assert abs(candidate(r) - 3.14159 * r * r) < 0.1\n    assert candidate(0) == twice(0)\n",
    }
)


# --- right and wrong programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("def add(a, b): return a + b", ADD),
        ("Here:\n```python\ndef add(a, b):\n    return a + b\n```", ADD),
        ("add = lambda a, b: a + b", ADD),
        ("import operator\nadd = operator.add\nprint('add(1, 2) == 4')", ADD),
        ("def in_order(x): return sorted(x)", SORT),
        (f"{PROMPT}    return math.pi * r ** 2", AREA),
        ("def area(r):\n    return math.pi * r ** 2", AREA),
        ("    return math.pi * r ** 2", AREA),
        ("print(sum(map(int, input().split())))", SUM),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), '\\n')\nsys.exit()", SUM),
        ("print(sum(map(int, input().split())))\nexit()\nprint(1)", SUM),
        ("print(sum(map(int, input().split())))\nif True: quit(0)", SUM),
        ("def add(a, b): return a + b\ntry:\n    exit(1)\nexcept SystemExit:\n    pass", ADD),
        ("if __name__ == '__main__':\n    a, b = input().split()\n    print(int(a) + int(b), end='')", SUM),
    ],
)
def test_right_programs_pass(program, answer):
    score, _, reason = grade(program, answer)
    assert (score, reason) == (1.0, f"passes all {2 if answer != SORT else 1} tests")


WRONG = [
    (
        "def add(a, b):\n    return a - b",
        ADD,
        "Test 1 of 2 fails: add(1, 2) returns -1. Tests passed: 0 of 2.\nExpected: 3",
    ),
    (
        "def add(a, b):\n    return 3",
        ADD,
        "Test 2 of 2 fails: add(2, 2) returns 3. Tests passed: 1 of 2.\nExpected: 4",
    ),
    (
        "def in_order(x):\n    return [1, 3, 2]",
        SORT,
        "Test 1 of 1 fails: in_order([3, 1, 2]) returns [1, 3, 2], wrong from index 1 on. Tests passed: 0 of 1."
        "\nExpected: [1, 2, 3], at index 1 2",
    ),
    (
        "def add(a, b):\n    c = a + b\n    return c[0]",
        ADD,
        "Test 1 of 2 fails: add(1, 2) raises TypeError: 'int' object is not subscriptable in line 3: `return c[0]`. "
        "Tests passed: 0 of 2.",
    ),
    (
        "def add(a, b):\n    return missing(a)",
        ADD,
        "Test 1 of 2 fails: add(1, 2) raises NameError: name 'missing' is not defined in line 2: `return missing(a)`. "
        "Tests passed: 0 of 2.",
    ),
    ("def sub(a, b): pass", ADD, "No test could be run: the program defines no add. Tests passed: 0 of 2."),
    (
        "I think that\nadd is easy.",
        ADD,
        "No test could be run: the program raises SyntaxError: invalid syntax in line 1: `I think that`. "
        "Tests passed: 0 of 2.",
    ),
    (
        "def add(a):\n    return a",
        ADD,
        "Test 1 of 2 fails: add(1, 2) raises TypeError: add() takes 1 positional argument but 2 were given. "
        "Tests passed: 0 of 2.",
    ),
    (
        "def area(r):\n    return math.pi * r",
        AREA,
        "Test 1 of 2 fails: area(2) returns 6.283185307179586. Tests passed: 0 of 2."
        "\nExpected: abs(candidate(r) - 3.14159 * r * r) < 0.1",
    ),
    (
        "    x = math.pi\n    return x / r",
        AREA,
        "Test 2 of 2 fails: area(0) raises ZeroDivisionError: float division by zero in line 2: `return x / r`. "
        "Tests passed: 1 of 2.",
    ),
    (
        "print(3)",
        SUM,
        "Test 2 of 2 fails: with the input '4 5\\n' the program prints '3' as line 1. Tests passed: 1 of 2."
        "\nExpected: '9'",
    ),
    (
        "print(int(input()))",
        SUM,
        "Test 1 of 2 fails: with the input '1 2\\n' the program raises ValueError: invalid literal for int() with base "
        "10: '1 2' in line 1: `print(int(input()))`. Tests passed: 0 of 2.",
    ),
    (
        "",
        SUM,
        "no program found",
    ),
    (
        "pass",
        SUM,
        "Test 1 of 2 fails: with the input '1 2\\n' the program prints '' as line 1. Tests passed: 0 of 2."
        "\nExpected: '3'",
    ),
]


@pytest.mark.parametrize(("program", "answer", "reason"), WRONG)
def test_wrong_programs_are_told_what_is_wrong(program, answer, reason):
    if program.startswith("    x"):  # a circle of no area divides by zero, and is far off before
        answer = answer.replace("for r in (1, 2)", "for r in (1,)")
    assert grade(program, answer) == (0.0, program or None, reason)


def test_no_descriptor_is_left():
    grade("print(3)", SUM)  # what programs are started from is kept
    before = set(os.listdir("/proc/self/fd"))
    grade("def add(a, b): return a + b", ADD)
    grade("print(3)", SUM)
    assert set(os.listdir("/proc/self/fd")) == before


def test_where_a_program_hangs_is_told(monkeypatch):
    monkeypatch.setattr(grade_lib, "_start_seconds", lambda timeout: 20.0)  # a busy machine may be slow to start it
    said = grade("def add(a, b):\n    while a:\n        pass\n", ADD, seconds=1)[2]
    assert said.startswith("Test 1 of 2 fails: add(1, 2) did not end within 1 s, and was in line ")
    said = grade("while True:\n    pass", SUM, seconds=1)[2]
    assert "the program did not end within 1 s, and was in line " in said


def test_the_time_of_a_program_follows_the_workers_time_limit(monkeypatch):
    given = []
    for name in ("_run_asserts", "_run_scripts"):
        monkeypatch.setattr(grade_lib, name, lambda *arguments: given.append(arguments[2:4]) or (False, ""))
    for timeout, seconds in ((5.0, 3.0), (60.0, 58.0), (1.0, 0.6)):
        for answer in (ADD, SUM):
            grade("def add(a, b): return a + b", answer, timeout)
            ((of_program, start),) = given
            assert of_program == seconds and 0 < start and seconds + start < timeout
            given.clear()


def test_a_graders_time_limit_reaches_its_programs():
    """Here it shows in their limit of CPU, which must not be the shorter one."""
    answer = json.dumps({"stdin": [{"input": "", "output": "59"}]})
    program = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CPU)[0])"
    assert grader.grade("code", [program], [answer], timeout=60.0)[0].reason == "passes all 1 tests"


def test_many_tests_of_a_script_take_one_start_of_python(monkeypatch):
    answer = json.dumps({"stdin": [{"input": f"{k} 1\n", "output": f"{k + 1}\n"} for k in range(50)]})
    program = "print(sum(map(int, input().split())))"
    grade(program, SUM)
    starts, running, most = [], set(), []
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *args, **kwargs: starts.append(args))

    class Box(sandbox.Sandbox):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            running.add(self)
            most.append(len(running))

        def stop(self):
            running.discard(self)
            return super().stop()

    monkeypatch.setattr(sandbox, "Sandbox", Box)
    assert grade(program, answer, seconds=120)[2] == "passes all 50 tests"
    assert not starts and len(most) == 50 and max(most) == 4


def test_tests_of_a_script_know_nothing_of_each_other():
    program = """
import os
import pathlib
with open("seen", "a+") as file:
    file.write(input())
    file.seek(0)
    print(file.read(), os.path.exists("../seen"))
if not os.fork():
    os.setsid()
    while True:
        pass
"""
    answer = json.dumps({"stdin": [{"input": str(k), "output": f"{k} False"} for k in range(6)]})
    assert grade(program, answer, seconds=60)[2] == "passes all 6 tests"


def test_a_script_that_hangs_takes_no_more_than_its_time():
    answer = json.dumps({"stdin": [{"input": str(k), "output": f"{k}"} for k in range(40)]})
    start = time.monotonic()
    reason = grade("x = input()\nwhile x == '2': pass\nprint(x)", answer, seconds=3)[2]
    assert reason.startswith("Test 3 of 40 fails: with the input '2' the program did not end within 3 s")
    assert time.monotonic() - start < 30


def test_the_first_line_that_differs_is_told():
    answer = json.dumps({"stdin": [{"input": "3", "output": "1\n2\n3\n"}]})
    count = "for i in range(int(input())):\n    print(i + 1, ' ')"
    assert grade(count, answer)[0] == 1.0
    given = "Test 1 of 1 fails: with the input '3' the program prints"
    end = "Tests passed: 0 of 1.\nExpected:"
    assert grade("print(1)\nprint(3)", answer)[2] == f"{given} '3' as line 2. {end} '2' as line 2"
    assert grade("print(1)\nprint(2)", answer)[2] == f"{given} nothing after line 2. {end} '3' as line 3"
    assert grade(f"{count}\nprint(4)", answer)[2] == f"{given} '4' as line 4. {end} the end of the output as line 4"


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("(1, [2, {3}])", "f() == (1, [2, {3}])"),
        ("{'a': {1: None}, (1, 2): b'x'}", "f() == {'a': {1: None}, (1, 2): b'x'}"),
        ("float('nan')", "math.isnan(f())"),
        ("-float('inf')", "f() == -math.inf"),
        ("10 ** 5000", "f() == 10 ** 5000"),
        ("1 + 2j", "f() == 1 + 2j"),
        ("'\\ud800\\n'", "f() == '\\ud800\\n'"),
        ("map(str, [1])", "list(f()) == ['1'] and f() != ['1']"),
        ("(i for i in range(3))", "sum(f()) == 3"),
        ("{1: 2}.items()", "list(f()) == [(1, 2)]"),
        ("range(3)", "f() == range(3)"),
        ("frozenset([1])", "f() == {1}"),
        ("__import__('collections').Counter('aab')", "f().most_common(1) == [('a', 2)]"),
        ("__import__('fractions').Fraction(1, 3)", "f() * 3 == 1"),
        ("True", "f() is True"),
    ],
)
def test_values_come_back_as_they_are(value, test):
    answer = json.dumps({"setup": "import math", "asserts": [f"assert {test}"]})
    assert grade(f"def f(): return {value}", answer)[0] == 1.0
    assert grade("def f(): return None", answer)[0] == 0.0


def test_objects_of_the_program_can_be_used():
    program = """
class Stack:
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        self.items.append(item)
    def pop(self):
        return self.items.pop()
def total(stack, *, start=0):
    return sum(stack.items, start)
LIMIT = 3
"""
    asserts = [
        "s = Stack([1]); s.push(5); assert total(s, start=2) == 8",
        "assert s.pop() == 5 and s.items == [1]",
        "assert LIMIT == 3",
        "assert Stack() != Stack()",
    ]
    answer = {"asserts": asserts, "names": ["LIMIT", "Stack", "total", ".items", ".pop", ".push"]}
    assert grade(program, json.dumps(answer))[2] == "passes all 4 tests"


# As MBPP has it: the asserts are about trees, which the setup makes of the program's class.
TREE = json.dumps(
    {
        "setup": "def grown(depth):\n    root = Node(depth)\n    if depth > 1: root.left = grown(depth - 1)\n"
        "    return root\nroot, root1 = grown(2), grown(3)",
        "asserts": ["assert (max_height(root)) == 2", "assert (max_height(root1)) == 3"],
        "names": ["Node", "max_height", ".left"],
    }
)
NODE = "class Node:\n    def __init__(self, data):\n        self.data, self.left = data, None\n"


def test_a_setup_is_run_after_the_program_and_may_make_its_objects():
    height = "def max_height(node):\n    return 0 if node is None else 1 + max_height(node.left)"
    assert grade(NODE + height, TREE)[2] == "passes all 2 tests"
    assert grade(NODE + "def max_height(node): return 2", TREE)[2].startswith(
        "Test 2 of 2 fails: max_height(<Node>) returns 2"
    )
    said = grade(height, TREE)[2]
    assert said == "No test could be run: the program defines no Node. Tests passed: 0 of 2."
    said = grade("class Node:\n    def __init__(self, data): raise ValueError('no')\n" + height, TREE)[2]
    assert said.startswith("No test could be run: Node(2) raises ValueError: no in line 2")


def test_a_setup_is_not_seen_by_the_program():
    answer = json.dumps(
        {"setup": "import math\ndef expected(x): return x + 1", "asserts": ["assert f(1) == expected(1)"]}
    )
    assert grade("def f(x): return x + 1", answer)[0] == 1.0
    for used, name in (("expected(x)", "expected"), ("math.floor(x) + 1", "math")):
        assert f"name '{name}' is not defined" in grade(f"def f(x): return {used}", answer)[2]


def test_exceptions_that_the_tests_want():
    test = "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert 'low' in str(error)"
    answer = json.dumps({"asserts": [test]})
    assert grade("def f(x):\n    if x < 0: raise ValueError('too low')", answer)[0] == 1.0
    assert grade("def f(x): raise KeyError('too low')", answer)[0] == 0.0
    assert grade("def f(x): pass", answer)[0] == 0.0


def test_a_function_with_the_name_of_a_builtin_is_the_programs():
    answer = json.dumps({"asserts": ["assert sum(10, 15) == 6"]})
    assert grade("def sum(a, b): return 6", answer)[0] == 1.0
    assert grade("def sum(a, b): return 7", answer)[2].startswith("Test 1 of 1 fails: sum(10, 15) returns 7.")
    answer = json.dumps({"asserts": ["assert sum([10, 15]) == 25"]})
    assert grade("def total(a): return 25", answer)[2].startswith("No test could be run: the program defines no sum.")
    answer = json.dumps({"asserts": ["assert set(f()) == {1}"]})
    assert grade("def f(): return [2]\ndef set(x): return {1}", answer)[0] == 0.0


@pytest.mark.parametrize(
    ("solution", "test", "wrong"),
    [
        ("from math import *\ndef f(x): return sqrt(x)", "assert isclose(f(2), 1.41421356237)", "def f(x): return 1"),
        ("from math import gcd", "assert gcd(4, 6) == 2", "def gcd(a, b): return 1"),
        ("from math import *", "assert gcd(4, 6) == 2", "def gcd(a, b): return 1"),
    ],
)
def test_a_solution_that_imports_passes_and_a_wrong_one_does_not(solution, test, wrong):
    names, forgotten = of_solution(solution, "", [test])
    answer = {"setup": "\n".join(forgotten), "asserts": [test]} | ({"names": names} if names else {})
    assert grade(solution, json.dumps(answer))[2] == "passes all 1 tests"
    assert grade(wrong, json.dumps(answer))[2].startswith("Test 1 of 1 fails: ")


# --- gold answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [ADD, SORT, AREA, SUM])
def test_readable(answer):
    assert readable(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "12",
        "[]",
        "{}",
        "{",
        json.dumps({"asserts": []}),
        json.dumps({"asserts": "assert f()"}),
        json.dumps({"asserts": ["f() == 1"]}),
        json.dumps({"asserts": ["assert f( == 1"]}),
        json.dumps({"asserts": [1]}),
        json.dumps({"asserts": ["assert f()"], "stdin": [{"input": "", "output": ""}]}),
        json.dumps({"asserts": ["assert f()"], "setup": "import"}),
        json.dumps({"asserts": ["assert f()"], "test": ""}),
        json.dumps({"asserts": ["assert f()"], "names": []}),
        json.dumps({"asserts": ["assert f()"], "names": "f"}),
        json.dumps({"asserts": ["assert f()"], "names": [1]}),
        json.dumps({"asserts": ["assert f()"], "names": [".f"]}),
        json.dumps({"asserts": ["import pandas\nassert f()"], "names": ["f"]}),  # which they can't
        json.dumps({"check": "from pytest import raises\ndef check(f): assert f()", "entry_point": "f"}),
        json.dumps({"asserts": ["assert isclose(f(2), 1.41)"]}),  # which of them is tested?
        json.dumps({"asserts": ["assert add(1, 2) == 3", "assert sub(2, 1) == 1"]}),
        json.dumps({"check": "def check(f): assert f()", "entry_point": "f", "names": ["f"]}),
        json.dumps({"check": "def check(candidate): assert candidate()"}),
        json.dumps({"check": "assert f()", "entry_point": "f"}),
        json.dumps({"stdin": []}),
        json.dumps({"stdin": [{"input": ""}]}),
        json.dumps({"stdin": [{"input": "", "output": 1}]}),
    ],
)
def test_unreadable(answer):
    assert not readable(answer)
    assert grade("def f(): pass", answer)[2] == f"gold answer {answer[:80]!r} can't be read"


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ({"asserts": ["assert f(1) == h(2)"]}, "its tests use f and h: say in `names` which come from the program"),
        ({"asserts": ["assert 1 == 1"]}, "its tests use no name of a program: say in `names` which come from the"),
        ({"asserts": ["assert f()"], "names": [".f"]}, "its `names` must be a list of names, at least one of them"),
        ({"asserts": ["assert f(1) == h(2)"], "names": ["f"]}, ""),
        ({"asserts": ["f(1) == h(2)"]}, ""),
        ({"asserts": ["assert f()"], "setup": "import yaml, pandas"}, "its tests import pandas and yaml, which no"),
        ({"check": "assert f()", "entry_point": "f"}, ""),
        ({"stdin": []}, ""),
        ([], ""),
    ],
)
def test_why_names_are_unclear(tests, said):
    found = grade_lib.unclear_names(json.dumps(tests))
    assert found.startswith(said) and bool(found) == bool(said)


# --- the end of a script ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "import atexit, time\natexit.register(time.sleep, 99)",
        "import atexit\ndef f():\n    while True: pass\natexit.register(f)",
        "class A:\n    def __del__(self):\n        while True: pass\na = A()",
        "try:\n    while True: pass\nexcept BaseException: pass",
    ],
)
def test_the_end_of_a_script_has_no_more_time_than_the_rest(program):
    answer = json.dumps({"stdin": [{"input": "", "output": "1"}]})
    assert "the program did not end within 0.5 s" in grade(f"print(1)\n{program}", answer, seconds=0.5)[2]


# --- objects of the program's -----------------------------------------------------------------------------------------

EQUAL = "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return True\n"


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("P(3) == 3", "P(3) returns <P>; an object of the program is compared with a value of the test."),
        ("[P(3)] == [3]", "P(3) returns <P>; an object of the program is compared with a value of the test."),
        ("P(3) in (1, 2)", "P(3) returns <P>; an object of the program is compared with a value of the test."),
        ("P(3) == P(4)", "P(4) returns <P>; an object of the program is compared with a value of the test."),
    ],
)
def test_what_can_not_be_compared_is_said_to_be(test, said):
    answer = json.dumps({"asserts": [f"assert {test}"], "names": ["P"]})
    assert grade(EQUAL, answer)[::2] == (0.0, f"Test 1 of 1 can't be decided: {said} Tests passed: 0 of 1.")


def test_a_comparison_that_the_tests_catch_stays_undecided():
    for caught in ("Exception", "BaseException"):
        test = f"try:\n    P(3) == 3\nexcept {caught}:\n    pass\nassert P(3)"
        assert "can't be decided" in grade(EQUAL, json.dumps({"asserts": [test], "names": ["P"]}))[2]


def test_operations_that_show_the_program_a_value_are_named_or_refused():
    program = "class V:\n    def __add__(self, other): return 5\n    __radd__ = __add__\ndef f(): return V()"
    for names, score in ((["f"], 0.0), (["f", ".__add__"], 1.0), (["V"], 1.0)):
        of = "V" if "V" in names else "f"
        answer = json.dumps({"asserts": [f"assert {of}() + 1 == 5"], "names": names})
        assert grade(program, answer)[0] == score
    answer = json.dumps({"asserts": ["assert f() + f() == 5"], "names": ["f"]})  # both are the program's
    assert grade(program, answer)[0] == 1.0


def test_in_of_any_object_compares_its_items():
    program = "class A:\n    def __iter__(self): return iter([1])\n    def __contains__(self, x): return True\n"
    for item, score in ((1, 1.0), (2, 0.0)):
        answer = json.dumps({"asserts": [f"assert {item} in f()"], "names": ["f"]})
        assert grade(f"{program}def f(): return A()", answer)[0] == score


def test_attributes_that_are_not_named_can_not_be_asked_for():
    program = "class A:\n    x = 1\n    _y = 2\n    def __init__(self): self.z = 3\n"
    for names, test, score in (
        (["A"], "A().x == 1", 0.0),
        (["A", ".x", "._y", ".z"], "A().x + A()._y + A().z == 6", 1.0),
        (["A", ".x"], "not hasattr(A(), 'z') and A.__name__ == 'A'", 1.0),
        (["A", ".z"], "a = A(); a.z = 5; assert a.z == 5; del a.z; assert not hasattr(a, 'z')", 1.0),
    ):
        answer = json.dumps({"asserts": [test if "assert" in test else f"assert {test}"], "names": names})
        assert grade(program, answer)[0] == score


def test_a_failed_assert_is_not_shown_to_a_context_of_the_programs():
    program = """
class C:
    def __enter__(self): return self
    def __exit__(self, kind, error, trace):
        self.seen = (kind, error.args, trace)
        return True
def f(): return 1
"""
    test = "c = C()\ntry:\n    with c:\n        assert f() == 73519\nexcept AssertionError:\n    pass\n"
    test += "assert c.seen == (AssertionError, (), None)"
    answer = json.dumps({"asserts": [test], "names": ["C", "f", ".seen"]})
    assert "f() returns 1" in grade(program, answer)[2] or "not reached" in grade(program, answer)[2]
    answer = json.dumps({"asserts": [f"{test}\nassert 1 == 2"], "names": ["C", "f", ".seen"]})
    assert "Tests passed: 1 of 3" in grade(program, answer)[2]


# --- texts that leave the sandbox -------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["raise ValueError(chr(0xD800))", "def add(a, b): return chr(0xDFFF)", "'\ud800'"])
@pytest.mark.parametrize("answer", [ADD, SUM])
def test_reasons_and_programs_can_be_written(program, answer):
    score, extracted, reason = grade(program, answer)
    assert score == 0.0 and reason.encode() and extracted.encode()


def test_a_forged_line_number_is_left_out():
    forged = "{'type': 'E', 'message': '', 'line': int('1' * 4000), 'text': ''}"
    script = f"import json, os\nos.write(3, json.dumps({forged}).encode())\nos._exit(1)"
    assert grade(script, SUM)[2].startswith("Test 1 of 2 fails: with the input '1 2\\n' the program raises E. ")
    calls = f"def add(a, b):\n    os.write(3, json.dumps(dict(error={forged})).encode() + b'\\n')\n"
    reason = grade(f"import json, os\n{calls}", ADD)[2]
    assert reason == "Test 1 of 2 fails: add(1, 2) raises E. Tests passed: 0 of 2."


# --- cases ------------------------------------------------------------------------------------------------------------

CASES = pathlib.Path(__file__).parents[1] / "cases" / "code.jsonl"


@pytest.mark.parametrize("line", CASES.read_text().splitlines())
def test_cases(line):
    case = json.loads(line)
    score, _, reason = grade(case["response"], case["gold"], 20.0)
    assert score == case["verdict"], f"{case['why']}: {reason}"
