"""The session in which tests ask a program, over a socket, for what they need."""

import builtins
import collections
import json
import os
import sys
from typing import Any

from cgrpo_jax.rewards.sandbox.program import MAX_MESSAGE, error_of
from cgrpo_jax.rewards.sandbox.remote import (
    Described,
    EndedError,
    ProgramsClass,
    RaisedError,
    Reference,
    Remote,
    class_of,
    described_class,
    raised_class,
    reference_of,
)
from cgrpo_jax.rewards.sandbox.values import MAX_SAID, Writer, cut, decode, from_library

_CHANNEL = 3
_MOST_ITEMS = 1 << 20  # of an iterator that is passed to the program
_MOST_LINES = 1 << 20  # of a program
_CHANGING = (list, dict, set, bytearray, collections.deque)
_ENDS_LOOPS = (StopIteration, StopAsyncIteration, GeneratorExit)  # of the tests, were they raised there


class _TestsWriter(Writer):
    """Makes JSON values of what the tests pass to the program."""

    def __init__(self):
        super().__init__(self._none, first_items=_MOST_ITEMS)

    def __call__(self, value):
        reference = reference_of(value)
        if reference is None or isinstance(value, Described) and isinstance(value, _CHANGING):
            return super().__call__(value)
        return {"object": [reference.number]}

    @staticmethod
    def _none(value):
        if isinstance(value, BaseException):
            return 0  # made again by its class
        raise TypeError(f"the tests can't pass a {type(value).__name__} to the program")

    def _derived(self, value, kind, base):
        return self.copied(value)

    def _class(self, kind):
        return super()._class(next(one for one in kind.__mro__ if from_library(one)))


