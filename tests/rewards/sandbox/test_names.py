"""Names that tests take from a program."""

import pytest

from cgrpo_jax.rewards.sandbox.names import foreign_modules, free_names, modules, of_solution, only_name


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("assert f(1) == g", "f g"),
        ("import math\nfrom re import sub as s\nassert f(math.pi, s)", "f"),
        ("def h(x, *y, **z): return x + y + z + f\nassert h(1)", "f"),
        ("def h():\n    import os\n    x = os\n    return x, a\nassert x", "a x"),
        ("class C(B):\n    y = 1\n    def m(self): return y\nC", "B y"),
        ("assert [a + b for a in c] + list(map(lambda d: d + e, []))", "b c e list map"),
        ("try:\n    f()\nexcept ValueError as error:\n    print(error)", "ValueError f print"),
        ("for i in range(2):\n    assert f(i)\nwith f() as k: k", "f range"),
        ("def h():\n    global g\n    g = 1\nassert g", ""),
        ("x: int = f\nx += 1\ndel x", "f int"),
    ],
)
def test_free_names(source, names):
    assert free_names([source]) == set(names.split())


def test_what_one_piece_binds_another_may_use():
    assert free_names(["root = Node(1)", "assert f(root)"]) == {"Node", "f"}


def test_modules_are_those_of_the_standard_library_that_are_asked_for_attributes():
    tests = ["assert math.floor(f(statistics)) == np.pi + re.pi", "import re\nassert string()"]
    assert modules(tests) == ["math"]


@pytest.mark.parametrize(
    ("setup", "tests", "name"),
    [
        ("", ["assert f(1) == len([1])", "assert f(2)"], "f"),
        ("import numpy as np", ["assert np.allclose(f(1), math.pi)"], "f"),
        ("", ["assert np.allclose(f(1), 1)"], None),
        ("", ["assert set(f(1)) == {1}"], "f"),
        ("", ["assert sum(1, 2) == 3"], "sum"),
        ("", ["assert sum(1, 2) == abs(3)"], None),
        ("root = Node(1)", ["assert height(root) == 1"], None),
        ("", ["assert 1 == 1"], None),
    ],
)
def test_only_name(setup, tests, name):
    assert only_name(setup, tests) == name


@pytest.mark.parametrize(
    ("solution", "tests", "names", "imports"),
    [
        ("def f(x): pass\ndef helper(): pass", ["assert f(1)"], ["f"], []),
        ("f = lambda x: x\nR = 3", ["assert f(R)"], ["R", "f"], []),
        ("try:\n    import numpy\nexcept ImportError:\n    def f(): pass", ["assert f()"], ["f"], []),
        ("from re import sub as s, findall\ndef f(): pass", ["assert f(s)"], ["f"], ["from re import sub as s"]),
        ("import os.path, re\ndef f(): pass", ["assert f(os.path.sep)"], ["f"], ["import os.path"]),
        ("import math as isclose\ndef isclose(): pass", ["assert isclose()"], ["isclose"], []),
        ("def sum(x): pass\ndef f(x): pass", ["assert f(sum([1]))"], ["f"], []),
        ("def sum(x): pass", ["assert sum([1])"], ["sum"], []),
        ("def f(x: return", ["assert f(1)"], [], []),
        ("def f(x): return {x}", ["assert f(1).issubset({1})"], ["f"], []),
        (
            "class A:\n    x: int\n    y = 1\n    def __init__(self): self.z = self.q\n    def m(self): pass\n"
            "    class B:\n        c = 1\n",
            ["a = A(); assert a.x + a.y + a.z + a.q + a.m() + a.B.c + a.unknown"],
            ["A", ".B", ".c", ".m", ".x", ".y", ".z"],
            [],
        ),
        (
            "class a:\n    def __contains__(s, x): pass\n    def __radd__(s, x): pass\n    def __mul__(s, x): pass",
            ["assert 1 in a() and 1 + a() == 2"],
            ["a", ".__contains__", ".__radd__"],
            [],
        ),
        ("def f(x): pass", ["assert f(1"], [], []),
        (
            "from math import *\nfrom re import sub\ndef f(x): pass",
            ["assert isclose(f(2), sub('a', '', '1'))"],
            ["f"],
            ["from math import *", "from re import sub"],
        ),
        ("import math\nfrom math import gcd", ["assert gcd(4, 6) == math.floor(2.5)"], ["gcd"], ["import math"]),
        ("from heapq import nsmallest as least", ["assert least(1, [2, 1]) == [1]"], ["least"], []),
        (  # which of them is tested?
            "from math import gcd, isclose",
            ["assert isclose(gcd(4, 6), 2)"],
            [],
            ["from math import gcd", "from math import isclose"],
        ),
        ("import math", ["assert math.gcd(4, 6) == 2"], [], ["import math"]),
    ],
)
def test_of_solution(solution, tests, names, imports):
    assert of_solution(solution, "", tests) == (names, imports)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pandas.testing as t, math", ["pandas"]),
        ("from yaml import load\nimport numpy as np", ["yaml"]),
        ("try:\n    import yaml\nexcept ImportError:\n    pass\ndef f():\n    import pandas", []),
        ("from __future__ import annotations\nimport os.path", []),
    ],
)
def test_foreign_modules(source, found):
    assert foreign_modules([source]) == found
