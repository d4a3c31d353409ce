"""Gold answers of programs: JSON text with tests of one kind. They are read here, nothing of them is run.

- `{"asserts": ["assert add(1, 2) == 3", ...], "setup": "import math", "names": ["add"]}` (MBPP). The setup is part
  of the tests: it is run after the program and before the asserts, and the program does not see what it defines.
  `names` are those that the program gives, also of attributes of its objects, ".pop"; without them, the tests must
  use a single name that is defined nowhere;
- `{"prompt": "def add(a, b):\\n ...", "entry_point": "add", "check": "def check(candidate): ..."}` (HumanEval);
- `{"stdin": [{"input": "1 2\\n", "output": "3\\n"}, ...]}`: the program is run as a script, once a test. What it
  prints is compared line by line, up to spaces at the ends of lines and empty lines at the end.
"""

import json
import re
from collections.abc import Mapping

from cgrpo_jax.rewards.sandbox.names import candidates, foreign_modules, only_name

_UNREADABLE = (ValueError, SyntaxError, TypeError, KeyError, AttributeError, RecursionError, MemoryError)
_TEXTS = ("setup", "check", "entry_point", "prompt")


def readable(answer: str, numpy: bool = True) -> bool:
    """Does the gold answer hold tests of one kind, do those in Python parse, and can they have what they import?"""
    tests = read(answer)
    return tests is not None and (numpy or not _foreign(tests, numpy=False))


def unclear_names(answer: str, numpy: bool = True) -> str:
    """Returns why a gold answer can't be read, where that is for its `names` or for a module alone; else nothing.

    Example:
      >>> unclear_names('{"asserts": ["assert isclose(f(2), 1.41)"]}')
      'its tests use f and isclose: say in `names` which come from the program'
    """
    try:
        tests = json.loads(answer)
        if foreign := _foreign(tests):
            return f"its tests import {' and '.join(foreign)}, which no tests have: beside Python's own there is numpy"
        if not numpy and _foreign(tests, numpy=False):
            return "its tests import numpy: allow it, by grader.numpy"
        if read(answer) is not None or read(json.dumps(tests | {"names": ["name"]})) is None:
            return ""
    except _UNREADABLE:
        return ""
    if "names" in tests:
        return "its `names` must be a list of names, at least one of them without a point before it"
    found = candidates(tests.get("setup", ""), tests["asserts"])
    used = " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]])) or "no name of a program"
    return f"its tests use {used}: say in `names` which come from the program"


def read(answer: str) -> dict | None:
    """Returns the gold answer's fields; None if it can't be read."""
    try:
        tests = json.loads(answer)
        kinds = [kind for kind in ("asserts", "check", "stdin") if kind in tests]
        if len(kinds) != 1 or tests.keys() - {*_TEXTS, *kinds, *(["names"] if kinds == ["asserts"] else [])}:
            return None
        if not all(isinstance(tests.get(name, ""), str) for name in _TEXTS):
            return None
        if not isinstance(tests[kinds[0]], str if kinds == ["check"] else list):
            return None
        if kinds == ["stdin"]:
            pairs = [(test["input"], test["output"]) for test in tests["stdin"]]
            good = all(isinstance(text, str) for pair in pairs for text in pair)
            return tests if good and pairs else None
        compile(tests.get("setup", ""), "<setup>", "exec")
        sources = [tests["check"]] if kinds == ["check"] else tests["asserts"]
        asserts = [re.search(r"\bassert\b", source) and compile(source, "<tests>", "exec") for source in sources]
        if kinds == ["check"] and not (tests.get("entry_point", "").isidentifier() and "def check(" in tests["check"]):
            return None
        return tests if asserts and all(asserts) and names(tests) and not _foreign(tests) else None
    except _UNREADABLE:
        return None


def _foreign(tests, *, numpy=True):
    """Modules that the tests import and can't have: they would decide nothing."""
    checks = [tests["check"]] if "check" in tests else tests.get("asserts", [])
    return foreign_modules([tests.get("setup", ""), *checks], allowed=("numpy",) if numpy else ())


def names(tests: Mapping) -> list[str]:
    """Returns the names that the tests take from the program; none if that is not clear."""
    if "check" in tests:
        return [tests["entry_point"]]
    if "names" not in tests:
        name = only_name(tests.get("setup", ""), tests["asserts"])
        return [] if name is None else [name]
    given = tests["names"]
    if not (isinstance(given, list) and all(isinstance(name, str) for name in given)):
        return []
    return given if any(not name.startswith(".") for name in given) else []  # of attributes alone nothing is tested
