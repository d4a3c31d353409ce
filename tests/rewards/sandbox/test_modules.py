"""Modules of the user's own that programs import: what is read, what is hashed, and what reaches a critique."""

import json
import re

import graded
import pytest

from cgrpo_jax.critiques import texts
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader, user_modules
from cgrpo_jax.rewards.sandbox import environment, modules
from cgrpo_jax.rewards.sandbox.grade import grade, unimportable
from cgrpo_jax.rewards.sandbox.observe import observe

pytestmark = graded.MARKS

HYDRO = """
class Reservoir:
    def __init__(self):
        self.litres = 0

    def pour_in(self, *, litres):
        self.litres += litres

    def __getattr__(self, name):
        raise AttributeError(
            f"Reservoir has no method {name!r}.\\nMethods: pour_in(*, litres), " + "drain(*, litres), " * 20 + "last()"
        )
"""
LEVEL = json.dumps({"asserts": ["assert level(3) == 3", "assert level(4) == 4"]})
RIGHT = (
    "import hydro\n\n\ndef level(n):\n    tank = hydro.Reservoir()\n    tank.pour_in(litres=n)\n    return tank.litres"
)
WRONG = RIGHT.replace("pour_in(litres=n)", "add(n)")


@pytest.fixture
def hydro(tmp_path):
    file = tmp_path / "hydro.py"
    file.write_text(HYDRO)
    return modules.read([file])


def test_a_program_imports_a_module_and_others_do_not(hydro):
    assert grade(RIGHT, LEVEL, 20.0, modules=hydro)[2] == "passes all 2 tests"
    assert "No module named 'hydro'" in grade(RIGHT, LEVEL, 20.0)[2]


def test_a_script_imports_it(hydro):
    printing = json.dumps({"stdin": [{"input": "5", "output": "5"}]})
    program = RIGHT + "\n\n\nprint(level(int(input())))"
    assert grade(program, printing, 20.0, modules=hydro)[2] == "passes all 1 tests"


def test_what_it_raises_is_the_critique_whole_with_the_programs_own_line(hydro):
    _, _, reason = grade(WRONG, LEVEL, 20.0, modules=hydro)
    said = "Reservoir has no method 'add'. Methods: pour_in(*, litres), " + "drain(*, litres), " * 20 + "last()"
    assert texts.of_tests(False, reason) == (
        f"Test 1 of 2 fails: level(3) raises AttributeError: {said} in line 6: `tank.add(n)`. Tests passed: 0 of 2. "
        "Conclusion: wrong [END]"
    )


def test_a_graders_workers_have_it(hydro):
    found = grader.grade("code", [RIGHT, WRONG], [LEVEL, LEVEL], modules=hydro, timeout=20.0)
    assert [one.score for one in found] == [1.0, 0.0]


def test_calls_that_a_judge_asks_for_have_it(hydro):
    assert observe(RIGHT, "level(7)", 20.0, modules=hydro) == ["level(7) returns 7"]


@pytest.mark.parametrize(
    "text",
    [
        "import numpy\ndef litres(n):\n    return int(numpy.ones(n).sum())",
        "def litres(n):\n    import numpy\n    return int(numpy.ones(n).sum())",
        "import zoneinfo\ndef litres(n):\n    return n * (zoneinfo.ZoneInfo('Asia/Tokyo').key == 'Asia/Tokyo')",
    ],
    ids=["eager", "lazy", "zone"],
)
def test_a_module_has_what_it_imports_itself(tmp_path, text):
    (tmp_path / "hydro.py").write_text(text)
    found = modules.read([tmp_path / "hydro.py"])
    program = "import hydro\n\n\ndef level(n):\n    return hydro.litres(n)"
    assert grade(program, LEVEL, 20.0, True, found)[2] == "passes all 2 tests"


def test_what_a_module_imports_is_wanted_where_a_program_imports_the_module(tmp_path):
    (tmp_path / "hydro.py").write_text("def litres(n):\n    import numpy, zoneinfo\n")
    found = modules.read([tmp_path / "hydro.py"])
    with_it, without = (environment.wanted(one, LEVEL, True, found) for one in ("import hydro", "import json"))
    assert with_it["packages"] == environment.packages(True) and with_it["zones"] == environment.zones()
    assert not without["packages"] and not without["zones"] and not without["modules"]


def test_the_tests_see_none_of_it(hydro):
    spying = json.dumps(
        {"setup": "import importlib\nimportlib.import_module('hydro')", "asserts": ["assert level(3) == 3"]}
    )
    assert "No module named 'hydro'" in grade(RIGHT, spying, 20.0, modules=hydro)[2]


def test_a_program_changes_it_for_itself_alone(hydro, tmp_path):
    changing = (
        "import hydro\nhydro.Reservoir.pour_in = None\nopen('hydro.py', 'w').write('')\n\n\ndef level(n):\n    return n"
    )
    assert grade(changing, LEVEL, 20.0, modules=hydro)[0] == 1.0
    assert grade(RIGHT, LEVEL, 20.0, modules=hydro)[0] == 1.0
    assert (tmp_path / "hydro.py").read_text() == HYDRO


