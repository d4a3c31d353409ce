"""The first line of a run, before the imports that take seconds; importing this takes no time."""

import contextlib
import os
import re
import sys
from collections.abc import Sequence


def say_start(command: str, arguments: Sequence[str]) -> None:
    """Writes to standard error that a command starts, where its arguments are those of a run, on process 0.

    Args:
      command: its name.
      arguments: of the command line. Without a folder, or with --help, nothing is said: nothing starts.

    Example:
      >>> say_start("train", ["--config=c.py", "--workdir=runs/a"])
      train: starting in runs/a; loading JAX and the package takes some seconds
    """
    if any(one in ("--help", "-help", "-h") for one in arguments):
        return
    joined = "\n".join(arguments)
    found = re.findall(r"^--?workdir[=\n](.+)$", joined, re.MULTILINE)
    if not found:  # a run's folder may stand without its flag; a word after a flag may be the flag's value
        follows_flag = [False, *(one.startswith("-") and "=" not in one for one in arguments)]
        words = zip(arguments, follows_flag, strict=False)
        found = [one for one, follows in words if one[:1] not in ("", "-") and not follows]
    if not found or os.environ.get("JAX_PROCESS_ID", "") not in ("", "0"):
        return
    shown = "".join(c if c.isprintable() else "?" for c in found[-1])
    shown = shown.encode("ascii", "backslashreplace").decode()
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: the run goes on
        sys.stderr.write(f"{command}: starting in {shown}; loading JAX and the package takes some seconds\n")
        sys.stderr.flush()
