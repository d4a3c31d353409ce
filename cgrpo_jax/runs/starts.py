"""What a run was started with, each time it was: command, code and devices, for those who read what it did.

started = starts.read("runs/quickstart")
started[-1].command, started[-1].commit        # cgrpo train --config=configs/quickstart.py ..., 4ce34fd
"""

import dataclasses
import datetime
import json
import pathlib
import shlex
import subprocess
import sys

import numpy as np

import cgrpo_jax
from cgrpo_jax.runs.run_dir import RunDir


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of a run; a resumed run has several.

    Attributes:
      time: when, as ISO 8601.
      command: as it is typed again; empty where a program called the function.
      commit: of the code, with `+` if its files differ from it; empty where it lies in no repository.
      version: of the package.
      devices: how many and which, such as `8 x TPU v5 lite`.
    """

    time: str = ""
    command: str = ""
    commit: str = ""
    version: str = ""
    devices: str = ""


def of_now(command: str, devices: np.ndarray) -> Start:
    """Returns the start that happens now.

    Args:
      command: its name, such as `train`.
      devices: that it computes on.
    """
    return Start(
        time=datetime.datetime.now().replace(microsecond=0).isoformat(),
        command=command_line(command),
        commit=commit(),
        version=cgrpo_jax.__version__,
        devices=f"{devices.size} x {devices.flat[0].device_kind}",
    )


def command_line(command: str) -> str:
    """Returns this process's command as it is typed again; empty where it is another one, which called a function.

    Example: within `python -m cgrpo_jax.train --workdir=runs/a`:
      >>> command_line("train")
      'cgrpo train --workdir=runs/a'
    """
    program = pathlib.PurePath(sys.argv[0]).name  # `train.py`, or of `cgrpo train` both words
    name = program.partition(" ")[2] or program.removesuffix(".py")
    return shlex.join(["cgrpo", command, *sys.argv[1:]]) if name == command else ""


def commit(root: pathlib.Path | None = None) -> str:
    """Returns the commit of a repository, with `+` if its files differ from it; empty where there is none.

    Args:
      root: of the repository; by default that of this package, unless it is installed elsewhere.
    """
    root = root or pathlib.Path(cgrpo_jax.__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    if not (root / ".git").exists():  # a repository that only holds an environment is not the package's
        return ""
    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return ""


def write(run: RunDir, start: Start) -> None:
    """Appends a start to those of a run's folder."""
    run.append_start(dataclasses.asdict(start))


def read(workdir: str | pathlib.Path) -> list[Start]:
    """Returns the starts of a run, in their order; of an older run, or where they can't be read, none."""
    try:
        lines = RunDir(workdir).starts.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    names = [field.name for field in dataclasses.fields(Start)]
    found = []
    for line in lines:
        try:
            record = json.loads(line)
            found.append(Start(**{name: str(record.get(name, "")) for name in names}))
        except (ValueError, AttributeError):  # it was cut short
            continue
    return found
