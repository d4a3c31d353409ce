"""Imports point one way only, and the package never needs TensorFlow or torch."""

import ast
import contextlib
import graphlib
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import cgrpo_jax

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent
TESTS_FOLDER = pathlib.Path(__file__).parent
TESTS = sorted(TESTS_FOLDER.rglob("*.py"))
# Rooms, low to high: a module imports from its own room and from those before it.
ROOMS = (
    ("records", "errors", "sharding", "ratios", "objective"),
    ("runtime",),
    ("models",),
    ("rewards",),
    ("critiques",),
    ("inference",),
    ("rollout", "groups", "batches"),
    ("training",),
    ("datasets",),
    ("runs",),
    ("evaluation",),
    ("report",),
    ("planning",),
    (
        "train",
        "finetune",
        "evaluate",
        "diagnose",
        "collect",
        "recipe",
        "sample",
        "show",
        "plan",
        "simulate",
        "convert",
        "data",
        "init",
        "__main__",
    ),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem != "__init__"
}


def imported(tree):
    """Yields the dotted names that a module imports, wherever in it; `from a import b` yields `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import is one of this package.
            source = ".".join(filter(None, ["cgrpo_jax" if node.level else "", node.module]))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def without_main_block(tree):
    """Drops `if __name__ == "__main__":`, which no import of the module runs."""
    body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'")]
    return ast.Module(body=body, type_ignores=[])


def package_imports(text):
    """Returns the modules of the package that a module imports, as dotted names without the package's own."""
    names = (name.removeprefix("cgrpo_jax.") for name in imported(without_main_block(ast.parse(text))))
    return {known for name in names if (known := longest_module(name))}


def longest_module(name):
    """Returns the module of the package that a dotted name is, or is in; None if it is none of the package's."""
    parts = name.split(".")
    candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((module for module in candidates if module in MODULES), None)


def room(module):
    return module.split(".")[0]


def upward(name, text):
    return {other for other in package_imports(text) if LEVEL[room(other)] > LEVEL[room(name)]}


def test_every_module_is_in_a_room():
    assert {room(module) for module in MODULES} == LEVEL.keys(), "give the room a place in ROOMS"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    assert not upward(name, MODULES[name].read_text())


def test_no_import_cycle():
    graph = {name: package_imports(path.read_text()) - {name} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "text",
    [
        "import cgrpo_jax.train",
        "from cgrpo_jax import errors, train",
        "from cgrpo_jax.train import main",
        "from . import train",
        "from .train import main",
        "def f():\n    from cgrpo_jax import train",
    ],
)
def test_the_check_sees_every_form_of_import(text):
    assert upward("models.params", text) == {"train"}
    assert not upward("train", text)


def test_only_the_main_block_may_import_upwards():
    assert not upward("models.params", "if __name__ == '__main__':\n    from cgrpo_jax.runs import cli")
    assert upward("models.params", "if __debug__:\n    from cgrpo_jax.runs import cli") == {"runs.cli"}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_names_tensorflow_or_torch(name):
    roots = {dotted.split(".")[0] for dotted in imported(ast.parse(MODULES[name].read_text()))}
    assert not roots & {"tensorflow", "torch"}


def test_no_test_file_imports_another():
    """What tests share is in tests/helpers; strings count, too, which are the programs of other processes."""
    for path in TESTS:
        names = {name for text in programs(path.read_text()) for name in imported(ast.parse(text))}
        others = {name for name in names if name.startswith(("test_", "tests."))}
        assert not others, f"{path.relative_to(TESTS_FOLDER)} imports {', '.join(sorted(others))}"


def programs(text):
    """Yields a module and the strings in it that are programs with imports."""
    yield text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            with contextlib.suppress(SyntaxError):
                ast.parse(program := textwrap.dedent(node.value))
                yield program


def test_the_check_of_test_files_sees_programs_in_strings():
    text = 'PROGRAM = """\n    import sys\n    import test_engine\n"""\nprose = "files import test_engine"'
    assert [name for program in programs(text) for name in imported(ast.parse(program))] == ["sys", "test_engine"]


def run_python(code, *path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_importing_the_package_is_light():
    heavy = run_python(
        "import sys, cgrpo_jax; sys.stdout.write(' '.join({'jax', 'tensorflow', 'torch', 'httpx'} & set(sys.modules)))"
    ).stdout
    assert heavy == ""
