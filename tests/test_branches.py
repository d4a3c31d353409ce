"""One loop: a method is a value of the configuration, not a branch through `train`, `rollout` or `groups`."""

import ast
import pathlib

import cgrpo_jax

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent
CONFIGURED = ("settings", "method", "grouping", "critic", "batch")  # names that hold values of the configuration
# As many as before the neighbours of Critique-GRPO were values of the same loop: 6 of `rollout`, 2 of `train`.
MOST = 8


def branches(text):
    """Yields the tests of all branches that read a value of the configuration."""
    for node in ast.walk(ast.parse(text)):
        tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
        tests += [node.subject] if isinstance(node, ast.Match) else []
        tests += node.ifs if isinstance(node, ast.comprehension) else []
        yield from (ast.unparse(test) for test in tests if reads_configuration(test))


def reads_configuration(test):
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name | ast.Attribute)
        and (node.value.id if isinstance(node.value, ast.Name) else node.value.attr) in CONFIGURED
        for node in ast.walk(test)
    )


def test_the_loop_has_no_more_branches_on_the_configuration_than_it_had():
    found = [
        branch
        for name in ("train", "rollout", "groups", "batches")
        for branch in branches((PACKAGE / f"{name}.py").read_text())
    ]
    assert len(found) <= MOST, found


def test_a_branch_is_found():
    text = (
        "x = 1 if method.a else 2\nif self.settings.b == 1 or y:\n    pass\nz = [a for a in b if grouping.c]\ny.c or 1"
    )
    assert list(branches(text)) == ["self.settings.b == 1 or y", "method.a", "grouping.c"]
