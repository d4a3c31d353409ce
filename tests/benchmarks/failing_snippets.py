"""Small programs that look right and fail: right ones with one thing changed, so that some tests fail and others pass.

A change is one that people make: a bound that is off by one, `<` for `<=`, `and` for `or`, another sign, a first value,
an edge that is not looked at. The tests of the task decide which changes fail. Tasks: snippet_tasks.jsonl.
"""

import ast
import copy
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

from cgrpo_jax.rewards.grader import Grader

_FLIPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Div, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "isdigit": "isalnum", "isupper": "islower"}


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A response to a task, and what its tests say of it.

    Attributes:
      question: what is asked.
      program: the response's program.
      tests: a gold answer of kind `code`.
      passes: whether it passes them all.
    """

    question: str
    program: str
    tests: str
    passes: bool

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.question}\0{self.program}\0{self.tests}".encode()).hexdigest()[:16]

    @property
    def response(self) -> str:
        """The program as people show one."""
        return f"Here is the function:\n\n```python\n{self.program}\n```\n\nIt covers the cases that you ask for."


def right() -> list[Snippet]:
    """Returns the right programs, one a task."""
    found = []
    for line in (pathlib.Path(__file__).parent / "snippet_tasks.jsonl").read_text().splitlines():
        task = json.loads(line)
        name = task["program"].split("(")[0].removeprefix("def ")
        tests = json.dumps({"asserts": [f"assert {one}" for one in task["asserts"]], "names": [name]})
        found.append(Snippet(task["question"], task["program"], tests, True))
    return found


def failing(number: int) -> list[Snippet]:
    """Returns programs that fail some of their tests, not all: of each task in turn, as many as are asked for."""
    changed = [[Snippet(one.question, text, one.tests, False) for text in _changed(one.program)] for one in right()]
    in_turn = [some[k] for k in range(max(map(len, changed))) for some in changed if k < len(some)]
    found: list[Snippet] = []
    with Grader("code", timeout=60.0) as grader:  # which a busy machine may take to start
        for first in range(0, len(in_turn), 32):
            some = in_turn[first : first + 32]
            grades = grader.grade([one.response for one in some], [one.tests for one in some])
            found += [one for one, grade in zip(some, grades, strict=True) if _looks_right(grade)]
            if len(found) >= number:
                break
    return found[:number]


def _looks_right(grade) -> bool:
    """Does a program fail, after it has passed a test? One that raises at once, or never ends, does not look right."""
    said = grade.reason
    return not grade.score and " returns " in said and "Tests passed: 0 of" not in said


def _changed(program: str) -> Iterator[str]:
    """Yields the programs that differ from one in one thing."""
    tree = ast.parse(program)
    count = sum(1 for _ in ast.walk(tree))
    seen = {ast.unparse(tree)}
    for place in range(count):
        for way in range(2):
            other = copy.deepcopy(tree)
            node = list(ast.walk(other))[place]
            if _change(node, way) and (text := ast.unparse(other)) not in seen:
                seen.add(text)
                yield text


def _change(node: ast.AST, way: int) -> bool:
    """Changes one thing of a node, in one of two ways; returns whether there is such a change."""
    if isinstance(node, ast.Compare) and way == 0 and type(node.ops[0]) in _FLIPS:
        node.ops[0] = _FLIPS[type(node.ops[0])]()  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and way == 0 and type(node.op) in _FLIPS:
        node.op = _FLIPS[type(node.op)]()  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1 if way == 0 else -1
    elif isinstance(node, ast.Constant) and type(node.value) is bool and way == 0:
        node.value = not node.value
    elif isinstance(node, ast.Name) and way == 0 and node.id in _NAMES:
        node.id = _NAMES[node.id]
    elif isinstance(node, ast.Attribute) and way == 0 and node.attr in _NAMES:
        node.attr = _NAMES[node.attr]
    elif isinstance(node, ast.UnaryOp) and way == 0 and isinstance(node.op, ast.Not):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Compare) and way == 1 and len(node.ops) == 1:
        node.left, node.comparators = node.comparators[0], [node.left]
    elif isinstance(node, ast.BinOp) and way == 1:
        node.left, node.right = node.right, node.left
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        node.args[-1] = ast.BinOp(node.args[-1], ast.Sub() if way == 0 else ast.Add(), ast.Constant(1))
    elif isinstance(node, ast.Slice) and node.upper is not None:
        node.upper = ast.BinOp(node.upper, ast.Sub() if way == 0 else ast.Add(), ast.Constant(1))
    elif isinstance(node, ast.FunctionDef) and way == 0 and isinstance(node.body[0], ast.If) and len(node.body) > 1:
        del node.body[0]  # an edge that is not looked at
    else:
        return False
    return True
