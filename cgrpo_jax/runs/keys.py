"""What a key of a configuration is: its default, a line of help, the rules of its value, and when it may change.

A section is a frozen dataclass whose fields are made by `key` or, where they are sections themselves, by `section`:

    @dataclasses.dataclass(frozen=True)
    class Sampling:
        temperature: float = key(1.0, "of responses", positive("gives no exploration", "1.0"))

A rule is called with the key's name and its value, and returns what is wrong in one line, or None.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from cgrpo_jax.critiques import texts
from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import places
from cgrpo_jax.runtime import text as text_lib

Rule = Callable[[str, Any], str | None]
_Section = TypeVar("_Section")


class Resumed(enum.Flag):
    """What resumes after it was stopped: a training run, or the results of `evaluate`, `diagnose` or `collect`."""

    TRAINING = enum.auto()
    EVALUATION = enum.auto()
    DIAGNOSIS = enum.auto()
    COLLECTION = enum.auto()


NEVER = Resumed(0)
ALL = Resumed.TRAINING | Resumed.EVALUATION | Resumed.DIAGNOSIS | Resumed.COLLECTION


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key has besides its default and its type.

    Attributes:
      help: one line.
      rules: of its value by itself; that a number is finite need not be said.
      may_change: what may resume with another value. A key may change if no text, no reward and no update depends on
        its value, up to rounding; answers of HTTP endpoints aside.
      because: why it may.
      unread_with: dotted names of other keys, each with values; where all of them have one of theirs, training does
        not read this key. Or several such, any of which is enough.
      spelt: turns what files and flags may give into the value that is kept; None where they are the same.
      is_path: it names a file or folder, or several with commas between, on a disk (`~` is expanded) or in a bucket
        (gs://). Hosts may have it under other mount points: what it holds must be the same.
    """

    help: str
    rules: tuple[Rule, ...] = ()
    may_change: Resumed = NEVER
    because: str = ""
    unread_with: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] = ()
    spelt: Callable[[Any], Any] | None = None
    is_path: bool = False

    @property
    def unread_where(self) -> tuple[Mapping[str, Sequence[Any]], ...]:
        """The alternatives of `unread_with`."""
        return (self.unread_with,) if isinstance(self.unread_with, Mapping) else tuple(self.unread_with)


class Need(NamedTuple):
    """A row of a table of combinations: where `key` has one of `values`, `other` must have one of `allowed`.

    Keys are dotted names of the whole configuration; `because` says why, and stands in the message. `unless` is a key
    that does as well where it is not 0. What holds `of_training` alone is not asked of other commands.
    """

    key: str
    values: tuple[Any, ...]
    other: str
    allowed: tuple[Any, ...]
    because: str
    unless: str = ""
    of_training: bool = False

    def unmet(self, values: Mapping[str, Any]) -> str | None:
        """Returns what is wrong with the values of all keys, in one line, or None."""
        given, found = values[self.key], values[self.other]
        if given not in self.values or found in self.allowed or (self.unless and values[self.unless]):
            return None
        allowed = " or ".join(repr(one) for one in self.allowed) + (self.unless and f", or {self.unless}")
        return f"{self.key} {given!r} needs {self.other} {allowed}, not {found!r}: {self.because}."


def key(default: Any, help: str, *rules: Rule, **more: Any) -> Any:
    """Returns the field of a key; see `Key`, which `more` are attributes of."""
    return dataclasses.field(default=default, metadata={"key": Key(help, rules, **more)})


def section(kind: type[_Section]) -> _Section:
    """Returns the field of a section of this kind."""
    field: Any = dataclasses.field(default_factory=kind)
    return field


