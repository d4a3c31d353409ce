"""What the launchers' command lines share: words of flags may be joined by dashes, and a command may follow `--`."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli

# What launchers ask a training run to exit with that SIGTERM stopped: after a preemption it has not finished.
STOPPED_STATUS = 75

DRY_RUN = cli.Flag("print what would be done, and do nothing", bool, False)


def run(
    main: Callable[..., None],
    *,
    doc: str,
    flags: Mapping[str, cli.Flag],
    require: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> None:
    """Calls `main` with the flags, and with `command`: what follows `--`, as a list.

    Args:
      main: takes one keyword argument a flag, and `command`.
      doc: what `--help` prints.
      flags: by name, with underscores.
      require: flags that must be given.
      argv: the arguments after the program's name; those of the process by default.

    Example:
      `--dry-run --name=a -- python x.py` calls `main(dry_run=True, name="a", command=["python", "x.py"])`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(_split(argv)[0]):
        sys.stdout.write(doc.strip() + "\n")
        sys.exit(0)
    cli.run(lambda: main(**parse(argv, flags=flags, require=require)), argv=[])


def parse(argv: Sequence[str], *, flags: Mapping[str, cli.Flag], require: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what `run` calls its `main` with.

    Raises:
      UserError: an unknown flag, a wrong type, something missing, or a command without `--` before it.
    """
    given, command = _split(argv)
    dashed = {_with_dashes(name): flag for name, flag in flags.items()}
    words = [_with_dashes(argument) if argument.startswith("--") else argument for argument in given]
    value = False  # whether the word before takes this one as its value
    for word in words:
        if not word.startswith("-") and not value:
            raise UserError(f"unexpected {word}; a command goes after --, and the value of a flag after =")
        flag = dashed.get(word.lstrip("-")) if word.startswith("-") else None
        value = flag is not None and flag.kind is not bool
    values = cli.parse(words, flags=dashed, require=[_with_dashes(name) for name in require])
    return {name.replace("-", "_"): value for name, value in values.items()} | {"command": command}


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def _with_dashes(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