def test_no_file_of_it_is_shown(hydro, tmp_path):
    looking = f"import hydro, os\n\n\ndef level(n):\n    return n + os.path.exists({str(tmp_path)!r})"
    if not grader.sandbox.isolated():
        pytest.skip("without namespaces a program sees the machine's files")
    assert grade(looking, LEVEL, 20.0, modules=hydro)[0] == 1.0


def test_a_package_with_modules_that_import_each_other(tmp_path):
    folder = tmp_path / "pumps"
    (folder / "inner").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "__init__.py").write_text("from pumps.rotary import Pump\n")
    (folder / "rotary.py").write_text("from .inner import parts\nclass Pump:\n    blades = parts.BLADES\n")
    (folder / "inner" / "parts.py").write_text("BLADES = 6\n")
    (folder / "inner.py").write_text("raise ValueError\n")  # beside the folder, which Python takes
    (folder / ".hidden" / "other.py").write_text("BLADES = 7\n")
    found = modules.read([folder])
    assert found.names == ("pumps",)
    assert sorted(found.sources) == ["pumps", "pumps.inner", "pumps.inner.parts", "pumps.rotary"]
    imports = "import pumps\nfrom pumps.inner.parts import BLADES"
    program = f"{imports}\n\n\ndef level(n):\n    return n + pumps.Pump.blades - BLADES"
    assert grade(program, LEVEL, 20.0, modules=found)[0] == 1.0


def test_the_digest_is_of_all_that_a_module_holds(tmp_path, hydro):
    before = hydro.digests()
    assert list(before) == ["the module hydro"]
    folder = tmp_path / "pumps"
    folder.mkdir()
    (folder / "a.py").write_text("A = 1\n")
    both = modules.read([tmp_path / "hydro.py", folder]).digests()
    assert both["the module hydro"] == before["the module hydro"] and len(both) == 2
    (folder / "b.py").write_text("")
    changed = modules.read([tmp_path / "hydro.py", folder]).digests()
    assert changed["the module hydro"] == both["the module hydro"]
    assert changed["the module pumps"] != both["the module pumps"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gone.py", None, "'{path}' does not exist; give a file, such as lib/hydro.py, or a folder."),
        ("hydro.so", "x", "'{path}' is no Python file; give one that ends in .py, or a folder of them."),
        ("hydro-2.py", "x = 1", "'{path}': 'hydro-2' is no name that can be imported; rename it."),
        ("json.py", "x = 1", "'{path}': 'json' is the name of one that is there already; rename it."),
        ("hydro.py", "x = 1\nif", "'{path}' is no Python (SyntaxError, line 2); fix it."),
        ("hydro.py", "x = 1\0", "'{path}' is no Python (SyntaxError); fix it."),
        ("hydro.py", f"x = '{'y' * (1 << 20)}'", "s {path} hold 1048582 bytes, which each program would be given; "),
    ],
)
def test_what_is_refused(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        modules.read([path])
    assert str(caught.value).startswith(f"module {said}".replace("module s ", "modules ").format(path=path))


def test_folders_and_names_that_are_refused(tmp_path, hydro):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no Python file"):
        modules.read([tmp_path / "empty"])
    with pytest.raises(UserError, match="two modules are called 'hydro'"):
        modules.read([tmp_path / "hydro.py", tmp_path / "hydro.py"])


def test_a_module_that_can_not_be_imported_is_refused_in_one_line(tmp_path):
    (tmp_path / "needy.py").write_text("import yaml\n")
    with pytest.raises(UserError) as caught:
        user_modules.load([tmp_path / "needy.py"])
    assert str(caught.value) == (
        "code.modules: a program can't import needy (the program raises ModuleNotFoundError: No module named 'yaml' in "
        "line 1: `import needy`); fix the module, or leave it out."
    )


def test_a_module_that_takes_longer_than_a_program_may_is_refused(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1.1)\n")
    found = modules.read([tmp_path / "slow.py"])
    said = unimportable(found, 30.0, limit=1.0)
    assert re.fullmatch(r"slow \(it takes \d+\.\d s, of which grader.timeout 1 leaves 0\.6\)", said)
    assert unimportable(found, 30.0, limit=30.0) == ""


@pytest.mark.parametrize("text", ["x = " + "-" * 100_000 + "1", "x = " + "1+" * 100_000 + "1"])
def test_a_module_that_is_too_deep_for_python_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "deep.py").write_text(text)
    with pytest.raises(UserError, match=r"deep.py' is nested too deeply to be compiled \(\w+Error\); simplify it\.$"):
        modules.read([tmp_path / "deep.py"])


def test_all_are_imported_and_none_is_no_work(hydro, monkeypatch):
    assert unimportable(hydro, 20.0) == ""
    monkeypatch.setattr(user_modules, "Workers", None)
    assert user_modules.load([]).names == ()
