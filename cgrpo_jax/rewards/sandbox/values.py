"""Values that a program's functions take and return, as JSON and as text. Used inside sandboxes.

Values of Python's and NumPy's types are copied. What is of a class of the program's own stays with it: the other side
gets its number. An object of a class that is derived from a type of Python's is both, see `_own`.
"""

import collections
import decimal
import fractions
import itertools
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from cgrpo_jax.rewards.sandbox import operations

MAX_SHOWN = 200  # characters of a value in a report
MAX_SAID = 600  # of an exception's message: a good library's lists what there is instead
FIRST_ITEMS = 8  # of an iterator that are sent along; a later request is for twice as many
_MOST_ITEMS = 100_000
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
EXPECTED = "\nExpected: "  # in a reason for a grade, what follows it is what should have come out


def shown(value):
    """The value as text, its middle left out where it is long."""
    if isinstance(value, str):
        return repr(cut(value))
    try:
        return cut(repr(value))
    except Exception as error:  # noqa: BLE001 - an integer of too many digits, a list within lists without end
        if isinstance(value, int):
            return f"<int: {value.bit_length()} bits>"
        return f"<{type(value).__name__}: {type(error).__name__}>"


def cut(text, most=MAX_SHOWN):
    """The text without its middle where it is long, and without addresses, which differ from run to run."""
    text = _ADDRESS.sub("", text)
    if len(text) <= most:
        return text
    return f"{text[: most - 50]} ... {text[-40:]}"


def _factory(value):
    """A default dictionary's factory, where it is a type that can be copied."""
    return value.default_factory if value.default_factory in _TYPES.values() else None


def _array(parts):
    import numpy as np  # where the program may use it, the tests may

    kind, shape, items = parts
    if kind[1:2] in "mM":
        return np.array(items, dtype=np.int64).astype(kind).reshape(shape)
    return np.array(items, dtype=kind).reshape(shape)


# Of each type: what its values are made of, and how they are made of that again.
_COPIED: dict[type, tuple[Callable, Callable]] = {
    int: (hex, lambda text: int(text, 16)),
    tuple: (lambda value: list(tuple.__iter__(value)), tuple),
    set: (lambda value: list(set.__iter__(value)), set),
    frozenset: (lambda value: list(frozenset.__iter__(value)), frozenset),
    dict: (lambda value: list(map(list, dict.items(value))), dict),
    complex: (lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    bytes: (list, bytes),
    bytearray: (list, bytearray),
    memoryview: (lambda value: list(value.tobytes()), bytes),
    range: (lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    slice: (lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts)),
    type(...): (lambda value: [], lambda parts: ...),
    type(NotImplemented): (lambda value: [], lambda parts: NotImplemented),
    type({}.keys()): (list, lambda items: dict.fromkeys(items).keys()),
    type({}.values()): (list, lambda items: dict(enumerate(items)).values()),
    type({}.items()): (lambda value: list(map(list, value)), lambda pairs: dict(pairs).items()),
    collections.deque: (lambda value: [list(value), value.maxlen], lambda parts: collections.deque(*parts)),
    collections.Counter: (lambda value: list(map(list, value.items())), lambda pairs: collections.Counter(dict(pairs))),
    collections.OrderedDict: (lambda value: list(map(list, value.items())), collections.OrderedDict),
    collections.defaultdict: (
        lambda value: [_factory(value), list(map(list, value.items()))],
        lambda parts: collections.defaultdict(*parts),
    ),
    collections.ChainMap: (lambda value: value.maps, lambda maps: collections.ChainMap(*maps)),
    collections.UserDict: (lambda value: value.data, collections.UserDict),
    collections.UserList: (lambda value: value.data, collections.UserList),
    collections.UserString: (lambda value: value.data, collections.UserString),
    types.MappingProxyType: (dict, types.MappingProxyType),
    fractions.Fraction: (lambda value: [value.numerator, value.denominator], lambda two: fractions.Fraction(*two)),
    decimal.Decimal: (str, decimal.Decimal),
}  # fmt: skip


def _of_datetime():
    import datetime as lib

    return {
        lib.date: (lambda value: [value.year, value.month, value.day], lambda parts: lib.date(*parts)),
        lib.datetime: (
            lambda value: [*value.timetuple()[:6], value.microsecond, value.tzinfo, value.fold],
            lambda parts: lib.datetime(*parts[:7], tzinfo=parts[7], fold=parts[8]),
        ),
        lib.time: (
            lambda value: [value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold],
            lambda parts: lib.time(*parts[:4], tzinfo=parts[4], fold=parts[5]),
        ),
        lib.timedelta: (
            lambda value: [value.days, value.seconds, value.microseconds],
            lambda parts: lib.timedelta(*parts),
        ),
        lib.timezone: (lambda value: list(value.__getinitargs__()), lambda parts: lib.timezone(*parts)),
    }


def _of_pathlib():
    import pathlib as lib

    return {kind: (str, kind) for kind in (lib.PurePosixPath, lib.PureWindowsPath, lib.PosixPath)}


def _of_array():
    import array as lib

    return {lib.array: (lambda value: [value.typecode, value.tolist()], lambda parts: lib.array(*parts))}


def _of_uuid():
    import uuid as lib

    return {lib.UUID: (lambda value: value.hex, lib.UUID)}


def _of_zoneinfo():
    import zoneinfo as lib

    return {lib.ZoneInfo: (lambda value: value.key, lib.ZoneInfo)}


# Likewise of modules that few programs import, with the names of the types: each sandbox is a copy of what is loaded.
_LATER: dict[str, tuple[Callable, Sequence[str]]] = {
    "datetime": (_of_datetime, ("date", "datetime", "time", "timedelta", "timezone")),
    "pathlib": (_of_pathlib, ("PurePosixPath", "PureWindowsPath", "PosixPath")),
    "array": (_of_array, ("array",)),
    "uuid": (_of_uuid, ("UUID",)),
    "zoneinfo": (_of_zoneinfo, ("ZoneInfo",)),
}
_AS_THEY_ARE = (type(None), bool, float, str)
_SMALL = 1000  # bits of an integer that JSON's readers take
# Those whose names stand for themselves.
_TYPES = {kind.__name__: kind for kind in (*_AS_THEY_ARE, list, object, type, *_COPIED)}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_MAKERS = {_NAMES[kind]: make for kind, (_, make) in _COPIED.items()}
_MAKERS |= {"ndarray": _array, "scalar": lambda parts: _array(parts)[()]}


def _load(module):
    """Makes values of a module's types known."""
    for kind, (parts, make) in _LATER.pop(module)[0]().items():
        name = kind.__name__
        _COPIED[kind], _NAMES[kind], _TYPES[name], _MAKERS[name] = (parts, make), name, kind, make


def _load_bases(kind):
    for base in kind.__mro__:
        if (module := str(base.__module__).partition(".")[0]) in _LATER:
            _load(module)


def _load_name(name):
    for module in [module for module, (_, names) in _LATER.items() if name in names]:
        _load(module)


class Writer:
    """Makes JSON values of values.

    Args:
      keep: gives the number under which what can't be copied is kept.
      first_items: of an iterator that are taken at once.
    """

    def __init__(self, keep: Callable[[Any], int], first_items: int = FIRST_ITEMS):
        self._keep, self._first_items = keep, first_items

    def __call__(self, value: Any) -> Any:
        """Returns the value as JSON values."""
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is list:
            return [self(one) for one in value]
        if kind is int and value.bit_length() < _SMALL:
            return value
        if kind not in _COPIED:
            _load_bases(value if isinstance(value, type) else kind)
        if kind in _COPIED:
            return {_NAMES[kind]: self(_COPIED[kind][0](value))}
        if isinstance(value, type) and value in _NAMES:
            return {"type": _NAMES[value]}
        if isinstance(value, BaseException) or isinstance(value, type) and issubclass(value, BaseException):
            return self._exception(value)
        if (found := _numpy(value)) is not None:
            return self(found) if isinstance(found, list) else {kind: self(part) for kind, part in found.items()}
        if hasattr(kind, "__next__") and from_library(kind):
            return self.items(value, self._first_items)
        base = next((base for base in kind.__mro__ if base in _COPIED or base in (*_AS_THEY_ARE, list)), None)
        if base is None:
            return {"object": [self._keep(value), cut(kind.__name__), operations.mask(kind)]}
        return self._derived(value, kind, base)

    def items(self, iterator: Any, most: int) -> dict:
        """Returns the next items of an iterator and, where there may be more, the number under which it is kept."""
        items, rest = [], None
        try:
            for one in itertools.islice(iterator, most):
                items.append(self(one))
            rest = self._keep(iterator) if len(items) == most else None
        except Exception as error:
            if not items:
                raise
            rest = self._keep(_raising(error))  # where it gets there
        return {"iterator": [items, rest, min(2 * most, _MOST_ITEMS)]}

    def copied(self, value: Any) -> Any:
        """Returns what an object is as a value of the type that its class is derived from."""
        base = next(base for base in type(value).__mro__ if base in _COPIED or base in (*_AS_THEY_ARE, list))
        if base in _COPIED:
            return {_NAMES[base]: self(_COPIED[base][0](value))}
        if base is list:
            return [self(one) for one in list.__iter__(value)]
        return float.__float__(value) if base is float else str.__str__(value)

    def _derived(self, value, kind, base):
        own = [one for one in kind.__mro__[: kind.__mro__.index(base)] if not from_library(one)]
        if not own:
            return self.copied(value)
        bits = operations.mask(kind)
        acts = any(name in vars(one) for one in own for name in operations.names(bits) if name != "__hash__")
        return {"own": [self._keep(value), cut(kind.__name__), bits, acts, self.copied(value)]}

    def _exception(self, value):
        if isinstance(value, type):
            return {"exception class": self._class(value)}
        return {"exception": [self._keep(value), self._class(type(value)), _text(value), self(list(value.args))]}

    def _class(self, kind):
        if from_library(kind):
            return f"{kind.__module__}.{kind.__name__}"
        bases = [self._class(base) for base in kind.__bases__ if issubclass(base, BaseException)]
        return [self._keep(kind), cut(kind.__name__), bases]


def from_library(kind):
    """Returns whether it is a class of Python's own."""
    return str(kind.__module__).partition(".")[0] in sys.stdlib_module_names


def _raising(error):
    raise error
    yield


def _text(error):
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception of the program's own making
        return ""


def _numpy(value):
    """What an array or a number of NumPy's is made of; None if it is neither."""
    np = sys.modules.get("numpy")
    if np is None or not isinstance(value, (getattr(np, "ndarray", ()), getattr(np, "generic", ()))):
        return None
    if value.dtype.char in "gG":  # longer than Python's own
        value = value.astype("f8" if value.dtype.char == "g" else "c16")
    if value.dtype.kind not in "biufcSUmMO":  # rows of a table
        return value.tolist() if isinstance(value.tolist(), list) else [value.tolist()]
    items = value.astype("i8").tolist() if value.dtype.kind in "mM" else value.tolist()
    return {"ndarray" if isinstance(value, np.ndarray) else "scalar": [value.dtype.str, list(value.shape), items]}


def decode(value: Any, find: Callable[[str, Any], Any]) -> Any:
    """Returns the value that a `Writer` has made into JSON; `find(kind, content)` is what stands for one of no copy."""
    if isinstance(value, list):
        return [decode(one, find) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    _load_name(content if kind == "type" else kind)
    if kind == "type":
        return _TYPES[content]
    return _MAKERS[kind](decode(content, find)) if kind in _MAKERS else find(kind, content)
