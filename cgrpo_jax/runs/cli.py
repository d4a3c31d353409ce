"""The command line of every entry point: flags, configuration, and errors that fit on one line.

    def main(config, workdir): ...

    if __name__ == "__main__":
        cli.run(main, require=("config", "workdir"))

Where a program has both `--config` and `--workdir`, the folder of a run is enough: its own configuration is read, and
`--config.KEY=VALUE` changes it. The folder may then stand alone, as a positional argument.

A user's mistake (`UserError`, or a wrong flag) prints `error: ...` and exits with status 2, before anything is
written; several mistakes in a configuration (`keys.ConfigErrors`) print a line each. Any other exception is a bug and
keeps its stack trace.
"""

import contextlib
import dataclasses
import keyword
import pathlib
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, keys, old_keys, other_names, saved_config, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import console, places, processes, signals, watchdog
from cgrpo_jax.runtime import text as text_lib
from cgrpo_jax.training.checkpoint_steps import Step


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of an entry point.

    Attributes:
      help: one line for `--help`; of what is true by default, what switching it off does.
      kind: `str`, `int`, `float` or `bool` (`--name`, `--noname`).
      default: value when the flag is not given.
      is_path: it names a file or folder; `~` is expanded.
      in_bucket: which may lie in a bucket (gs://).
      is_folder: it names a folder, which is there or can be made.
    """

    help: str
    kind: type = str
    default: Any = None
    is_path: bool = False
    in_bucket: bool = False
    is_folder: bool = False


CONFIG = Flag(
    "configuration file, such as configs/quickstart.py; by default the configuration of the run in --workdir",
    is_path=True,
)
WORKDIR = Flag(
    "folder of the run, also gs://: metrics, rollouts, checkpoints, summary; a run's may stand without --workdir=",
    is_path=True,
    in_bucket=True,
    is_folder=True,
)
DISTRIBUTED = Flag("one of several processes that work together, each with the same command", kind=bool, default=False)
STEP = Flag("which checkpoint of the run: its number, or best, with eval.keep_best; the newest by default")

_DEFINE = {
    str: absl_flags.DEFINE_string,
    int: absl_flags.DEFINE_integer,
    float: absl_flags.DEFINE_float,
    bool: absl_flags.DEFINE_bool,
}
_MOST_TOLD = 300  # characters of an exception, to other processes
_KIND_NAMES = {str: "a string", int: "an int", float: "a number", bool: "true or false"}


def run(
    main: Callable[..., None],
    *,
    require: Sequence[str] = (),
    flags: Mapping[str, Flag] | None = None,
    arguments: Sequence[str] = (),
    several: bool = False,
    trains: bool = True,
    finetunes: bool = False,
    argv: Sequence[str] | None = None,
) -> None:
    """Parses the command line, calls `main` with one keyword argument per flag, and exits on a user's mistake.

    Args:
      main: called with what was given. `config` arrives as a `Config` with its overrides applied; a flag
        whose name is a Python keyword arrives with an underscore (`--from` as `from_`).
      require: names of the flags that must be given. `"config"` and `"workdir"` are known; put them in `flags`
        (as `cli.CONFIG`, `cli.WORKDIR`) instead of here where they may be left out.
      flags: further flags, by name.
      arguments: names of the positional arguments; all of them must be given.
      several: whether the last of these may be given several times; it then arrives as a list.
      trains: whether the program trains, or plans to; others refuse keys that training alone reads.
      finetunes: whether it learns from rows; it then reads other keys than one that generates what it learns from.
      argv: the arguments after the program's name; those of the process by default.

    Raises:
      SystemExit: 0 after `--help`, 2 after a user's mistake, 130 after Ctrl-C.

    Example:
      `run(main, require=("config",), flags={"topology": Flag("TPU topology, such as v5e:4x4")})` calls
      `main(config=..., topology=...)`.
    """
    known = {name: flag for name, flag in (("config", CONFIG), ("workdir", WORKDIR)) if name in require}
    known |= flags or {}
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        for argument in argv:
            text_lib.check(argument, f"argument {argument!r}")
        if any(argument in ("--help", "-help", "-h") for argument in argv):
            with console.output():
                sys.stdout.write(_usage(main, known, require, arguments, several))
            sys.exit(0)
        with signals.raised(), console.output(), processes.noticed():
            reads = {"trains": trains, "finetunes": finetunes}
            main(**parse(argv, flags=known, require=require, arguments=arguments, several=several, **reads))
    except UserError as error:
        watchdog.leave_to_main_thread()
        _say(_lines(error))
        processes.tell_others(text_lib.one_line(str(error)), joins=True if "--distributed" in argv else None)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough, as `| head` does
        console.drop_output()
        sys.exit(0)
    except Exception as error:
        processes.tell_others(text_lib.one_line(f"{type(error).__name__}: {error}")[:_MOST_TOLD], joins=False)
        raise
    except KeyboardInterrupt:
        _say("interrupted; the same command starts again, or resumes from what was written\n")
        sys.exit(signals.STATUS)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        sys.stderr.write(text)
        sys.stderr.flush()


def step_of(given: str | None) -> Step:
    """Returns which checkpoint the flag `STEP` names.

    Raises:
      UserError: it is neither a number nor best.
    """
    if given in (None, "best"):
        return given
    if given.isascii() and given.isdecimal():
        return int(given)
    raise UserError(f"--step {given!r} is no step; give the number of a checkpoint, or best.")


def _lines(error: UserError) -> str:
    """Returns what is printed of a mistake: one line, or one for each of several and one before."""
    if not isinstance(error, keys.ConfigErrors):
        return f"error: {text_lib.one_line(str(error))}\n"
    return f"error: {error.what}:\n" + "".join(f"  {text_lib.one_line(one)}\n" for one in error.mistakes)


def parse(
    argv: Sequence[str],
    *,
    flags: Mapping[str, Flag],
    require: Sequence[str] = (),
    arguments: Sequence[str] = (),
    several: bool = False,
    trains: bool = True,
    finetunes: bool = False,
) -> dict[str, Any]:
    """Returns the keyword arguments that a command line gives to `main` (see `run`).

    Raises:
      UserError: an unknown flag or config key, a wrong type, something missing, or a key that nothing reads.
    """
    values, rest = _parse_known(argv, flags)
    for name, flag in flags.items():
        if flag.is_path and values[name]:
            values[name] = _path(f"--{name}", values[name], in_bucket=flag.in_bucket, is_folder=flag.is_folder)
    # absl takes --undefok from the arguments by itself, and lets the flags it names pass in silence.
    for argument in [*rest, *(argument for argument in argv if argument.lstrip("-").startswith("undefok"))]:
        name = argument.lstrip("-").partition("=")[0]
        if re.match(r"--?[A-Za-z]", argument) and not (
            "config" in flags and name.removeprefix("no").startswith("config.")
        ):
            raise UserError(f"unknown flag --{name}{_meant(argument, flags)}; {_allowed(flags)}")
    runs = {"config", "workdir"} <= flags.keys()
    folder = _run_named(rest) if runs and not values["workdir"] and not arguments else None
    if folder is not None:
        values["workdir"] = folder
    missing = [f"--{name}" for name in require if values[name] in (None, "")]
    if missing and not (runs and values["workdir"] and missing == ["--config"]):
        enough = "; the folder of a run is enough: --workdir=RUN" if runs and "--config" in missing else ""
        raise UserError(f"missing {' and '.join(missing)}{enough}; {_allowed(flags)}")
    positional = rest
    if values.get("config") or (runs and missing):
        values["config"], positional = _configured(values, rest, trains=trains, finetunes=finetunes)
        positional = positional if folder is None else positional[1:]
    too_few = len(positional) < len(arguments)
    if too_few or (len(positional) > len(arguments) and not several) or any(one.startswith("-") for one in positional):
        expected = " ".join(_arguments(arguments, several)) or "none"
        raise UserError(f"positional arguments: got {' '.join(positional) or 'none'}, expected {expected}; see --help")
    if several:
        last = len(arguments) - 1
        values[arguments[last]], arguments = list(positional[last:]), arguments[:last]
        positional = positional[:last]
    values |= dict(zip(arguments, positional, strict=True))
    return {f"{name}_" if keyword.iskeyword(name) else name: value for name, value in values.items()}


def _configured(
    values: Mapping[str, Any], rest: Sequence[str], *, trains: bool, finetunes: bool
) -> tuple[config_lib.Config, Sequence[str]]:
    """Returns the configuration of a file, or else of the run in the folder, with its overrides; what is left of these.

    Raises:
      UserError: there is none, an override is none, or it is of a key that nothing reads.
    """
    path = values["config"]
    config = config_lib.load(path) if path else saved_config.read(values["workdir"])
    if config is None:
        raise UserError(
            f"missing --config: there is no run in {values['workdir']} (no config.json), whose configuration could be "
            "read; give the folder of a run, or a configuration file."
        )
    if path and values.get("workdir"):
        saved_config.keep_defaults(config, values["workdir"])
    before = config_lib.flatten(config.to_dict())
    positional = config_lib.override(config, rest)
    after = config_lib.flatten(config.to_dict())
    frozen = config_lib.freeze(config)
    changed = {key: value for key, value in after.items() if value != before[key]}
    found = []
    if not trains and not path:  # with a file, the flags may be those with which the run was started
        found = list(validate.unread_without_training(changed))
    elif trains and not any(validate.violations(frozen, finetunes=finetunes)):  # else the program says these first
        found = list(validate.unread(frozen, changed, finetunes=finetunes))
    keys.raise_together("keys that nothing reads", found)
    return frozen, positional


def _run_named(rest: Sequence[str]) -> str | None:
    """Returns the folder of a run that stands alone on a command line; None where nothing does.

    Raises:
      UserError: it is not the folder of a run.
    """
    alone = config_lib.override(base.get_config(), old_keys.translate_flags(rest)[0])
    if len(alone) != 1 or alone[0].startswith("-"):
        return None
    folder = _path("the run", alone[0], in_bucket=True, is_folder=True)
    if saved_config.read(folder) is None:
        raise UserError(
            f"there is no run in {folder} (no config.json); give the folder of a run, or --config and --workdir."
        )
    return folder


def _path(whose: str, value: str, *, in_bucket: bool, is_folder: bool) -> str:
    """Returns a path that was given, with its `~` expanded; raises a `UserError` where it lies where it can't be."""
    if why := places.fault(value):
        raise UserError(f"{whose}: {why}")
    if places.is_bucket(value) and not in_bucket:
        raise UserError(f"{whose} {value} is in a bucket; give a path on a disk.")
    path = places.expanded(value)
    if is_folder and (what := places.in_the_way(path)):
        raise UserError(f"{whose} {value} can't be a folder, since {what} is none; give another.")
    return path


def _meant(argument: str, flags: Mapping[str, Flag]) -> str:
    """Returns which flag, or which key of the configuration, an unknown flag could have been."""
    name, equals, value = argument.lstrip("-").partition("=")
    names = _names(flags)
    if "config" not in flags:
        return config_lib.suggestion(name, names, "--")
    if other_names.FLAGS.get(name) in flags:
        return f" (did you mean --{other_names.FLAGS[name]}{equals}{value}?)"
    known = [key for key, _, _ in keys.items(config_lib.Config())]
    key = other_names.meant(name, known)
    if not key and (close := config_lib.suggestion(name, names, "--")):
        return close
    key = key or other_names.closest(name, known)
    return f" (did you mean --config.{key}{equals}{value}?)" if key else ""


def _parse_known(argv: Sequence[str], flags: Mapping[str, Flag]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of the given flags and the arguments that are none of them."""
    # A fresh FlagValues: absl's global one belongs to whatever library was imported last.
    parser = absl_flags.FlagValues()
    for name, flag in flags.items():
        _DEFINE[flag.kind](name, flag.default, flag.help, flag_values=parser)
    parser.set_gnu_getopt(True)  # a positional argument may come before a flag
    try:
        rest = parser(["", *argv], known_only=True)[1:]
    except absl_flags.IllegalFlagValueError as error:
        given = str(error).removeprefix("flag ").split(": ")[0]
        name = given.removeprefix("--").partition("=")[0]
        raise UserError(f"{given} is not {_KIND_NAMES[flags[name].kind]}") from error
    except (absl_flags.Error, ValueError) as error:
        raise UserError(f"{error}; {_allowed(flags)}") from error
    return {name: parser[name].value for name in flags}, rest


def _names(flags: Mapping[str, Flag]) -> list[str]:
    """Returns the flags as they are given: what is true by default can only be switched off."""
    return [f"no{name}" if flag.default is True else name for name, flag in flags.items()]


def _allowed(flags: Mapping[str, Flag]) -> str:
    names = [f"--{name}" for name in _names(flags)] + (["--config.KEY=VALUE"] if "config" in flags else [])
    return f"flags are {', '.join([*names, '--help'])}"


def _arguments(names: Sequence[str], several: bool) -> list[str]:
    """Returns the positional arguments as `--help` has them."""
    shown = [name.upper() for name in names]
    return [*shown[:-1], f"{shown[-1]} ..."] if several else shown


def _usage(
    main: Callable[..., None],
    known: Mapping[str, Flag],
    require: Sequence[str],
    arguments: Sequence[str],
    several: bool,
) -> str:
    """Returns the text of `--help`: one line of usage, what the program does, and its flags."""
    module = sys.modules.get(main.__module__)
    words = [f"usage: {_program(module)}", *_arguments(arguments, several)]
    named = dict(zip(_names(known), known.values(), strict=True))
    for flag, spec in named.items():
        value = "" if spec.kind is bool else "=..."
        optional = flag not in require or (flag == "config" and "workdir" in require)
        words.append(f"[--{flag}{value}]" if optional else f"--{flag}{value}")
    lines = [" ".join(words + ["[--config.KEY=VALUE ...]"] * ("config" in known)), ""]
    if summary := (getattr(module, "__doc__", None) or main.__doc__ or "").strip():
        lines += [summary, ""]
    for flag, spec in named.items():
        default = "" if spec.default is None or spec.kind is bool else f" (default: {spec.default})"
        lines.append(f"  --{flag:<12} {spec.help}{default}")
    if "config" in known:
        lines += ["", "Keys of the configuration with their defaults, set by --config.KEY=VALUE or in its file:"]
        lines += _key_lines(config_lib.Config(), shutil.get_terminal_size().columns)
    return "\n".join(lines) + "\n"


def _program(module: types.ModuleType | None) -> str:
    """Returns how a program is called: `cgrpo NAME` if it is one of the commands."""
    spec = getattr(module, "__spec__", None)
    package, _, name = spec.name.partition(".") if spec else ("", "", "")
    if package == "cgrpo_jax":
        return f"cgrpo {name.removesuffix('.__main__')}"
    return f"python {pathlib.Path(getattr(module, '__file__', None) or sys.argv[0]).name}"


def _key_lines(section: Any, width: int, prefix: str = "") -> list[str]:
    """Returns a line or two for each key, under the name of its section and what that is, wrapped to the terminal."""
    lines, inner = [], []
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            summary = (value.__doc__ or "").partition("\n")[0]
            inner += ["", *_wrapped(f"{name}: {summary}", width, ""), *_key_lines(value, width, f"{name}.")]
        else:
            known: keys.Key = field.metadata["key"]
            lines.append(f"  {name} = {value!r}")
            lines += _wrapped(known.help, width, " " * 6)
    return [*lines, *inner]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, max(40, width), initial_indent=indent, subsequent_indent=indent or "  ")
