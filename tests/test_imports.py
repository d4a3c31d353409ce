"""Imports point one way only, and the package never needs TensorFlow or torch."""

import ast
import graphlib
import os
import pathlib
import subprocess
import sys

import pytest

import cgrpo_jax

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}

# A module may import modules of its own level and of those above it in this table.
LEVELS = (
    (
        "errors",
        "interrupts",
        "answers",
        "records",
        "tables",
        "formats",
        "prepared",
        "order",
        "curriculum",
        "objective",
        "logprobs",
        "logprobs_pallas",
        "logit_tiles",
        "sampling",
        "passk",
        "intervals",
        "majority",
        "runtime",
        "sharding",
        "hlo",
        "topology",
        "traffic",
        "costs",
        "unroll",
        "writing",
        "json_files",
        "sandbox",
        "sandbox_launcher",
        "sandbox_probe",
        "code_names",
        "code_values",
        "code_program",
        "code_tests",
        "polynomials",
        "expressions",
    ),
    (
        "model",
        "tokenizer",
        "functions",
        "judge",
        "rewards",
        "workers",
        "chat_api",
        "http_critic",
        "math_worker",
        "code_worker",
        "critiques",
        "equations",
        "arithmetic",
        "snippets",
        "packing",
        "reading",
        "selection",
        "splash",
        "attention",
        "forward",
        "decoding",
        "flops",
    ),
    (
        "families",
        "hf",
        "hf_export",
        "lora",
        "layouts",
        "scheduler",
        "slots",
        "engine",
        "optimizer",
        "update",
        "checkpoint",
        "prompts",
        "metrics",
    ),
    (
        "pipeline",
        "writers",
        "rollout",
        "warmstart",
        "snippet_lessons",
        "evaluation",
        "diagnosis",
        "parts",
        "scores",
        "config",
        "may_change",
        "fingerprints",
        "rundir",
        "checks",
        "problems",
    ),
    ("generation", "assemble", "opening", "beginning", "cli", "journal", "model_card", "model_files", "profiling"),
    (
        "train",
        "learner",
        "evaluate",
        "diagnose",
        "subject",
        "sample",
        "convert",
        "data",
        "programs",
        "planning",
        "plan",
    ),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


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
    names = imported(without_main_block(ast.parse(text)))
    return {name.split(".")[1] for name in names if name.startswith("cgrpo_jax.")} - {"__version__"}


def upward(name, text):
    return {other for other in package_imports(text) if LEVEL[other] > LEVEL[name]}


def test_every_module_is_in_the_table():
    assert not {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert not MODULES.keys() - LEVEL.keys(), "give the module a level in LEVELS"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    assert not upward(name, MODULES[name].read_text())


def test_no_import_cycle():
    graph = {name: package_imports(path.read_text()) for name, path in MODULES.items()}
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
    assert upward("model", text) == {"train"}
    assert not upward("train", text)


def test_only_the_main_block_may_import_upwards():
    assert not upward("reading", "if __name__ == '__main__':\n    from cgrpo_jax import cli")
    assert upward("reading", "if __debug__:\n    from cgrpo_jax import cli") == {"cli"}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_names_tensorflow_or_torch(name):
    roots = {dotted.split(".")[0] for dotted in imported(ast.parse(MODULES[name].read_text()))}
    assert not roots & {"tensorflow", "torch"}


def run_python(code, *path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_importing_the_package_is_light():
    heavy = run_python(
        "import sys, cgrpo_jax; sys.stdout.write(' '.join({'jax', 'tensorflow', 'torch', 'httpx'} & set(sys.modules)))"
    ).stdout
    assert heavy == ""


def test_no_module_imports_tensorflow_or_torch_even_where_they_are_installed(tmp_path):
    # Stand-ins that tell when anything, a dependency included, imports them, and then act as if not installed.
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nsys.stdout.write('{name} ')\nraise ModuleNotFoundError('stand-in', name='{name}')\n"
        )
    assert run_python("try:\n    import torch\nexcept ImportError: pass", tmp_path).stdout == "torch "
    modules = "".join(f"import cgrpo_jax.{name}\n" for name in MODULES)
    assert run_python(modules, tmp_path).stdout == ""
