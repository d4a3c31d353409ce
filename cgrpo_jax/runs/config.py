"""Load a configuration file, override its keys, freeze it, and compare two configurations.

A configuration is a Python file that changes some values of the base configuration:

    from cgrpo_jax.runs import base

    def get_config():
        config = base.get_config()
        config.optimizer.learning_rate = 3e-6
        return config

Files and flags change a `ConfigDict`, which knows types and refuses a misspelt key; all else is given the typed and
unchangeable `Config` that `freeze` makes of it.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.abc
import importlib.machinery
import linecache
import math
import numbers
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, keys, old_keys, other_names
from cgrpo_jax.runs.schema import Config as Config
from cgrpo_jax.runtime import places

_ABSENT = object()
_PROJECT_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"  # in a checkout alone
_TYPE_NAMES = {int: "an int", float: "a number", bool: "true or false", str: "a string", tuple: "a tuple"}


def load(path: str | pathlib.Path) -> config_dict.ConfigDict:
    """Runs `get_config()` of a configuration file and returns its locked result.

    Where the file lies in a folder named `configs`, `from configs import ...` finds that folder, then the project's
    own, whatever the current directory is.

    Args:
      path: a Python file that defines `get_config()`.

    Raises:
      UserError: there is no such file, it fails to run, or it does not return a `ConfigDict`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"config file {path} does not exist{_neighbours(path)}")
    try:
        with configs_found(path.resolve()):
            get_config = runpy.run_path(str(path)).get("get_config")
            config = None if get_config is None else get_config()
    except Exception as error:
        raise UserError(f"config file {path} fails to load: {_describe(error, path)}") from error
    if get_config is None:
        raise UserError(f"config file {path} has no function get_config(); define one that returns a ConfigDict")
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(
            f"get_config() of {path} returned {type(config).__name__}; return a ConfigDict, such as base.get_config()"
        )
    return config.lock()


