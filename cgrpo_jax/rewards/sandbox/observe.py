"""What comes of calls that somebody would like to see of a response's program. Run only inside worker processes.

Each call is run as a test is (`grade`): in another sandbox than the program, which meets nothing but its arguments.
"""

import ast
import functools
import json
import re
from collections.abc import Callable, Iterator

from cgrpo_jax.rewards.sandbox import grade
from cgrpo_jax.rewards.sandbox.extraction import bound_names, program_of
from cgrpo_jax.rewards.sandbox.markdown import blocks_of
from cgrpo_jax.rewards.sandbox.modules import NONE, Modules
from cgrpo_jax.rewards.sandbox.names import candidates
from cgrpo_jax.rewards.sandbox.values import EXPECTED

MAX_CALLS = 4
MAX_CHARS = 400  # of a call
_MAX_LINES = 64  # of what is asked for
_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
_VALUE = re.compile(
    r"Test 1 of 1 fails: it does not hold, and __value__ is (?:\[(.*)\]|<.*)\. Tests passed: 0 of 1\.", re.S
)
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


def observe(response: str, asked: str, timeout: float = 5.0, numpy: bool = False, modules: Modules = NONE) -> list[str]:
    """Returns what came of each call, in words; nothing where no call of the program's is asked for.

    Args:
      response: what the model wrote.
      asked: Python that calls what its program defines.
      timeout: seconds after which the worker is killed.
      numpy: the program and the calls may import NumPy.
      modules: of the user's own, which the program may import.

    Example:
      >>> observe("def half(n):\\n    return n // 2", "half(7)\\nhalf('a')")[0]
      'half(7) returns 3'
    """
    known = bound_names(program_of(response))
    wanted = []
    for call in calls_of(asked):
        names = candidates("", [f"assert not [{call}]"])
        if names and known and set(names) <= set(known):
            wanted.append((call, [*names, *_attributes(call)]))
    seconds = grade.seconds_for(timeout) / max(len(wanted), 1)
    run = functools.partial(grade.grade, timeout=timeout, numpy=numpy, modules=modules, seconds=seconds)
    return [_came_of(run, response, call, names) for call, names in wanted]


def _came_of(run: Callable[..., tuple], response: str, call: str, names: list[str]) -> str:
    """What came of a call, in words. A list is no number, so the test always fails, and says what is in the list."""
    tests = json.dumps({"asserts": [f"__value__ = [{call}]\nassert __value__ == 0"], "names": names})
    _, _, reason = run(response, tests)
    reason = reason.partition(EXPECTED)[0]
    if match := _VALUE.fullmatch(reason):
        return f"{call} {'returns' if _is_call(call) else 'is'} {match[1] or 'what has no text'}"
    match = _SAID.fullmatch(reason)
    return match[1] if match else f"{call}: {reason}"


def _attributes(call: str) -> list[str]:
    """The attributes that a call asks for, with a point before each."""
    nodes = ast.walk(ast.parse(call))
    return sorted({f".{node.attr}" for node in nodes if isinstance(node, ast.Attribute)})


def _is_call(text: str) -> bool:
    return isinstance(ast.parse(text, mode="eval").body, ast.Call)


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
        found = [one.value if isinstance(one, ast.Starred) else one for one in value.args]
    return [one for one in found if any(isinstance(inner, ast.Call) for inner in ast.walk(one))]