def items(section: Any, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Yields `(dotted name, what is known of it, value)` of every key, those of inner sections in their places."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from items(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.metadata["key"], value


def sections(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted name, section)` of every section within this one."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield prefix + field.name, value
            yield from sections(value, f"{prefix}{field.name}.")


class ConfigErrors(UserError):
    """Several mistakes in a configuration. The text is one line all the same; entry points print a line for each.

    Args:
      what: what they are, such as "3 problems in the configuration".
      mistakes: one line each.
    """

    def __init__(self, what: str, mistakes: Sequence[str]):
        super().__init__(f"{what}: {' '.join(mistakes)}")
        self.what, self.mistakes = what, tuple(mistakes)


def raise_together(what: str, mistakes: Sequence[str]) -> None:
    """Raises mistakes, if there are any: one by itself, several as `ConfigErrors`.

    Raises:
      UserError: there are mistakes; `what` says what several are, such as "problems in the configuration".
    """
    if len(mistakes) == 1:
        raise UserError(mistakes[0])
    if mistakes:
        raise ConfigErrors(f"{len(mistakes)} {what}", mistakes)


# --- rules --------------------------------------------------------------------------------------------------------


def wrong(name: str, known: Key, value: Any) -> str | None:
    """Returns what is wrong with the value of a key, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} {value} is no finite number; use one."
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not text_lib.is_valid(text):
            return refused(text_lib.check, text, name)
    if known.is_path and (why := places.faults(value)):
        return f"{name}: {why}"
    return next((text for rule in known.rules if (text := rule(name, value))), None)


def refused(check: Callable[..., Any], *args: Any, **kw: Any) -> str | None:
    """Returns the message of the `UserError` that a check of another room raises, or None."""
    try:
        check(*args, **kw)
    except UserError as error:
        return str(error)
    return None


def one_of(*allowed: str) -> Rule:
    """The value is one of these."""

    def rule(name: str, value: Any) -> str | None:
        return None if value in allowed else f"{name} {value!r} is unknown; use one of {', '.join(allowed)}."

    return rule


def each_of(*allowed: str) -> Rule:
    """The value is a list of some of these, each at most once."""

    def rule(name: str, value: Any) -> str | None:
        given = list(value)
        if len(set(given)) == len(given) and set(given) <= set(allowed):
            return None
        return f"{name} {text_lib.quoted(tuple(given))} is not possible; use some of {', '.join(allowed)}, each once."

    return rule


def at_least_one(name: str, value: Any) -> str | None:
    """The value is 1 or more."""
    return f"{name} {value} is too small; use at least 1." if value < 1 else None


def not_negative(name: str, value: Any) -> str | None:
    """The value is 0 or more."""
    return f"{name} {value} is negative; use 0 or more." if value < 0 else None


def at_most(most: int, why: str) -> Rule:
    """The value is no larger than `most`; `why` says what is wrong with a larger one."""

    def rule(name: str, value: Any) -> str | None:
        return f"{name} {value} {why}; use at most {most}." if value > most else None

    return rule


def positive(why: str, such_as: str) -> Rule:
    """The value is above 0; `why` says what is wrong with others, `such_as` is a good one."""

    def rule(name: str, value: Any) -> str | None:
        return None if value > 0 else f"{name} {value} {why}; use a positive one, such as {such_as}."

    return rule


def share(name: str, value: Any) -> str | None:
    """The value is a share of something."""
    return None if 0 <= value <= 1 else f"{name} {value} is not a share; use a value from 0 to 1."


def decay(name: str, value: Any) -> str | None:
    """The value is the decay of a moving average."""
    if 0 <= value < 1:
        return None
    return f"{name} {value} is no decay of an average; use a value of at least 0 and below 1."


def mass(name: str, value: Any) -> str | None:
    """The value is a probability mass, as of nucleus sampling."""
    return None if 0 < value <= 1 else f"{name} {value} is not a probability mass; use a value above 0 and at most 1."


def template(*fields: str, has_default: bool = True) -> Rule:
    """The value is a prompt template with a place for each field; empty only where there is a default."""

    def rule(name: str, value: Any) -> str | None:
        if not value and has_default:
            return None
        text = refused(texts.check_template, value, fields)
        return text and f"{name}: {text}"

    return rule
