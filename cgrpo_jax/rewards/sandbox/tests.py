"""The sandbox's side of `grade` that runs the tests of a program which `program` runs in another sandbox.

The names that the job lists stand for the program's: calls of them are sent to it, and copies of the results come back,
which are compared here. No other name is looked up in the program, and no other attribute in what it returns.
"""

import ast
import contextlib
import json
import os
from typing import Any

from cgrpo_jax.rewards.sandbox import environment
from cgrpo_jax.rewards.sandbox.remote import EndedError, RaisedError, RefusedError
from cgrpo_jax.rewards.sandbox.session import Session
from cgrpo_jax.rewards.sandbox.values import cut, shown

_REPORT = 4
_QUESTIONS = {"isinstance": 2, "issubclass": 2, "type": 1}  # functions of Python's, and how many arguments they have


class _FailedError(AssertionError):
    """An assert that does not hold."""


class _Checks(ast.NodeTransformer):
    """Replaces each assert by a call of `__check__` that keeps the two sides of an equation apart."""

    def __init__(self):
        self.total = 0
        self.counted: set[int] = set()  # those that report that they hold

    def visit_Assert(self, node):
        self.total += 1
        if any(isinstance(inner, (ast.NamedExpr, ast.Await, ast.Yield)) for inner in ast.walk(node)):
            return node  # would mean another thing within a lambda
        if not isinstance(node.test, ast.Constant):  # "assert False" stands where nothing may come
            self.counted.add(self.total)
        test, sides = node.test, [node.test]
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            sides = [test.left, test.comparators[0]]
        lambdas = [ast.Lambda(args=ast.arguments([], [], None, [], [], None, []), body=side) for side in sides]
        texts: list[ast.expr] = [ast.Constant(ast.unparse(side)) for side in sides]
        arguments = [ast.Constant(self.total), ast.List(texts, ast.Load()), *lambdas]
        call = ast.Call(ast.Name("__check__", ast.Load()), arguments, [])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))


class _Questions(ast.NodeTransformer):
    """Has questions about an object's class, which may be one of the program's, answered by the session."""

    def visit_Call(self, node):
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Name) and len(node.args) == _QUESTIONS.get(function.id) and not node.keywords:
            if not any(isinstance(one, ast.Starred) for one in node.args):
                function.id = f"__{function.id}__"
        return node


def main(job):
    """Runs the job's tests and writes what came of them to the report."""
    environment.prepare(job)
    session = Session(job["names"])
    report = _run_tests(job, session)
    os.write(_REPORT, json.dumps(report).encode())


def _run_tests(job, session):
    checks, passed, trees = _Checks(), set(), []
    for source in job["tests"]:
        trees.append((checks.total + 1, _asked(checks.visit(ast.parse(source)), job)))
    names: dict[str, Any] = {"__name__": "tests"} | {f"__{name}__": getattr(session, name) for name in _QUESTIONS}
    number, failure = 0, None  # of the assert that is being checked; the first that was found

    def check(at, texts, *sides):
        nonlocal number
        number, session.last, session.result = at, None, None
        passed.discard(at)  # in a loop it may have held before
        _check(session, texts, sides)
        passed.add(at)

    def attempt(function, *args):
        nonlocal failure
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001 - tests may raise anything
            failure = failure or {"number": number} | _failure(error, session)
            session.reports = False

    attempt(session.answer)  # the program has been loaded
    if not failure:
        attempt(_prepare, job, session, names)
    names["__check__"] = check
    for first, tree in trees if not failure else ():
        number = first
        attempt(exec, compile(tree, "<tests>", "exec"), names)
    if job["entry_point"] and not failure:
        attempt(lambda: names["check"](names[job["entry_point"]]))
    if session.ended:  # whatever the tests have made of it
        attempt(session.answer)
    elif not session.given and not failure:
        failure = {"number": 1, "call": "", "returned": None, "missing": "what is tested"}
    elif not failure and session.refused:  # the tests have caught it
        failure = {"number": number, "call": "", "returned": None, "refused": True}
    elif not failure and (skipped := checks.counted - passed):
        failure = {"number": min(skipped), "call": "", "returned": None, "tests": "the assert was not reached"}
    return {"total": checks.total, "passed": len(passed), "failure": failure}


def _asked(tree, job):
    return tree if _QUESTIONS.keys() & job["names"] else ast.fix_missing_locations(_Questions().visit(tree))


def _prepare(job, session, names):
    """Fills the tests' names: with those of the program's that are tested, and with what the tests bring along."""
    given, missing = {}, []
    for name in (name for name in session.names if not name.startswith(".")):
        try:
            given[name] = session.name(name)
        except KeyError:
            missing.append(name)
    if missing and not given:
        raise NameError(name=missing[0])
    names |= given  # a setup may make objects of the program's classes
    for source in job["before"]:
        exec(compile(_asked(ast.parse(source), job), "<setup>", "exec"), names)
    names |= given  # the prompt has another function of this name, without a body


def _check(session, texts, sides):
    """Raises a `_FailedError` unless the sides are equal, or the only one is true."""
    values, calls = [], [session.calls]
    for side in sides:
        values.append(side())
        calls.append(session.calls)
    if len(values) == 1:
        if not values[0]:
            raise _FailedError({"side": "", "value": "", "where": "", "expected": cut(texts[0])})
        return
    if values[0] == values[1]:
        return
    # The program's side is the one that calls it.
    mine = int(calls[0] == calls[1] < calls[2])
    session.reports = True
    try:
        raise _FailedError(_compared(session, texts[mine], values[mine], values[1 - mine]))
    finally:
        session.reports = False


def _compared(session, text, value, expected):
    """What an equation lacks, in words."""
    where, there = "", ""
    with contextlib.suppress(RefusedError):
        where, there = difference(value, expected)
    side = "" if session.result and value is session.result[0] else cut(text)
    return {"side": side, "value": shown(value), "where": where, "expected": shown(expected) + there}


def _failure(error, session):
    """What went wrong, as JSON: the call that was the last, and what came of it."""
    session.reports = True
    found = {"call": "", "returned": None}
    if session.last:
        name, args, kwargs = session.last
        words = [*map(shown, args), *(f"{key}={shown(value)}" for key, value in kwargs.items())]
        found["call"] = cut(f"{name}({', '.join(words)})")
    if session.result:
        found["returned"] = shown(session.result[0])
    if isinstance(error, _FailedError):
        return found | error.args[0]
    if isinstance(error, RaisedError):
        return found | {"raised": error.found}
    if isinstance(error, RefusedError):
        return found | {"refused": True}
    if isinstance(error, EndedError):
        return found | {"ended": True}
    if isinstance(error, NameError) and error.name in session.names:
        return found | {"missing": cut(error.name)}
    return found | {"tests": f"{type(error).__name__}: {cut(' '.join(str(error).split()))}"}


def difference(actual, expected):
    """Where two values of one kind begin to differ: in words, and what was expected there in words.

    Example:
      >>> difference([1, 3, 2], [1, 2, 3])
      ('index 1', ', at index 1 2')
    """
    sequences = (list, tuple, str)
    if isinstance(actual, dict) and isinstance(expected, dict):
        for key in expected:
            if key not in actual or actual[key] != expected[key]:
                return f"key {shown(key)}", f", at key {shown(key)} {shown(expected[key])}"
        return f"key {shown(next((key for key in actual if key not in expected), None))}", ""
    if type(actual) is not type(expected) or not isinstance(actual, sequences):
        return "", ""
    pairs = zip(actual, expected, strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(actual), len(expected)))
    if not at:  # nothing that could be right
        return "", ""
    there = f", at index {at} {shown(expected[at])}" if at < len(expected) else f", which ends before index {at}"
    return f"index {at}", there