def override(config: config_dict.ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Applies `--config.key=value` arguments to `config` in place and returns the positional arguments among them.

    Args:
      config: a locked configuration.
      arguments: command line arguments; any flag other than `--config.key` is an error.

    Raises:
      UserError: an unknown key or flag, or a value that is not of the key's type.

    Example:
      `override(config, ["--config.seed=3"])` sets `config.seed` to 3 and returns `[]`.
    """
    arguments, hints = old_keys.translate_flags(arguments)
    for hint in hints:
        sys.stderr.write(f"{hint}\n")
    kinds = {}
    for argument in arguments:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            kinds[match.group(1)] = _check_key(config, match.group(1))
    arguments = _lists(arguments, kinds)
    before = flatten(config.to_dict())
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # a positional argument may come before a flag
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *arguments])
        positional = values(["", *arguments])[1:]
    except flags.IllegalFlagValueError as error:
        name, _, rest = str(error).removeprefix("flag --config.").partition("=")
        raise UserError(_wrong_type(name, rest.split(": ")[0], kinds[name], before[name])) from error
    except flags.Error as error:
        raise UserError(f"{error}; write --config.key=value") from error
    overridden: Any = values["config"]  # absl's type of a flag is not that of a ConfigDict's
    for key, value in overridden.override_values.items():
        if isinstance(value, tuple):
            _check_elements(key, value, before[key])
    return positional


def freeze(config: config_dict.ConfigDict | Config) -> Config:
    """Returns an unchangeable, typed copy: what an entry point is given.

    Raises:
      UserError: the configuration was not made by `base.get_config()`: it has other keys.
    """
    return config if isinstance(config, Config) else _frozen(Config, config, "")


def _frozen(kind: Any, values: Any, prefix: str) -> Any:
    """Returns the section of a kind, whose dotted name begins with `prefix`, that a `ConfigDict` holds."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    strange = [f"{prefix}{name}" for name in values if name not in fields]
    if missing := [f"{prefix}{name}" for name in fields if name not in values]:
        raise UserError(f"the configuration has no {', '.join(missing)}; start it from base.get_config().")
    if strange:
        raise UserError(f"the configuration has {strange[0]}, which is no key; start it from base.get_config().")
    known = kind()
    return kind(**{name: _frozen_field(field, known, values[name], prefix) for name, field in fields.items()})


def _frozen_field(field: dataclasses.Field, section: Any, value: Any, prefix: str) -> Any:
    """Returns a key's value, or a section within a section of that kind, of what a `ConfigDict` has there."""
    inner = getattr(section, field.name)
    if dataclasses.is_dataclass(inner):
        return _frozen(type(inner), value, f"{prefix}{field.name}.")
    return _spelt(field.metadata["key"], tuples(value))


def _spelt(known: keys.Key, value: Any) -> Any:
    """Returns the value that is kept of what a file or a flag gives."""
    if known.is_path:
        if isinstance(value, tuple):
            return tuple(places.expanded(one) if isinstance(one, str) else one for one in value)
        return ",".join(places.expanded(one) for one in value.split(","))
    return known.spelt(value) if known.spelt else value


def tuples(value: Any) -> Any:
    """Returns a value as a configuration has it, whose lists, as of JSON, are tuples."""
    return tuple(tuples(one) for one in value) if isinstance(value, tuple | list) else value


def replaced(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns an unchangeable copy with other values at dotted keys."""
    named = {key.partition(".")[0] for key in changes}
    fields = [field for field in dataclasses.fields(config) if field.name in named]
    copy = base.thaw(config, {field.name for field in fields})
    copy.update_from_flattened_dict(changes)
    return dataclasses.replace(config, **{one.name: _frozen_field(one, config, copy[one.name], "") for one in fields})


def value(config: Config, key: str) -> Any:
    """Returns the value at a dotted key, whose name only the caller's data know."""
    return functools.reduce(getattr, key.split("."), config)


def to_json(config: Config | Mapping | config_dict.ConfigDict) -> dict[str, Any]:
    """Returns the configuration as a dict that `json.dumps` takes and `json.loads` gives back unchanged.

    Tuples become lists; infinities and nan, for which JSON has no number, become the strings "inf", "-inf", "nan".

    Raises:
      UserError: a value has no JSON form.
    """
    values = dataclasses.asdict(config) if isinstance(config, Config) else config
    return {key: _to_json(value, key) for key, value in values.items()}


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def differences(a: Mapping[str, Any], b: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """Lists the keys at which two `to_json` configurations differ, such as `"seed: 0 -> 1"`.

    Args:
      a: the old configuration; from before keys had sections, it is read through the table of `old_keys`.
      b: the new configuration.
      ignore: dotted keys, or groups of keys, that may differ.
    """
    flat_a, flat_b = flatten(old_keys.translate(a)), flatten(old_keys.translate(b))
    changed = []
    for key in sorted(flat_a.keys() | flat_b.keys()):
        old, new = flat_a.get(key, _ABSENT), flat_b.get(key, _ABSENT)
        if any(key == name or key.startswith(f"{name}.") for name in ignore):
            continue
        # 1 == True in Python, but not in a config.
        if old != new or isinstance(old, bool) != isinstance(new, bool):
            changed.append(f"{key}: {_show(old)} -> {_show(new)}")
    return changed


def suggestion(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Returns `" (did you mean X?)"` for a misspelt name, or nothing if no known name is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


class _Configs(importlib.abc.MetaPathFinder):
    """Finds the package `configs` in some folders, before one of that name that happens to be installed."""

    def __init__(self, folders: Sequence[pathlib.Path]):
        self._folders = folders

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != "configs":
            return None
        spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(folder) for folder in self._folders]
        return spec


@contextlib.contextmanager
def configs_found(path: pathlib.Path) -> Iterator[None]:
    """Lets `configs` be the folder of this file, then the project's, while it loads.

    What is imported from there is forgotten afterwards: the next file may lie in another folder of that name. A program
    that has imported a package `configs` itself keeps it.
    """
    folder = next((parent for parent in path.parents if parent.name == "configs"), path.parent)
    finder, before = _Configs([folder, _PROJECT_CONFIGS]), set(sys.modules)
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name == "configs" or name.startswith("configs."):
                del sys.modules[name]


def _neighbours(path: pathlib.Path) -> str:
    """Names the files that could have been meant."""
    names = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
    if not names:
        return "; give the path of a configuration file, such as configs/quickstart.py"
    return f"{suggestion(path.name, names)}; {path.parent} has {', '.join(names)}"


def _describe(error: Exception, path: pathlib.Path) -> str:
    """Returns the error with the line of the config folder that raised it, and what to do."""
    what = f"{type(error).__name__}: {_unquote(error)}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if pathlib.Path(f.filename).parent == path.parent]
    line = where = ""
    if frames and not isinstance(error, SyntaxError):
        linecache.checkcache(frames[-1].filename)
        line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
        where = f" ({pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    if isinstance(error, ImportError) and error.name in ("configs", "configs.base"):
        return f"{what}{where}; write from cgrpo_jax.runs import base"
    for name in _old_names(error, line):
        if name in old_keys.GONE:
            return f"{name} is gone{where}: {old_keys.GONE[name]}; leave it out"
        return f"{name} is now {old_keys.new_name(name)}{where}; write that"
    if name := _unknown_key(error, line):
        close = other_names.closest(name, list(flatten(base.get_config().to_dict())))
        return f"{name} is no key{f' (did you mean {close}?)' if close else ''}{where}; fix the file"
    return f"{what}{where}; fix the file"


def _old_names(error: Exception, line: str) -> list[str]:
    """Returns which former names of keys, or of groups of them, an error is about: the most specific first."""
    if not isinstance(error, AttributeError | KeyError | TypeError | ValueError):
        return []
    # `c.judge.url = ...` holds judge and judge.url; an error of ConfigDict names the last one alone.
    words = re.findall(r"[A-Za-z_][\w.]*", line.split("=")[0])
    chains = [word.partition(".")[2] for word in words] + re.findall(r"""["']([\w.]+)["']""", line)
    found = [".".join(chain.split(".")[:end]) for chain in chains for end in range(chain.count(".") + 1, 0, -1)]
    named = re.search(r"""Key "(\w+)|^["']*(\w+)["']*$""", str(error))
    names = [*found, *(named.groups("") if named else ())]
    return [name for name in names if name in old_keys.GONE or old_keys.new_name(name)]


def _unknown_key(error: Exception, line: str) -> str:
    """Returns the key that an error of `ConfigDict` says there is not, as the line has it; empty for another error."""
    if not isinstance(error, AttributeError | KeyError):
        return ""
    bare = r"|^[\"'\\]*([A-Za-z_]\w*)[\"'\\]*(?= Did you mean|$)" if isinstance(error, AttributeError) else ""
    found = re.search(rf'Key "(\w+)" does not exist{bare}', _unquote(error))
    if not found:
        return ""
    name = next(filter(None, found.groups()))
    chain = re.search(rf"\w+\.((?:\w+\.)*{name})\b", line)
    return chain[1] if chain else name


def _unquote(error: Exception) -> str:
    # ml_collections raises errors whose text is a repr: quoted, with an escaped newline before "Did you mean", and with
    # all of the configuration.
    text = str(error).strip("\"'" if isinstance(error, AttributeError) else '"').replace("\\n", " ")
    return re.sub(r' Other fields present: "\{.*\}"?', "", text, flags=re.DOTALL)


def _check_key(config: config_dict.ConfigDict, dotted: str) -> type:
    """Returns the type of the key; raises unless it is one value, not a group, that the command line can set."""
    node, names = config, dotted.split(".")
    for depth, name in enumerate(names):
        prefix = ".".join([*names[:depth], ""])
        if not isinstance(node, config_dict.ConfigDict):
            raise UserError(f"--config.{dotted}: {prefix[:-1]} is a value, not a group; set --config.{prefix[:-1]}")
        if name not in node:
            where = f"the keys of {prefix[:-1]} are {', '.join(sorted(node))}" if prefix else "--help lists every key"
            raise UserError(f"unknown config key --config.{dotted}{_meant(config, dotted)}; {where}")
        kind, node = node.get_type(name), node[name]
    if isinstance(node, config_dict.ConfigDict):
        raise UserError(f"--config.{dotted} is a group; set one of its keys: {', '.join(sorted(node))}")
    if kind not in _TYPE_NAMES:
        raise UserError(f"--config.{dotted} can't be set from the command line; set it in the config file")
    return kind


def _meant(config: config_dict.ConfigDict, dotted: str) -> str:
    """Returns which key could have been meant, also one of another section or by another library's name."""
    close = other_names.closest(dotted, list(flatten(config.to_dict())))
    return f" (did you mean --config.{close}?)" if close else ""


def _lists(arguments: Sequence[str], kinds: Mapping[str, type]) -> list[str]:
    """Returns the arguments with the values of keys that are tuples as Python writes them: q,v becomes ('q', 'v')."""
    found, waits = [], False
    for argument in arguments:
        match = re.fullmatch(r"(--?config\.([^=]*))(?:=(.*))?", argument, re.DOTALL)
        is_list = not waits and match is not None and kinds.get(match[2]) is tuple
        if waits:
            found.append(_list(argument))
        elif match and is_list and match[3] is not None:
            found.append(f"{match[1]}={_list(match[3])}")
        else:
            found.append(argument)
        waits = is_list and match is not None and match[3] is None
    return found


def _list(given: str) -> str:
    try:
        found = ast.literal_eval(given)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        inner = given[1:-1] if given[:1] + given[-1:] in ("()", "[]") else given
        if inner == given and "," not in given:
            return repr((given,))
        return repr(tuple(part.strip().strip("'\"") for part in inner.split(",") if part.strip()))
    return repr(tuple(found)) if isinstance(found, list) else given


def _wrong_type(key: str, given: str, kind: type, current: Any) -> str:
    return f"--config.{key}={given} is not {_TYPE_NAMES[kind]}; it is now {current!r}"


def _check_elements(key: str, value: tuple, current: Any) -> None:
    """Raises if an element of an overridden tuple is not of the type of the tuple's elements in the config."""
    kinds = {type(element) for element in current or ()}
    if len(kinds) != 1:
        return
    allowed = (int, float) if (kind := kinds.pop()) is float else kind
    wrong = [one for one in value if not isinstance(one, allowed) or isinstance(one, bool) != (kind is bool)]
    if wrong:
        # What is no number makes text of the numbers beside it, too.
        element = next((one for one in wrong if not re.fullmatch(r"[-+.\deE]+", str(one))), wrong[0])
        raise UserError(f"--config.{key}: {element!r} is not {_TYPE_NAMES.get(kind, kind)}; it is now {current!r}")


def _to_json(value: Any, key: str) -> Any:
    if isinstance(value, Mapping | config_dict.ConfigDict):
        return {inner: _to_json(leaf, f"{key}.{inner}") for inner, leaf in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(element, key) for element in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    raise UserError(f"config key {key} holds a {type(value).__name__}; use numbers, strings, booleans, None and tuples")


def _show(value: Any) -> str:
    return "(absent)" if value is _ABSENT else repr(value)
