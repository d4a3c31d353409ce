"""What comes of calls that somebody would like to see of a response's program. Run only inside worker processes.

Each call is run as a test is (`grade`): in another sandbox than the program, which meets nothing but its arguments.
"""

import ast
import json
import re
from collections.abc import Iterator

from cgrpo_jax.rewards.sandbox import grade
from cgrpo_jax.rewards.sandbox.extraction import bound_names, program_of
from cgrpo_jax.rewards.sandbox.markdown import blocks_of
from cgrpo_jax.rewards.sandbox.names import candidates
from cgrpo_jax.rewards.sandbox.values import EXPECTED

MAX_CALLS = 4
MAX_CHARS = 400  # of a call
_MAX_LINES = 64  # of what is asked for
_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
_SAID = re.compile(
    r"(?:Test 1 of 1 (?:fails|can't be decided)|No test could be run): (.*)\. Tests passed: \d of 1\.", re.S
)


def defined(response: str) -> list[str]:
    """Returns the names that a response's program defines for others to call, in their order; none if it has none.

    Example:
      >>> defined("Here:\\n```python\\nimport math\\ndef area(r):\\n    return math.pi * r * r\\n```")
      ['area']
    """
    program = program_of(response)
    try:
        tree = ast.parse(program)
    except _NO_PYTHON:
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def calls_of(asked: str) -> list[str]:
    """Returns the expressions in what somebody asks to see: `print(f(1))` and `assert f(1) == 2` ask for `f(1)`.

    Example:
      >>> calls_of("```python\\nprint(f(1))\\nassert f(2) == 3\\n```")
      ['f(1)', 'f(2)']
    """
    blocks = [block.code for block in blocks_of(asked)] or [asked]
    found = [ast.unparse(one) for text in blocks for node in _statements(text) for one in _asked(node)]
    return [one for one in dict.fromkeys(found) if len(one) <= MAX_CHARS][:MAX_CALLS]


def observe(response: str, asked: str, timeout: float = 5.0, numpy: bool = False) -> list[str]:
    """Returns what came of each call, in words; nothing where no call of the program's is asked for.

    Args:
      response: what the model wrote.
      asked: Python that calls what its program defines.
      timeout: seconds after which the worker is killed.
      numpy: the program and the calls may import NumPy.

    Example:
      >>> observe("def half(n):\\n    return n // 2", "half(7)\\nhalf('a')")[0]
      'half(7) returns 3'
    """
    known = bound_names(program_of(response))
    wanted = []
    for call in calls_of(asked):
        names = candidates("", [f"assert not [{call}]"])
        if names and known and set(names) <= set(known):
            wanted.append((call, names))
    seconds = grade.seconds_for(timeout) / max(len(wanted), 1)
    return [_came_of(response, call, names, timeout, numpy, seconds) for call, names in wanted]


def _came_of(response: str, call: str, names: list[str], timeout: float, numpy: bool, seconds: float) -> str:
    """What came of a call, in words. A list is never false, so the test always fails, and says why."""
    tests = json.dumps({"asserts": [f"assert not [{call}]"], "names": names})
    _, _, reason = grade.grade(response, tests, timeout, numpy, seconds=seconds)
    reason = reason.partition(EXPECTED)[0]
    match = _SAID.fullmatch(reason)
    return match[1] if match else f"{call}: {reason}"


def _statements(text: str) -> Iterator[ast.stmt]:
    """Yields the statements of a text, of one that is no Python those of its lines that are."""
    try:
        yield from ast.parse(text).body
    except _NO_PYTHON:
        for line in text.splitlines()[:_MAX_LINES]:
            try:
                yield from ast.parse(line.strip(" `-*\t")).body
            except _NO_PYTHON:
                continue


def _asked(node: ast.stmt) -> list[ast.expr]:
    """The expressions that a statement asks to see: those with a call."""
    value = node.test if isinstance(node, ast.Assert) else None
    if isinstance(node, ast.Expr | ast.Assign):
        value = node.value
    if isinstance(value, ast.Compare):
        value = value.left
    found = [value] if value is not None else []
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print":
        found = value.args
    return [one for one in found if any(isinstance(inner, ast.Call) for inner in ast.walk(one))]
