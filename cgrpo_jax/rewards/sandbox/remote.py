"""What stands for a program's objects where its tests run.

No object of the program's decides whether it equals a value of the tests': a comparison is one of copies, or of two
objects of the program's, or it is refused. Operations that show the program a value of the tests' (`x + 1`, `1 in x`)
are asked of objects that the tests have from a class which they name; of others, copies or items are compared.
"""

import functools
from typing import Any, Protocol

from cgrpo_jax.rewards.sandbox import operations


class Asks(Protocol):
    """Asks the program, see `session.Session`."""

    names: list[str]
    calls: int
    last: tuple[str, tuple, dict] | None
    result: tuple[Any] | None
    refused: bool
    reports: bool

    def ask(self, kind: str, content: Any, trusted: bool = False) -> Any:
        """Sends a request and returns the answer, or raises what the program has raised."""


class EndedError(Exception):
    """The program's process has ended, or has sent what is no answer."""


class RefusedError(BaseException):
    """The tests compare an object of the program's with a value of their own."""


class RaisedError:
    """Marks an exception that the program has raised; `found` says what it is, see `program.error_of`."""

    found: dict
    text: str
    reference: "Reference"

    def __str__(self):
        return self.text

    def __getattr__(self, name):
        reference = vars(self).get("reference")
        if reference is None:
            raise AttributeError(name)
        return reference.attribute(name)


class ProgramsClass(type):
    """A class of exceptions of the program's: the program makes its objects."""

    def __call__(cls, *args, **kwargs):
        reference = vars(cls).get("reference")
        return type.__call__(cls, *args, **kwargs) if reference is None else reference.call(args, kwargs)


class Reference:
    """The way to an object of the program's.

    Attributes:
      session: to ask.
      number: of the object.
      label: in words.
      trusted: it comes from a class that the tests name.
      copied: there is a copy of it, which is what is compared.
    """

    def __init__(self, session: Asks, number: int, label: str, trusted: bool, copied: bool = False):
        self.session, self.number, self.label, self.trusted, self.copied = session, number, label, trusted, copied

    def call(self, args: tuple, kwargs: dict) -> Any:
        """Calls it."""
        session = self.session
        session.calls, session.last, session.result = session.calls + 1, (self.label, args, kwargs), None
        value = session.ask("call", [self, list(args), kwargs], self.trusted)
        session.result = (value,)
        return value

    def attribute(self, name: str) -> Any:
        """Returns its attribute."""
        self._check(name)
        value = self.session.ask("attribute", [self, name], self.trusted)
        if isinstance(value, Remote):
            value._reference.label = f"{self.label}.{name}"
        return value

    def set(self, name: str, *value: Any) -> None:
        """Sets its attribute; deletes it if there is no value."""
        self._check(name)
        self.session.ask("set" if value else "delete", [self, name, *value])

    def _check(self, name):
        if f".{name}" not in self.session.names and name not in ("__name__", "__qualname__", "__doc__"):
            raise AttributeError(f"{name!r} is not among the names of the program that are tested")

    def copy(self) -> Any:
        """Returns its copy, as it is now."""
        return self.session.ask("copy", [self])

    def operate(self, name: str, *args: Any) -> Any:
        """Returns what an operation of Python's gives."""
        if name in operations.COMPARISONS:
            return self._compare(name, *args)
        if name in operations.SHOWING and not self.trusted and f".{name}" not in self.session.names:
            if not all(reference_of(one) for one in args):
                return self._without(name, *args)
        if name in operations.TEXTS and self.session.reports:
            return self.label
        if name == "__exit__":
            return self._exit(args[1])
        value = self._ask(name, *(() if name == "__deepcopy__" else args))
        if name == "__next__":
            if not value:
                raise StopIteration
            return value[0]
        return value

    def _exit(self, error):
        """Leaves a context; an assert that failed within it has failed, whatever the program says."""
        ours = error is not None and not isinstance(error, RaisedError)
        if ours and not (isinstance(error, Exception) and not isinstance(error, AssertionError | EndedError)):
            self._ask("__exit__", AssertionError())
            return False
        return self._ask("__exit__", error)

    def _ask(self, name, *args):
        self.session.calls += 1
        return self.session.ask("operate", [name, [self, *args], {}], self.trusted)

    def _compare(self, name, other):
        function = operations.COMPARISONS[name]
        if other is None and name in ("__eq__", "__ne__"):
            return name == "__ne__"
        theirs = reference_of(other)
        if self.copied:
            return function(self.copy(), theirs.copy() if theirs and theirs.copied else other)
        if theirs is None or theirs.copied:
            return self._refuse()
        answer = bool(self._ask(name, theirs))
        if answer and name == "__eq__" and theirs is not self and self._ask("equals all"):
            return self._refuse()
        return answer

    def _without(self, name, *args):
        """An operation that must not show the program the tests' values."""
        if self.copied:
            return operations.SHOWING[name](self.copy(), *args)
        if name == "__contains__":
            return any(one is args[0] or one == args[0] for one in iter(self._ask("__iter__")))
        return self._refuse()

    def _refuse(self):
        self.session.refused = True
        raise RefusedError


def reference_of(value: Any) -> Reference | None:
    """The reference to the object that a value stands for; None if it stands for none."""
    if isinstance(value, Reference):
        return value
    found = getattr(value, "_reference", None) if isinstance(value, Remote | Described) else None
    if isinstance(value, RaisedError) or isinstance(value, ProgramsClass):
        found = vars(value).get("reference")
    return found if isinstance(found, Reference) else None


def _method(name):
    def operate(self, *args):
        return self._reference.operate(name, *args)

    return operate


class Remote:
    """Stands for an object of the program's; derived classes have the special methods that it has."""

    __slots__ = ("_reference",)
    _reference: Reference

    def __setattr__(self, name, value):
        self._reference.set(name, value)

    def __delattr__(self, name):
        self._reference.set(name)

    def __getattr__(self, name):
        return self._reference.attribute(name)

    __eq__, __ne__, __lt__, __le__, __gt__, __ge__ = map(_method, operations.COMPARISONS)
    __str__, __repr__, __format__, __copy__, __deepcopy__ = map(_method, operations.ALWAYS)
    __hash__ = None  # type: ignore[assignment] # of those that have one, see `class_of`


class Described:
    """Marks a copy of an object whose class is derived from a type of Python's; the program is asked for its texts."""

    _reference: Reference


@functools.cache
def class_of(kind: str, bits: int) -> type:
    methods: dict[str, Any] = {name: _method(name) for name in operations.names(bits)}
    if "__call__" in methods:
        methods["__call__"] = lambda self, *args, **kwargs: self._reference.call(args, kwargs)
    methods["__doc__"] = property(lambda self: self._reference.attribute("__doc__"))
    return type(kind if kind.isidentifier() else "object", (Remote,), methods | {"__slots__": ()})


@functools.cache
def described_class(kind: str, base: type) -> type:
    methods: dict[str, Any] = {name: _method(name) for name in operations.TEXTS}
    return type(kind if kind.isidentifier() else "object", (Described, base), methods)


@functools.cache
def raised_class(kind: type) -> Any:
    """A class of raised exceptions that are caught as those of a class are, and as any other."""
    return type(kind.__name__, (RaisedError, kind, *([] if issubclass(kind, Exception) else [Exception])), {})
