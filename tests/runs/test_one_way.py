"""The configuration goes one way: `runs/` alone reads it, and what it decides is decided in one place."""

import ast
import pathlib

import pytest

import cgrpo_jax
from cgrpo_jax.runs import config as config_lib

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
RUNS = {name for name in MODULES if name.startswith("runs.")}
COMMANDS = ("train", "finetune", "evaluate", "diagnose", "collect", "recipe", "sample", "plan", "simulate")
OPENING = ("train", "finetune", "evaluate", "diagnose", "collect", "sample")
BASE = config_lib.load(pathlib.Path(__file__).parents[2] / "configs" / "base.py")
KEYS = set(BASE)  # the flat keys, and the sections


def is_config(node):
    """Is this expression a configuration, by its name: `config`, `self.config`, `opened.config`?"""
    if isinstance(node, ast.Attribute):
        return node.attr == "config" and ast.unparse(node) != "jax.config"
    return isinstance(node, ast.Name) and node.id == "config"


def keys_read(tree):
    """Yields the keys of a configuration that code reads, as attributes, items or by name.

    `config.critic.kind` is a reading of `critic` and of `critic.kind`. `config` of a model has none of these names.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_config(node.value) and node.attr in KEYS:
            yield node.attr
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            section = node.value
            if is_config(section.value) and section.attr in KEYS:
                yield f"{section.attr}.{node.attr}"
        if isinstance(node, ast.Subscript) and is_config(node.value):
            yield ast.unparse(node.slice)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            if is_config(node.args[0]):
                yield ast.unparse(node.args[1])


def takes_config(tree):
    """Yields the functions that take a run's configuration."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for one in arguments:
                if one.annotation and ast.unparse(one.annotation).split(".")[-1] == "Config":
                    yield node.name


def calls(tree, name):
    """Counts the calls of a function or class, by its last name."""
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sum(name == getattr(one, "attr", getattr(one, "id", None)) for one in called)


def modules_that_call(name, among=MODULES):
    return {module for module in among if calls(MODULES[module], name)}


def modules_that_read(key):
    return {module for module in RUNS if key in keys_read(MODULES[module])}


def test_the_walk_sees_every_form_of_reading():
    for text in ("config.seed", "self.config.seed", "config.eval.every", "config['seed']", "getattr(config, 'seed')"):
        assert list(keys_read(ast.parse(text))), text
    assert not list(keys_read(ast.parse("config.num_heads; settings.seed; f(config); run(config=config)")))
    taking = "def f(c: Config): ...\ndef g(*, c: config_lib.Config): ...\ndef h(config: ModelConfig): ..."
    assert list(takes_config(ast.parse(taking))) == ["f", "g"]


@pytest.mark.parametrize("name", sorted(MODULES.keys() - RUNS))
def test_runs_alone_reads_the_configuration(name):
    assert not list(keys_read(MODULES[name]))


@pytest.mark.parametrize("name", sorted(MODULES.keys() - RUNS - set(COMMANDS)))
def test_below_the_commands_nothing_takes_the_configuration(name):
    assert not list(takes_config(MODULES[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_hand_it_on(name):
    assert list(takes_config(MODULES[name])) == ["main"]


# --- the five decisions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["critique.kind", "critique.schedule", "critique.when", "refine.kind"])
def test_stages_are_decided_in_one_place(key):
    assert modules_that_read(key) == {"runs.stages"}


def test_the_critic_is_decided_in_one_place():
    assert modules_that_read("critic.kind") == modules_that_read("critic.folder") == {"runs.stages"}


@pytest.mark.parametrize("name", ["Generator", "Refiner", "RemoteGenerator"])
def test_generators_are_made_in_one_place(name):
    assert modules_that_call(name) == {"runs.build_inference"}


@pytest.mark.parametrize("name", ["read_config", "read_architecture", "described"])
def test_the_models_shape_is_read_in_one_place(name):
    of_a_run = RUNS - {"runs.conversion", "runs.export_source", "runs.first_config"}  # which read a given folder
    assert modules_that_call(name, of_a_run) == {"runs.model_source"}


def test_a_run_is_opened_in_one_place():
    for name in ("load_policy", "load_frozen", "open_endpoint", "open_grader", "load_questions"):
        assert modules_that_call(name) == {"runs.open_run"}, name
    assert {name: calls(MODULES[name], "open_run") for name in OPENING} == dict.fromkeys(OPENING, 1)
