"""What a program finds beside Python itself."""

import json
import os
import zoneinfo

import graded
import pytest

from cgrpo_jax.rewards import grader
from cgrpo_jax.rewards.sandbox import environment, sandbox
from cgrpo_jax.rewards.sandbox.grade import grade

pytestmark = graded.MARKS


def printing(text, given=""):
    return json.dumps({"stdin": [{"input": given, "output": text}]})


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (
            "def f(): return np.arange(6).reshape(2, 3)",
            "np.array_equal(f(), [[0, 1, 2], [3, 4, 5]]) and f().dtype == int",
        ),
        ("def f(): return np.float64(1.5), np.int64(3)", "f() == (1.5, 3) and isinstance(f()[1], np.int64)"),
        ("def f(): return np.linalg.inv(np.eye(2)) @ np.array([1j, 2])", "(f() == [1j, 2]).all()"),
        ("def f(): return np.array(['a', None], dtype=object)", "list(f()) == ['a', None]"),
        ("def f(): return np.datetime64('2024-02-29')", "f() == np.datetime64('2024-02-29')"),
        ("def f(): return np.array([(1, 2.0)], dtype=[('a', int), ('b', float)])", "f() == [(1, 2.0)]"),
        ("def f(): return np.longdouble(0.5)", "f() == 0.5"),
        ("def f(): return np.array(['2024-02'], dtype='M8[M]')", "f()[0] == np.datetime64('2024-02')"),
        ("def f(x=None): return x is None or x.sum()", "f(np.ones(3)) == 3"),
    ],
)
def test_numpy_where_it_is_allowed(program, test):
    answer = json.dumps({"setup": "import numpy as np", "asserts": [f"assert {test}"], "names": ["f"]})
    assert grade(f"import numpy as np\n{program}", answer, 20.0, True)[2] == "passes all 1 tests"


def test_numpy_is_allowed_by_an_option_alone():
    program, answer = "import numpy as np\nprint(np.loadtxt('/dev/stdin').sum())", printing("3.0", "1 2")
    assert grader.grade("code", [program], [answer], numpy=True, timeout=20.0)[0].score == 1.0
    assert "No module named 'numpy'" in grader.grade("code", [program], [answer], timeout=20.0)[0].reason


def test_beside_numpy_nothing_can_be_imported():
    program = """
import importlib, os, numpy
folder = os.path.dirname(os.path.dirname(numpy.__file__))
for name in ("jax", "pebble", "pytest", "cgrpo_jax.runs"):
    try:
        importlib.import_module(name)
        print(name)
    except ImportError:
        pass
print(sorted(set(os.listdir(folder)) - {"numpy", "numpy.libs"}) if JUST_NUMPY else [])
"""
    folder = os.path.dirname(os.path.dirname(environment.packages(True)["numpy"]))
    alone = sandbox.isolated() and not any(folder.startswith(path) for path in environment.paths())
    program = program.replace("JUST_NUMPY", str(alone))
    assert grade(program, printing("[]"), 20.0, True)[2] == "passes all 1 tests"


def test_time_zones_without_the_systems_own(monkeypatch):
    program = "from zoneinfo import ZoneInfo\nprint(ZoneInfo('UTC').key, ZoneInfo('Europe/Berlin').key)"
    answer = printing("UTC Europe/Berlin")
    assert grade(program, answer)[0] == 1.0
    monkeypatch.setattr(zoneinfo, "TZPATH", ())
    environment.zones.cache_clear()
    try:
        assert "tzdata" in environment.zones()
        assert grade(program, answer)[0] == 1.0
    finally:
        environment.zones.cache_clear()


def test_standard_files_have_their_names_and_others_keep_theirs():
    program = """
import os
print(os.path.exists("/dev/stdin"), os.path.exists("/dev/fd/7"), os.path.exists("/proc/self/fd/0"))
for path in ("/dev/fd/7", b"/dev/none", "none"):
    try:
        open(path)
    except FileNotFoundError:
        print("none")
with open("own", "w") as file:
    file.write("x")
print(open("own").read(), os.stat("own").st_size)
"""
    if not sandbox.isolated():
        pytest.skip("without namespaces it sees the machine's own")
    assert grade(program, printing("True False True\nnone\nnone\nnone\nx 1"))[2] == "passes all 1 tests"
