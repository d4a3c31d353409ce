"""What the launchers' command lines share: words of flags may be joined by dashes, and a command may follow `--`."""

import sys
from collections.abc import Callable, Mapping, Sequence

from cgrpo_jax import cli

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
    at = argv.index("--") if "--" in argv else len(argv)
    given, command = argv[:at], argv[at + 1 :]
    if {"--help", "-h"} & set(given):
        sys.stdout.write(doc.strip() + "\n")
        sys.exit(0)

    def call(**values) -> None:
        main(command=command, **values)

    cli.run(call, flags=flags, require=require, argv=[_with_underscores(argument) for argument in given])


def _with_underscores(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument
