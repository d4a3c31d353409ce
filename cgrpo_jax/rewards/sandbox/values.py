"""Values that a program's functions take and return, as JSON and as text. Used inside sandboxes."""

import collections
import fractions
import re
from collections.abc import Callable
from typing import Any

MAX_ITEMS = 100_000  # that a generator may give
MAX_SHOWN = 200  # characters of a value in a report
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
EXPECTED = "\nExpected: "  # in a reason for a grade, what follows it is what should have come out


def shown(value):
    """The value as text, its middle left out where it is long."""
    if isinstance(value, str):
        return repr(cut(value))
    try:
        return cut(repr(value))
    except Exception as error:  # noqa: BLE001 - an integer of too many digits, a list within lists without end
        return f"<{type(value).__name__}: {type(error).__name__}>"


def cut(text):
    """The text without its middle where it is long, and without addresses, which differ from run to run."""
    text = _ADDRESS.sub("", text)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN - 50]} ... {text[-40:]}"


_BUILT = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
    "deque": collections.deque,
    "dict": dict,
    "Counter": lambda pairs: collections.Counter(dict(pairs)),
    "OrderedDict": collections.OrderedDict,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda pairs: dict(pairs).items(),
    "range": lambda three: range(*three),
    "complex": lambda two: complex(*two),
    "bytes": lambda numbers: bytes(numbers),
    "Fraction": lambda two: fractions.Fraction(*two),
}
_VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


def encode(value, keep):
    """A value as JSON values; `keep(value)` is the number under which one that is no literal is kept."""
    if value is None or isinstance(value, (bool, float, str)):
        return value if value is None or type(value) in (bool, float, str) else _plain(value)
    if isinstance(value, int):
        value = int(value)
        return value if value.bit_length() < 1000 else {"int": hex(value)}
    if isinstance(value, list):
        return [encode(one, keep) for one in value]
    if isinstance(value, dict):
        kind = type(value).__name__ if type(value).__name__ in ("Counter", "OrderedDict") else "dict"
        return {kind: [[encode(key, keep), encode(one, keep)] for key, one in value.items()]}
    for kind in (tuple, set, frozenset, collections.deque, *_VIEWS):
        if isinstance(value, kind):
            return {_VIEWS.get(kind, kind.__name__): [encode(one, keep) for one in value]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": list(value)}
    if isinstance(value, fractions.Fraction):
        return {"Fraction": [value.numerator, value.denominator]}
    if hasattr(value, "__next__"):
        items = [encode(one, keep) for one, _ in zip(value, range(MAX_ITEMS), strict=False)]
        return {"iterator": items}
    return {"object": [keep(value), cut(type(value).__name__), callable(value)]}


def _plain(value):
    return next(kind(value) for kind in (float, str) if isinstance(value, kind))


def decode(value: Any, find: Callable[..., Any]) -> Any:
    """The value that `encode` has made into JSON; `find(number, ...)` is what stands for one that was kept."""
    if isinstance(value, list):
        return [decode(one, find) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "object":
        return find(*content)
    if kind == "int":
        return int(content, 16)
    return _BUILT[kind](decode(content, find))