class Session:
    """The tests' end of the channel.

    Attributes:
      names: those that the program is asked for; attributes of its objects have a point before them.
      calls: number of calls and operations so far.
      last: the last call as `(name, args, kwargs)`.
      result: what it returned; None while it has not.
      given: number of values that the program has given.
      ended: the program has ended too early.
      refused: a comparison was refused.
      reports: texts are for a report: the program is not asked for them.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self._channel, self._lines = os.fdopen(_CHANNEL, "wb"), os.fdopen(os.dup(_CHANNEL), "rb")
        self.calls, self.given = 0, -1  # the first is no value
        self.last: tuple[str, tuple, dict] | None = None
        self.result: tuple[Any] | None = None
        self.ended = self.refused = self.reports = False
        self._write, self._trusted = _TestsWriter(), False
        self._remotes: dict[tuple[int, bool], Remote] = {}
        self._classes: dict[int, type] = {}
        self._objects = any(name.startswith(".") for name in names)  # the tests are about objects

    def name(self, name: str) -> Any:
        """Returns what the program has under a name.

        Raises:
          KeyError: nothing.
        """
        value = self.ask("name", name, self._objects or name[:1].isupper() and "_" not in name)
        if isinstance(value, Remote):
            value._reference.label = name
        return value

    def ask(self, kind: str, content: Any, trusted: bool = False) -> Any:
        """Sends a request and returns the answer, or raises what the program has raised."""
        self._trusted = trusted
        try:
            self._channel.write(json.dumps([kind, self._write(content)]).encode() + b"\n")
            self._channel.flush()
        except OSError as error:
            self.ended = True
            raise EndedError from error
        return self.answer()

    def answer(self) -> Any:
        """Reads an answer: gives the value, or raises what the program has raised."""
        line = self._lines.readline(MAX_MESSAGE + 1)
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            reply = json.loads(line)
            if "error" not in reply:
                self.given += 1
                return decode(reply["value"], self._find)
            error = self._raised(reply.get("raised"), **reply["error"])
        except Exception as error:
            self.ended = True
            raise EndedError from error
        raise error

    def isinstance(self, value: Any, kinds: Any) -> bool:
        """Returns whether a value, which may be an object of the program's, is of one of these classes."""
        if isinstance(kinds, tuple):
            return any([self.isinstance(value, one) for one in kinds])
        reference = reference_of(value)
        if isinstance(kinds, Remote):
            return bool(reference and self.ask("operate", ["isinstance", [reference, kinds], {}]))
        copied = reference and reference.copied and isinstance(value, Remote)
        return builtins.isinstance(reference.copy() if reference and copied else value, kinds)

    def issubclass(self, kind: Any, kinds: Any) -> bool:
        """Returns whether a class, which may be one of the program's, is derived from one of these."""
        if isinstance(kinds, tuple):
            return any([self.issubclass(kind, one) for one in kinds])
        if isinstance(kind, Remote) or isinstance(kinds, Remote):
            return bool(self.ask("operate", ["issubclass", [kind, kinds], {}]))
        return builtins.issubclass(kind, kinds)

    def type(self, value: Any) -> Any:
        """Returns the class of a value, which may be an object of the program's."""
        if isinstance(value, Remote | Described):
            return self.ask("operate", ["type", [value], {}], value._reference.trusted)
        return builtins.type(value).__mro__[2] if isinstance(value, RaisedError) else builtins.type(value)

    def _find(self, kind, content):
        """What stands for something of the program's that has no copy."""
        if kind == "object":
            number, name, bits = content
            return self._remote(number, name, bits)
        if kind == "own":
            number, name, bits, acts, copy = content
            if acts or self._objects:
                return self._remote(number, name, bits, copied=True)
            value = decode(copy, self._find)
            return self._described(value, number, name)
        if kind == "iterator":
            items, rest, most = content
            return self._items(decode(items, self._find), rest, most, self._trusted)
        if kind == "exception class":
            return self._exception_class(content)
        if kind == "exception":
            number, made_of, text, args = content
            return self._exception(number, made_of, text, decode(args, self._find))
        raise ValueError(f"{kind} is no kind of value")

    def _remote(self, number, name, bits, copied=False):
        key = int(number), self._trusted
        if key not in self._remotes:
            remote = class_of(str(name), int(bits))()
            object.__setattr__(remote, "_reference", Reference(self, int(number), f"<{name}>", self._trusted, copied))
            self._remotes[key] = remote
        return self._remotes[key]

    def _described(self, value, number, name):
        try:
            described = described_class(str(name), type(value))(value)
        except TypeError:  # its values are made of several
            return value
        described._reference = Reference(self, int(number), repr(value), self._trusted, copied=True)
        return described

    def _items(self, items, rest, most, trusted):
        yield from items
        if rest is not None:
            yield from self.ask("items", [Reference(self, int(rest), "", trusted), int(most)], trusted)

    def _exception_class(self, made_of):
        if isinstance(made_of, str):
            module, _, name = made_of.rpartition(".")
            found = getattr(sys.modules.get(module), name, None)
            known = module.partition(".")[0] in sys.stdlib_module_names
            return found if known and isinstance(found, type) and issubclass(found, BaseException) else Exception
        number, name, bases = made_of
        if number not in self._classes:
            parents = dict.fromkeys(self._exception_class(base) for base in bases)
            reference = Reference(self, int(number), str(name), True)
            try:
                kind = ProgramsClass(str(name), tuple(parents) or (Exception,), {"reference": reference})
            except TypeError:  # its parents are derived from each other, seen from here
                kind = ProgramsClass(str(name), (Exception,), {"reference": reference})
            self._classes[number] = kind
        return self._classes[number]

    def _exception(self, number, made_of, text, args):
        kind = self._exception_class(made_of)
        if issubclass(kind, _ENDS_LOOPS):
            kind = Exception
        raised = raised_class(kind)
        try:
            error = raised(*args)
        except Exception:  # noqa: BLE001 - its class is made in a way of its own
            error = raised.__new__(raised)
            error.args = tuple(args)
        error.text, error.found = str(text), error_of(kind.__name__, cut(" ".join(str(text).split()), MAX_SAID))
        error.reference = Reference(self, int(number), f"<{kind.__name__}>", self._trusted)
        return error

    def _raised(self, raised, type, message, line, text):
        """An exception like the program's."""
        if raised is None:
            raised = {"exception": [0, f"builtins.{type}", str(message), []]}
        error = decode(raised, self._find)
        line = line if isinstance(line, int) and 0 < line <= _MOST_LINES else None
        error.found = error_of(str(type), cut(str(message), MAX_SAID), line, cut(str(text)))
        return error
