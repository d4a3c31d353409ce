"""The sandbox's side of `grade` that runs the tests of a program which `program` runs in another sandbox.

The names that the job lists stand for the program's: calls of them are sent to it, and copies of the results come back,
which are compared here. No other name is looked up in the program, and no other attribute in what it returns.
"""

import ast
import builtins
import json
import os
from typing import Any

from cgrpo_jax.rewards.sandbox.program import MAX_MESSAGE, error_of
from cgrpo_jax.rewards.sandbox.values import cut, decode, encode, shown

_CHANNEL, _REPORT = 3, 4
# Whatever else a program raises comes as an `Exception`: it must not end the tests, or a loop in them (StopIteration).
_PASSED_ON = (
    "ArithmeticError AssertionError AttributeError EOFError FloatingPointError IndexError KeyError LookupError "
    "NameError NotImplementedError OverflowError RecursionError RuntimeError TypeError ValueError ZeroDivisionError"
).split()


class _EndedError(Exception):
    """The program's process has ended, or has sent what is no answer."""


class _Raised:
    """Marks an exception that the program has raised; `found` says what it is, see `program.error_of`."""

    found: dict


class _FailedError(AssertionError):
    """An assert that does not hold."""


class _Remote:
    """Stands for an object of the program: it can be called, given back as an argument, and has attributes."""

    def __init__(self, session, number, kind, name=""):
        self._session, self._number, self._label = session, number, name or f"<{kind}>"

    def __setattr__(self, name, value):
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self._check(name)
            self._session.ask("set", [encode(self, _number), name, encode(value, _number)])

    def __call__(self, *args, **kwargs):
        return self._session.call(self, args, kwargs)

    def __getattr__(self, name):
        self._check(name)
        value = self._session.ask("attribute", [encode(self, _number), name])
        if isinstance(value, _Remote):
            value._label = f"{self._label}.{name}"
        return value

    def _check(self, name):
        if name.startswith("_") or f".{name}" not in self._session.names:
            raise AttributeError(f"{name!r} is not among the names of the program that are tested")

    def __repr__(self):
        return self._label


def _number(value):
    """The number under which the program keeps the object."""
    if isinstance(value, _Remote):
        return value._number
    raise TypeError(f"the tests can't pass a {type(value).__name__} to the program")


class _Session:
    """The tests' end of the channel.

    Attributes:
      names: those that the program is asked for; attributes of its objects have a point before them.
      calls: number of calls so far.
      last: the last call as `(name, args, kwargs)`.
      result: what it returned; None while it has not.
      given: number of values that the program has given.
      ended: the program has ended too early.
    """

    def __init__(self, names):
        self.names = names
        self._channel, self._lines = os.fdopen(_CHANNEL, "wb"), os.fdopen(os.dup(_CHANNEL), "rb")
        self.calls, self.last, self.result, self.given, self.ended = 0, None, None, -1, False  # the first is no value

    def call(self, target, args, kwargs):
        self.calls, self.last, self.result = self.calls + 1, (target._label, args, kwargs), None
        value = self.ask("call", [encode(one, _number) for one in (target, list(args), kwargs)])
        self.result = (value,)
        return value

    def name(self, name):
        value = self.ask("name", name)
        if isinstance(value, _Remote):
            value._label = name
        return value

    def ask(self, kind, content):
        try:
            self._channel.write(json.dumps([kind, content]).encode() + b"\n")
            self._channel.flush()
        except OSError as error:
            self.ended = True
            raise _EndedError from error
        return self.answer()

    def answer(self):
        """Reads an answer: gives the value, or raises what the program has raised."""
        line = self._lines.readline(MAX_MESSAGE + 1)
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            reply = json.loads(line)
            if "error" not in reply:
                self.given += 1
                return decode(reply["value"], lambda number, kind, _: _Remote(self, int(number), str(kind)))
            error = _raised(**reply["error"])
        except Exception as error:
            self.ended = True
            raise _EndedError from error
        raise error


def _raised(type, message, line, text):
    """An exception like the program's, as far as its type is one that may be passed on."""
    base = getattr(builtins, type) if type in _PASSED_ON else Exception
    error = builtins.type(base.__name__, (_Raised, base), {})(message)
    error.found = error_of(str(type), cut(str(message)), int(line) if line else None, cut(str(text)))
    return error


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


def main(job):
    """Runs the job's tests and writes what came of them to the report."""
    session = _Session(job["names"])
    report = _run_tests(job, session)
    os.write(_REPORT, json.dumps(report).encode())


def _run_tests(job, session):
    checks, passed, trees = _Checks(), set(), []
    for source in job["tests"]:
        trees.append((checks.total + 1, checks.visit(ast.parse(source))))
    names: dict[str, Any] = {"__name__": "tests"}
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
    elif not failure and (skipped := checks.counted - passed):
        failure = {"number": min(skipped), "call": "", "returned": None, "tests": "the assert was not reached"}
    return {"total": checks.total, "passed": len(passed), "failure": failure}


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
        exec(compile(source, "<setup>", "exec"), names)
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
    where, there = difference(values[mine], values[1 - mine])
    side = "" if session.result and values[mine] is session.result[0] else cut(texts[mine])
    expected = shown(values[1 - mine]) + there
    raise _FailedError({"side": side, "value": shown(values[mine]), "where": where, "expected": expected})


def _failure(error, session):
    """What went wrong, as JSON: the call that was the last, and what came of it."""
    found = {"call": "", "returned": None}
    if session.last:
        name, args, kwargs = session.last
        words = [*map(shown, args), *(f"{key}={shown(value)}" for key, value in kwargs.items())]
        found["call"] = cut(f"{name}({', '.join(words)})")
    if session.result:
        found["returned"] = shown(session.result[0])
    if isinstance(error, _FailedError):
        return found | error.args[0]
    if isinstance(error, _Raised):
        return found | {"raised": error.found}
    if isinstance(error, _EndedError):
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
