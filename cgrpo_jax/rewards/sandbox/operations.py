"""Operations on a program's objects that tests ask for as Python's syntax and functions do: `len(x)`, `x + y`, `x[0]`.

`program` carries them out. `remote` gives the object that stands for one the special methods that this one has.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

_NUMBERS = "add sub mul truediv floordiv mod matmul and_ or_ xor lshift rshift".split()
COMPARISONS: dict[str, Callable] = {
    f"__{name}__": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


def _reflected(function: Callable) -> Callable:
    return lambda this, other: function(other, this)


def _arithmetic() -> dict[str, Callable]:
    found: dict[str, Callable] = {"__divmod__": divmod, "__rdivmod__": _reflected(divmod), "__pow__": pow}
    found |= {"__rpow__": _reflected(pow), "__ipow__": operator.ipow}
    for name in _NUMBERS:
        function, bare = getattr(operator, name), name.rstrip("_")
        found |= {f"__{bare}__": function, f"__r{bare}__": _reflected(function)}
        found[f"__i{bare}__"] = getattr(operator, f"i{bare}")
    return found


# What a program could answer to please a test that shows it a value of its own.
SHOWING: dict[str, Callable] = {"__contains__": operator.contains} | _arithmetic()


def _copy():
    import copy  # few programs need it

    return copy


def _next(iterator) -> list:
    """The next item alone in a list; an empty list at the end."""
    try:
        return [next(iterator)]
    except StopIteration:
        return []


def _equals_all(this) -> bool:
    """Does a comparison say yes to what it can't know? One that fails there does not."""
    try:
        return (this == object()) is True
    except Exception:  # noqa: BLE001  (the program's: `self.x == other.x`)
        return False


# In these, the program sees no more of a test than where it looks.
_ASKING: dict[str, Callable] = {
    "__len__": len,
    "__bool__": operator.truth,
    "__hash__": hash,
    "__int__": int,
    "__float__": float,
    "__complex__": complex,
    "__index__": operator.index,
    "__bytes__": bytes,
    "__round__": round,
    "__trunc__": math.trunc,
    "__floor__": math.floor,
    "__ceil__": math.ceil,
    "__abs__": abs,
    "__neg__": operator.neg,
    "__pos__": operator.pos,
    "__invert__": operator.invert,
    "__iter__": iter,
    "__next__": _next,
    "__reversed__": reversed,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__enter__": lambda this: type(this).__enter__(this),
    "__exit__": lambda this, error: type(this).__exit__(this, error and type(error), error, None),
    "__call__": lambda this, *args: this(*args),
}
ALWAYS: dict[str, Callable] = {  # every object has them
    "__str__": str,
    "__repr__": repr,
    "__format__": format,
    "__copy__": lambda this: _copy().copy(this),
    "__deepcopy__": lambda this: _copy().deepcopy(this),
}
TEXTS = ("__str__", "__repr__", "__format__")
SPECIAL = (*_ASKING, *SHOWING)  # a bit of a mask each
BY_NAME: dict[str, Callable[..., Any]] = {
    **_ASKING,
    **SHOWING,
    **ALWAYS,
    **COMPARISONS,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "type": type,
    "equals all": _equals_all,
}


@functools.cache
def mask(kind: type) -> int:
    """Returns which of `SPECIAL` the objects of a class have, a bit each.

    Example:
      >>> names(mask(range))[:2]
      ['__len__', '__bool__']
    """
    return sum(1 << bit for bit, name in enumerate(SPECIAL) if getattr(kind, name, None) is not None)


def names(bits: int) -> list[str]:
    """Returns the special methods of a mask."""
    return [name for bit, name in enumerate(SPECIAL) if bits >> bit & 1]
