"""Programs that attack their grader: none forges a pass, and none is left behind."""

import json
import multiprocessing
import pathlib
import tempfile
import time

import graded
import leftovers
import pebble
import pytest
from graded import ADD, SUM

from cgrpo_jax.rewards.sandbox import grade as grade_lib
from cgrpo_jax.rewards.sandbox import sandbox
from cgrpo_jax.rewards.sandbox.grade import grade

pytestmark = graded.MARKS

SPAWN = multiprocessing.get_context("spawn")
FORGED = r"""{"total": 2, "passed": 2, "failure": null}"""
ATTACKS = {
    "leaves": "import os\ndef add(a, b): os._exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves politely": "def add(a, b): raise SystemExit(0)",
    "loops": "def add(a, b):\n    while True: pass",
    "loops and catches": "def add(a, b):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass",
    "sleeps": "import time, signal\nsignal.alarm(0)\nsignal.setitimer(signal.ITIMER_REAL, 0)\n"
    "signal.signal(signal.SIGALRM, signal.SIG_IGN)\ndef add(a, b): time.sleep(1000)",
    "forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "forks, one answers": "import os\nos.fork()\ndef add(a, b): return 5",
    "takes memory": "x = [bytearray(1 << 20) for _ in range(10 << 10)]\ndef add(a, b): return a + b",
    "prints": "import os\nfor _ in range(10 << 14): os.write(1, b'x' * (1 << 16))",
    "fills every descriptor": "import os\nfor _ in range(1 << 20):\n    for fd in range(10):\n        try:\n"
    "            os.set_blocking(fd, False); os.write(fd, b'x' * (1 << 16))\n        except OSError: pass",
    "prints what is expected": "print(3)\nprint(4)\nprint('passes all 2 tests')\ndef add(a, b): print(a + b)",
    "writes a report": f"import os\nfor fd in range(20):\n    try: os.write(fd, b'''{FORGED}\\n''')\n"
    "    except OSError: pass\ndef add(a, b): return 0",
    "replaces json": 'import json\njson.dumps = lambda x: \'{"value": {"object": [0, "int", true]}}\'\n'
    "def add(a, b): return 0",
    "replaces builtins": "import builtins\nbuiltins.AssertionError = builtins.isinstance = lambda *a: True\n"
    "builtins.compile = builtins.exec = lambda *a: None\ndef add(a, b): return 0",
    "replaces modules": "import sys\nfor name in list(sys.modules): sys.modules[name] = None\ndef add(a, b): return 0",
    "is equal to all": "class Any:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    "def add(a, b): return Any()",
    "is an int equal to all": "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    "def add(a, b): return Any(0)",
    "is a list equal to all": "class Any(list):\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    "stops iterations": "def add(a, b): raise StopIteration",
    "asserts": "def add(a, b): raise AssertionError",
    "raises all": "class E(ValueError, SystemExit): pass\ndef add(a, b): raise E",
    "raises without end": "class E(Exception):\n    def __str__(self): raise E\ndef add(a, b): raise E",
    "nests": "x = []\nfor _ in range(10**5): x = [x]\ndef add(a, b): return x",
    "holds itself": "x = []\nx.append(x)\ndef add(a, b): return x",
    "never ends": "import itertools\ndef add(a, b): return itertools.count()",
    "is too long": "def add(a, b): return 'x' * (5 << 20)",
    "crashes": "import ctypes\ndef add(a, b): ctypes.string_at(0)",
    "kills": "import os\nfor pid in (os.getppid(), 1):\n    try: os.kill(pid, 9)\n    except OSError: pass\n"
    "def add(a, b): return 0",
}


def contained(program, answer, seconds=1.0):
    start = time.monotonic()
    score, _, reason = grade(program, answer, seconds=seconds)
    assert score == 0.0, reason
    assert time.monotonic() - start < 20
    return reason


@pytest.mark.parametrize("program", ATTACKS.values(), ids=ATTACKS.keys())
def test_no_attack_passes_asserts(program):
    assert contained(program, ADD)


@pytest.mark.parametrize("name", ["leaves at once", "loops and catches", "forks", "takes memory", "prints", "crashes"])
def test_no_attack_passes_scripts(name):
    run = "" if name in ("leaves at once", "forks", "prints", "takes memory") else "\nadd(1, 2)"
    assert contained(ATTACKS[name] + run, SUM)


@pytest.mark.parametrize("name", ["leaves", "loops", "forks", "takes memory", "prints", "writes a report", "crashes"])
def test_no_attack_passes_without_namespaces(name, monkeypatch):
    monkeypatch.setattr(sandbox, "isolated", lambda: False)
    assert grade("def add(a, b): return a + b", ADD)[0] == 1.0
    assert contained(ATTACKS[name], ADD)


def test_a_module_of_the_tests_is_not_the_programs():
    answer = json.dumps({"asserts": ["assert math.isclose(f(2), 1.4142, rel_tol=0.01)"]})
    assert grade("import math\ndef f(x): return math.sqrt(x)", answer)[0] == 1.0
    fake = "class math:\n    def isclose(*args, **kwargs): return True\ndef f(x): return 0"
    assert contained(fake, answer)


