"""Load a configuration file, override its keys, and compare two configurations.

A configuration is a Python file in a `configs` folder. `configs/base.py` holds every key once, and each other file
changes some of them:

    from configs import base

    def get_config():
        config = base.get_config()
        config.lr = 3e-6
        return config
"""

import difflib
import importlib
import linecache
import math
import numbers
import pathlib
import re
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from cgrpo_jax.errors import UserError

Config = config_dict.FrozenConfigDict  # what an entry point is given
_ABSENT = object()
_PROJECT_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
_TYPE_NAMES = {int: "an int", float: "a number", bool: "true or false", str: "a string", tuple: "a tuple"}


def load(path: str | pathlib.Path) -> config_dict.ConfigDict:
    """Runs `get_config()` of a configuration file and returns its locked result.

    `from configs import ...` finds the `configs` folder that holds the file, then the project's own, whatever the
    current directory is.

    Args:
      path: a Python file that defines `get_config()`.

    Raises:
      UserError: there is no such file, it fails to run, or it does not return a `ConfigDict`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"config file {path} does not exist{_neighbours(path)}")
    try:
        with _configs_package(path.resolve()):
            get_config = runpy.run_path(str(path)).get("get_config")
            config = None if get_config is None else get_config()
    except Exception as error:
        raise UserError(f"config file {path} fails to load: {_describe(error, path)}; mend the file") from error
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
      `override(config, ["--config.lr=3e-6"])` sets `config.lr` to 3e-6 and returns `[]`.
    """
    kinds = {}
    for argument in arguments:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            kinds[match.group(1)] = _check_key(config, match.group(1))
    before = flatten(config.to_dict())
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # a positional argument may stand before a flag
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *arguments])
        positional = values(["", *arguments])[1:]
    except flags.IllegalFlagValueError as error:
        name, _, rest = str(error).removeprefix("flag --config.").partition("=")
        raise UserError(_wrong_type(name, rest.split(": ")[0], kinds[name], before[name])) from error
    except flags.Error as error:
        raise UserError(f"{error}; write --config.key=value") from error
    for key, value in values["config"].override_values.items():
        if isinstance(value, tuple):
            _check_elements(key, value, before[key])
    return positional


def freeze(config: config_dict.ConfigDict) -> config_dict.FrozenConfigDict:
    """Returns an unchangeable copy: what an entry point is given."""
    return config_dict.FrozenConfigDict(config)


def replaced(config: Mapping, changes: Mapping[str, Any]) -> config_dict.FrozenConfigDict:
    """Returns an unchangeable copy with other values at dotted keys."""
    copy = config_dict.ConfigDict(config)
    copy.update_from_flattened_dict(changes)
    return freeze(copy)


def to_json(config: Mapping | config_dict.ConfigDict) -> dict[str, Any]:
    """Returns the configuration as a dict that `json.dumps` takes and `json.loads` gives back unchanged.

    Tuples become lists; infinities and nan, for which JSON has no number, become the strings "inf", "-inf", "nan".

    Raises:
      UserError: a value has no JSON form.
    """
    return {key: _to_json(value, key) for key, value in config.items()}


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
    """Lists the keys at which two `to_json` configurations differ, such as `"lr: 1e-06 -> 3e-06"`.

    Args:
      a: the old configuration.
      b: the new configuration.
      ignore: dotted keys, or groups of keys, that may differ.
    """
    flat_a, flat_b = flatten(a), flatten(b)
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


@contextmanager
def _configs_package(path: pathlib.Path) -> Iterator[None]:
    """Makes `configs` the folder of this file while it loads, and forgets it afterwards.

    A module object with its own search path, not an entry in `sys.path`: a package named `configs` that happens to
    be installed can't get in front.
    """
    folder = next((parent for parent in path.parents if parent.name == "configs"), path.parent)
    package = types.ModuleType("configs")
    package.__path__ = [str(folder), str(_PROJECT_CONFIGS)]
    saved = {name: sys.modules.pop(name) for name in _configs_modules()}
    sys.modules["configs"] = package
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in _configs_modules():
            del sys.modules[name]
        sys.modules.update(saved)


def _configs_modules() -> list[str]:
    return [name for name in sys.modules if name == "configs" or name.startswith("configs.")]


def _neighbours(path: pathlib.Path) -> str:
    """Names the files that could have been meant."""
    names = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
    if not names:
        return "; give the path of a file like configs/base.py"
    return f"{suggestion(path.name, names)}; {path.parent} has {', '.join(names)}"


def _describe(error: Exception, path: pathlib.Path) -> str:
    """Returns the error with the line of the config folder that raised it."""
    text = f"{type(error).__name__}: {_unquote(error)}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if pathlib.Path(f.filename).parent == path.parent]
    if frames and not isinstance(error, SyntaxError):
        linecache.checkcache(frames[-1].filename)
        text += f" ({pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return text


def _unquote(error: Exception) -> str:
    # ml_collections raises errors whose text is a repr: quoted, with an escaped newline before "Did you mean".
    return str(error).strip('"').replace("\\n", " ")


def _check_key(config: config_dict.ConfigDict, dotted: str) -> type:
    """Returns the type of the key; raises unless it is one value, not a group, that the command line can set."""
    node, names = config, dotted.split(".")
    for depth, name in enumerate(names):
        prefix = ".".join([*names[:depth], ""])
        if not isinstance(node, config_dict.ConfigDict):
            raise UserError(f"--config.{dotted}: {prefix[:-1]} is a value, not a group; set --config.{prefix[:-1]}")
        if name not in node:
            where = (
                f"the keys of {prefix[:-1]} are {', '.join(sorted(node))}"
                if prefix
                else "every key is in configs/base.py"
            )
            raise UserError(
                f"unknown config key --config.{dotted}{suggestion(name, list(node), '--config.' + prefix)}; {where}"
            )
        kind, node = node.get_type(name), node[name]
    if isinstance(node, config_dict.ConfigDict):
        raise UserError(f"--config.{dotted} is a group; set one of its keys: {', '.join(sorted(node))}")
    if kind not in _TYPE_NAMES:
        raise UserError(f"--config.{dotted} can't be set from the command line; set it in the config file")
    return kind


def _wrong_type(key: str, given: str, kind: type, current: Any) -> str:
    return f"--config.{key}={given} is not {_TYPE_NAMES[kind]}; it is now {current!r}"


def _check_elements(key: str, value: tuple, current: Any) -> None:
    """Raises if an element of an overridden tuple is not of the type of the tuple's elements in the config."""
    kinds = {type(element) for element in current or ()}
    if len(kinds) != 1:
        return
    (kind,) = kinds
    allowed = (int, float) if kind is float else kind
    for element in value:
        if not isinstance(element, allowed) or isinstance(element, bool) != (kind is bool):
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
