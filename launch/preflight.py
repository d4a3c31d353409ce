"""What a launcher refuses before a slice costs anything: names that the cloud refuses, and commands that can't run."""

import contextlib
import pathlib
import posixpath
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence

import tpus

from cgrpo_jax import sharding
from cgrpo_jax.__main__ import COMMANDS
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import chips

PACKAGE = "cgrpo_jax"
# The programs that run on a slice with a configuration, and the flags of each beside --config and --workdir.
RUNS = {
    "train": {"distributed": cli.DISTRIBUTED},
    "evaluate": {
        "distributed": cli.DISTRIBUTED,
        "refine": cli.Flag("or not", kind=bool, default=False),
        "out": cli.Flag("a folder"),
        "step": cli.STEP,
    },
    "diagnose": {"distributed": cli.DISTRIBUTED, "out": cli.Flag("a folder"), "step": cli.STEP},
    "sample": {
        "distributed": cli.DISTRIBUTED,
        "question": cli.Flag("one"),
        "answer": cli.Flag("its answer"),
        "columns": cli.Flag("its other columns"),
        "step": cli.STEP,
    },
}
HOST_FOLDERS = ("/home", "/root", "/tmp", "/var", "/usr", "/dev")  # on a host's own disk or in its memory


def check_name(flag: str, name: str, *, what: str, limit: int) -> None:
    """Raises a `UserError` unless `name`, the value of `flag`, can name `what` in at most `limit` characters."""
    if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{limit - 2}}}[a-z0-9])?", name):
        raise UserError(
            f"{flag}={name} can't name {what}; use at most {limit} of a-z, 0-9 and -, a letter first and no - last"
        )


def check_place(*, zone: str, project: str) -> None:
    """Raises a `UserError` unless a zone and a project of Google Cloud can be called so."""
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z][a-z0-9]*", zone):
        what = "a region; add the zone's letter" if re.fullmatch(r"[a-z]+-[a-z]+\d+", zone) else "no zone; use one"
        raise UserError(f"--zone={zone} is {what}, such as us-east5-b")
    # An old project's id begins with its domain; gcloud takes a project's number as well.
    if not re.fullmatch(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]|\d+", project):
        raise UserError(f"--project={project} is no project's id: 6 to 30 of a-z, 0-9 and -, a letter first")


def check_not_negative(flag: str, value: float) -> None:
    """Raises a `UserError` if the value of `flag` is below zero."""
    if value < 0:
        raise UserError(f"{flag}={value} is negative; use 0 or more")


def check_outlives_slice(flag: str, path: str) -> None:
    """Raises a `UserError` if `path` can't be a folder that all hosts of a Cloud TPU slice mount."""
    if "://" in path:
        raise UserError(f"{flag}={path} is no folder; mount it on all hosts and give the path, such as /mnt/shared/run")
    if not path.startswith("/") or _is_under(path, *HOST_FOLDERS):
        raise UserError(
            f"{flag}={path} would go with the slice; give the path of a folder that all hosts mount, such as "
            "/mnt/shared/run"
        )


def check_on_claim(flag: str, path: str, *, claim: str, mount: str) -> None:
    """Raises a `UserError` unless `path` is on the volume that a claim brings to every pod."""
    if not claim:
        raise UserError(f"{flag}={path} would go with the pod; give the --claim of a volume, which is at {mount}")
    if not path.startswith("/") or not _is_under(path, mount):
        raise UserError(f"{flag}={path} would go with the pod; the claim's volume is at {mount}: give a folder there")


def _is_under(path: str, *folders: str) -> bool:
    parts = pathlib.PurePosixPath("/" + posixpath.normpath(path).lstrip("/"))
    return any(parts.is_relative_to(posixpath.normpath(folder)) for folder in folders)