@pytest.mark.parametrize(
    ("helper", "fake", "test"),
    [
        ("isclose", "isclose = lambda *a, **k: True", "isclose(f(2), 1.4142, rel_tol=0.01)"),
        ("sqrt", "sqrt = lambda x: 0", "f(2) == sqrt(2)"),
        ("approx", "class approx:\n    def __init__(self, x): pass", "approx(f(2)) != approx(0)"),
        ("np", "class np:\n    def allclose(*a): return True\n    array = list", "np.allclose(f(2), np.array([1.4]))"),
        ("math", "import math\nmath.isclose = lambda *a, **k: True", "math.isclose(f(2), 1.4142, rel_tol=0.01)"),
        ("Counter", "Counter = lambda x: 0", "f(2) == Counter('aab')"),
        ("abs", "abs = lambda x: 0", "abs(f(2) - 1.4142) < 0.01"),
        ("round", "round = lambda x, y: 1.41", "round(f(2), 2) == 1.41"),
    ],
)
def test_a_helper_that_the_tests_forgot_to_import_is_not_the_programs(helper, fake, test):
    answer = json.dumps({"asserts": [f"assert {test}"], "names": ["f"]})
    assert contained(f"{fake}\ndef f(x): return 0", answer)
    answer = json.dumps({"check": f"def check(f):\n    assert {test}\n", "entry_point": "f"})
    assert contained(f"{fake}\ndef f(x): return 0", answer)


@pytest.mark.parametrize("test", ["f(2).issubset({1, 2})", "f(2).x == 1", "not f(2).isdigit()"])
def test_what_a_program_returns_can_not_bring_its_own_methods(test):
    fake = "class Any:\n    x = 1\n    def issubset(self, other): return True\n    def isdigit(self): return False\n"
    fake += "def f(x): return Any()"
    for answer in (
        {"asserts": [f"assert {test}"]},
        {"asserts": [f"assert {test}"], "names": ["f"]},
        {"check": f"def check(f):\n    assert {test}\n", "entry_point": "f"},
    ):
        assert contained(fake, json.dumps(answer))
    answer = json.dumps({"asserts": ["assert f(2).issubset({1, 2})"]})
    assert grade("def f(x): return {1}", answer)[0] == 1.0


def test_tests_that_ask_nothing_of_the_program_do_not_pass():
    asserts = ["try:\n    f()\nexcept Exception:\n    pass\nassert 1 == 1", "assert LIMIT or True"]
    answer = json.dumps({"asserts": asserts, "names": ["LIMIT", "f"]})
    assert contained("x = 1", answer)


def test_asserts_that_are_not_reached_do_not_hold():
    answer = json.dumps({"asserts": ["for got, want in zip(f([2, 1]), [1, 2]):\n    assert got == want"]})
    score, _, reason = grade_lib.grade("def f(a): return []", answer)
    assert score == 0.0 and "not reached" in reason
    assert grade_lib.grade("def f(a): return sorted(a)", answer)[0] == 1.0


def test_an_iteration_of_the_tests_can_not_be_cut_short():
    answer = json.dumps({"asserts": ["assert all(map(lambda x: f(x) == x, [1, 2]))"]})
    assert grade("def f(x): return x", answer)[0] == 1.0
    for kind in ("StopIteration", "GeneratorExit", "KeyboardInterrupt"):
        assert contained(f"def f(x): raise {kind}", answer)


def test_a_program_that_has_ended_does_not_pass_tests_that_catch_everything():
    answer = json.dumps({"asserts": ["try:\n    f()\nexcept BaseException:\n    pass\nassert f", "assert 1 == 1"]})
    assert grade("def f(): raise ValueError", answer)[0] == 1.0
    assert contained("import os\ndef f(): os._exit(0)", answer)


def test_what_is_expected_can_not_be_found():
    """The program looks for the number in its objects, frames and files, and in those of all processes it can see."""
    if not sandbox.isolated():
        pytest.skip("without namespaces it sees the files of its user")
    program = """
import gc, glob, os, sys
def texts():
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals)
        frame = frame.f_back
    for one in gc.get_objects():
        yield repr(one)[:10000]
    for path in [*glob.glob("/proc/[0-9]*/*"), *glob.glob("/proc/[0-9]*/fd/*"), *glob.glob("/tmp/**", recursive=True)]:
        try:
            yield open(path, "rb").read(1 << 20).decode("latin1")
        except (OSError, ValueError):
            pass
def f(x):
    marker = "73" + "51"
    return x + 1 if any(marker + "9" in text for text in texts()) else 0
"""
    answer = json.dumps({"asserts": ["assert f(73518) == 73519"]})
    assert grade(program.replace("in texts()", "in ['73519']"), answer)[0] == 1.0
    assert "f(73518) returns 0" in contained(program, answer, seconds=10.0)


@pytest.mark.parametrize("isolated", [True, False])
def test_a_worker_that_is_killed_at_its_time_limit_takes_the_program_along(isolated):
    if isolated and not sandbox.isolated():
        pytest.skip("this machine allows no namespaces")
    with pebble.ProcessPool(1, initializer=start_worker, initargs=(isolated, tempfile.tempdir), context=SPAWN) as pool:
        right = pool.schedule(grade, args=("def add(a, b): return a + b", ADD), timeout=60)
        assert right.result()[0] == 1.0
        hangs = pool.schedule(grade_lib.grade, args=(ATTACKS["sleeps"], ADD), kwargs=dict(seconds=60), timeout=2)
        with pytest.raises(TimeoutError):
            hangs.result()
    deadline = time.monotonic() + 20
    while leftovers.orphans():
        assert time.monotonic() < deadline
    for folder in pathlib.Path(tempfile.gettempdir()).glob("sandbox-*") if not isolated else ():
        folder.rmdir()  # no process was left to remove it


def start_worker(isolated, folder):
    tempfile.tempdir = folder
    grade_lib.start(4 << 30)
    if not isolated:
        sandbox.isolated = lambda: False
