"""Which names the tests of a program take from the program. They are read as syntax: nothing is run.

A name that the tests use and don't define is either what is tested, or what they forgot to import. The program may
give the first alone: one that brings its own `isclose` would pass `assert isclose(f(2), 1.41)` whatever its `f` does.
Likewise for attributes: what `f` returns must not bring its own `issubset` to `assert f(2).issubset({1, 2})`. Which is
which, a solution of the task's own shows; without one, only tests that use a single such name are clear.
"""

import ast
import builtins
import copy
import symtable
import sys
from collections.abc import Collection, Iterable, Sequence


def free_names(sources: Iterable[str]) -> set[str]:
    """Returns the names that pieces of Python, run one after another, use and never bind; builtins are among them.

    Example:
      >>> sorted(free_names(["import re", "assert f([x for x in 'ab']) == g(re, 1)"]))
      ['f', 'g']

    Raises:
      SyntaxError, ValueError: a piece that is no Python.
    """
    used, bound = set(), set()
    for source in sources:
        more_used, defined, imported = names_in(source)
        used |= more_used
        bound |= defined | imported
    return used - bound


def names_in(source: str) -> tuple[set[str], set[str], set[str]]:
    """Returns the names of a module that a piece of Python uses, those that it defines and those that it imports.

    Raises:
      SyntaxError, ValueError: it is no Python.
    """
    used, defined, imported = set(), set(), set()
    top = symtable.symtable(source, "<tests>", "exec")
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                name = symbol.get_name()
                used |= {name} if symbol.is_referenced() else set()
                imported |= {name} if symbol.is_imported() else set()
                defined |= {name} if symbol.is_assigned() and not symbol.is_imported() else set()
    return used, defined, imported


def modules(sources: Sequence[str]) -> list[str]:
    """Returns modules of the standard library whose attributes the pieces ask for without having imported them.

    Example:
      >>> modules(["assert math.isclose(f(2), 1.41)"])
      ['math']
    """
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    owners = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return sorted(free_names(sources) & owners & sys.stdlib_module_names)


def only_name(setup: str, tests: Sequence[str]) -> str | None:
    """Returns the one name that tests can take from the program alone; None if there are several, or none.

    Where they name nothing else, it is the one of Python's own that they use: the function asked for is called so.

    Example:
      >>> only_name("", ["assert add(1, 2) == len('abc')"]), only_name("", ["assert sum(1, 2) == 3"])
      ('add', 'sum')
      >>> only_name("", ["assert isclose(f(2), 1.41)"]) is None
      True
    """
    found = candidates(setup, tests)
    return found[0] if len(found) == 1 else None


def candidates(setup: str, tests: Sequence[str]) -> list[str]:
    """Returns the names that tests can take from the program alone, in the order of the alphabet; see `only_name`.

    Example:
      >>> candidates("", ["assert isclose(f(2), 1.41)"])
      ['f', 'isclose']
    """
    sources = [setup, *tests]
    found = free_names(sources) - set(modules(sources))
    return sorted({name for name in found if not hasattr(builtins, name)} or found)


def of_solution(solution: str, setup: str, tests: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns what the tests take from a program, and what they forgot to import, as the task's own solution has it.

    Args:
      solution: a program that passes the tests.
      setup: run before the tests, after the program.
      tests: of the program.

    Returns:
      (names that the solution defines and the tests use, without those of Python's own if there are others, or else the
      only one that it imports from a module and they use; then attributes of its classes that the tests use, with a
      point before each, also those of operators;
      imports of the solution: of all that a module has, and of names that the tests use and neither they nor the
      solution define)

    Example:
      >>> of_solution("from math import isclose\\ndef f(x): return x ** .5", "", ["assert isclose(f(4), 2)"])
      (['f'], ['from math import isclose'])
      >>> of_solution("class Box:\\n    def get(self): return 1", "", ["assert Box().get() == 1"])
      (['Box', '.get'], [])
      >>> of_solution("from math import gcd", "", ["assert gcd(4, 6) == 2"])
      (['gcd'], [])
    """
    try:
        free, tree = free_names([setup, *tests]), ast.parse(solution)
    except (SyntaxError, ValueError):
        return [], []
    defined, imports, picked, everything = set(), {}, set(), []
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                one = copy.copy(statement)
                one.names = [alias]
                if alias.name == "*":
                    everything.append(ast.unparse(one))
                    continue
                name = alias.asname or alias.name.partition(".")[0]
                imports[name] = ast.unparse(one)
                picked |= {name} if isinstance(statement, ast.ImportFrom) else set()
        else:
            defined |= _bound(statement)
    names = free & defined
    names = {name for name in names if not hasattr(builtins, name)} or names
    if not names and len(free & picked) == 1:
        names = free & picked
    forgotten = everything + [imports[name] for name in sorted(free & imports.keys() - names)]
    nodes = [node for source in (setup, *tests) for node in ast.walk(ast.parse(source))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | _operators(nodes)
    return [*sorted(names), *sorted(f".{name}" for name in used & _attributes(tree))], forgotten


_NAMES_OF_OPERATORS = {
    "Add": "add", "Sub": "sub", "Mult": "mul", "Div": "truediv", "FloorDiv": "floordiv", "Mod": "mod", "Pow": "pow",
    "MatMult": "matmul", "BitAnd": "and", "BitOr": "or", "BitXor": "xor", "LShift": "lshift", "RShift": "rshift",
}  # fmt: skip


def _operators(nodes: Iterable[ast.AST]) -> set[str]:
    """The special methods of operators that show an object another value."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Compare) and any(type(one).__name__.endswith("In") for one in node.ops):
            found.add("__contains__")
        if isinstance(node, ast.BinOp | ast.AugAssign):
            name = _NAMES_OF_OPERATORS[type(node.op).__name__]
            found |= {f"__{name}__", f"__r{name}__", *([f"__i{name}__"] if isinstance(node, ast.AugAssign) else [])}
    return found


def foreign_modules(sources: Iterable[str], *, allowed: Collection[str] = ("numpy",)) -> list[str]:
    """Returns the modules that pieces of Python import, whatever happens, and that no program can have.

    Args:
      sources: pieces of Python.
      allowed: modules that programs may have beside Python's own.

    Example:
      >>> foreign_modules(["import math, pandas.testing", "try: import yaml\nexcept ImportError: pass"])
      ['pandas']
    """
    found = set()
    for statement in (statement for source in sources for statement in ast.parse(source).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add((statement.module or "").partition(".")[0])
    return sorted(found - sys.stdlib_module_names - set(allowed))


def _attributes(tree: ast.Module) -> set[str]:
    """The attributes that a program's classes define, and those that it gives to objects."""
    nodes = list(ast.walk(tree))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        for statement in node.body if isinstance(node, ast.ClassDef) else ():
            found |= _bound(statement)
    return found


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module defines there, within `if` and `try`, too."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    table = symtable.symtable(ast.unparse(statement), "<solution>", "exec")
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() and not symbol.is_imported() or symbol.is_annotated()
    }
