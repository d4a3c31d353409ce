"""No module of the package is longer than 400 lines, no function than 60 lines of code; ruff holds complexity to 20."""

import ast
import pathlib

import cgrpo_jax

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent
MODULE_LINES = 400
CODE_LINES = 60


def code_lines(function, text):
    """Returns how many lines of a function hold code: neither its docstring, nor comments, nor blank lines."""
    doc = function.body[0] if ast.get_docstring(function) is not None else None
    skipped = range(doc.lineno, doc.end_lineno + 1) if doc else ()
    lines = text.splitlines()
    stripped = ((n, lines[n - 1].strip()) for n in range(function.lineno, function.end_lineno + 1) if n not in skipped)
    return sum(bool(line) and not line.startswith("#") for _, line in stripped)


def too_long(text):
    """Yields what is too long in a module, in words."""
    if (lines := len(text.splitlines())) > MODULE_LINES:
        yield f"has {lines} lines, {MODULE_LINES} at most; part it by what its functions are for"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := code_lines(node, text)) > CODE_LINES:
            yield f"{node.name} has {lines} lines of code, {CODE_LINES} at most; give its steps functions of their own"


def test_modules_and_functions_are_short():
    found = {str(path.relative_to(PACKAGE)): list(too_long(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert {name: faults for name, faults in sorted(found.items()) if faults} == {}


def test_a_line_of_code_is_what_is_neither_blank_nor_a_comment_nor_docstring():
    text = 'def f():\n    """Says\n    much."""\n\n    # Why.\n    x = (\n        1\n    )\n    return x\n'
    assert code_lines(ast.parse(text).body[0], text) == 5


def test_the_limits_are_met_and_passed():
    def module(statements, comments):
        return "def f():\n" + "    x = 1\n" * statements + "    # why\n" * comments

    assert list(too_long(module(59, 340))) == []
    assert list(too_long(module(60, 340))) == [
        "has 401 lines, 400 at most; part it by what its functions are for",
        "f has 61 lines of code, 60 at most; give its steps functions of their own",
    ]