def check_command(
    command: Sequence[str], *, where: tpus.Slice, root: pathlib.Path, check_folder: Callable[[str, str], None]
) -> str:
    """Raises a `UserError` if the command can't run on the slice, or leaves nothing behind.

    Args:
      command: what every host runs. Of another program than this project's, only a --workdir is looked at.
      where: the slice.
      root: the repository, in which paths of the command begin.
      check_folder: raises if a path, of the flag that it is given first, is not kept.

    Returns:
      The path of the configuration that the hosts read, or an empty string if none is known.
    """
    if not command:
        raise UserError("no command to run; write it after --, such as -- python -m cgrpo_jax.train --config=...")
    program, arguments = _program(command)
    path = (_value(arguments, "config") or "") if program in RUNS else ""
    # A configuration, or a run's folder, on a volume that is mounted on the hosts alone can't be read here.
    of_a_run = program != "train" and not path
    if program in RUNS and not of_a_run and (not posixpath.isabs(path) or pathlib.Path(path).is_file()):
        _check_run(program, arguments, where=where, root=root)
    workdir = _value(arguments, "workdir")
    if workdir:
        check_folder("--workdir", workdir)
    elif program in RUNS:
        raise UserError(f"{shlex.join(command)}: missing --workdir; give a folder that stays")
    return path


def _check_run(program: str, arguments: Sequence[str], *, where: tpus.Slice, root: pathlib.Path) -> None:
    flags = {"config": cli.CONFIG, "workdir": cli.WORKDIR, **RUNS[program]}
    try:
        with contextlib.chdir(root):
            given = cli.parse(arguments, flags=flags, require=("config", "workdir"), trains=program == "train")
        config = given["config"]
        validate.check(config, trains=program == "train")
        devices = where.chips * chips.CHIPS[where.name.partition(":")[0]].devices_per_chip
        mesh = config.mesh
        sharding.make_mesh(replica=mesh.replica, fsdp=mesh.fsdp, tensor=mesh.tensor, devices=range(devices))
    except UserError as error:
        raise UserError(f"{PACKAGE}.{program} would fail on {where.name}: {error}") from error


def check_shipped(path: str, root: pathlib.Path) -> None:
    """Raises a `UserError` unless the configuration at `path` is in the current commit of `root` as it is here.

    An absolute path must be one that all hosts of a Cloud TPU slice mount.
    """
    if posixpath.isabs(path):
        if _is_under(path, *HOST_FOLDERS):
            raise UserError(f"--config={path} is not on the hosts; commit it, and give its path in the repository")
        return
    look = ["git", "-C", str(root), "status", "--porcelain", "--ignored", "--", path]
    try:
        done = subprocess.run(look, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("git is not installed; install it: what is shipped is the current commit") from error
    if done.returncode:
        raise UserError(f"--config={path} is not in a git checkout ({done.stderr.strip()}); launch from one")
    if done.stdout:
        raise UserError(f"--config={path} is not committed as it is here, and only the commit is shipped: commit it")


def _program(command: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Returns which program of this project the command runs, or an empty string, and its arguments."""
    if len(command) > 1 and pathlib.PurePath(command[0]).name == "cgrpo":
        return _known(command[1], shlex.join(command[:2])), command[2:]
    for at, (flag, module) in enumerate(zip(command, command[1:], strict=False)):
        package, _, name = module.partition(".")
        if flag == "-m" and package == PACKAGE:
            return _known(name, module), command[at + 2 :]
    return "", command


def _known(name: str, given: str) -> str:
    if name not in COMMANDS:
        close = config_lib.suggestion(name, COMMANDS, f"{PACKAGE}.")
        raise UserError(f"{given} is no program of this project{close}; there are {', '.join(sorted(COMMANDS))}")
    return name


def _value(arguments: Sequence[str], name: str) -> str | None:
    """Returns the last value of a flag, written --name=value or --name value; None if it is not given."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", argument, re.DOTALL)
        if match:
            found = following if match[1] is None else match[1]
    return found
