"""What a launcher refuses before a slice costs anything: names that the cloud refuses, and commands that can't run."""

import contextlib
import dataclasses
import pathlib
import posixpath
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence

import tpus

from cgrpo_jax import sharding
from cgrpo_jax.__main__ import COMMANDS
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, keys, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import chips, places

PACKAGE = "cgrpo_jax"
# The programs that run on a slice with a configuration, and the flags of each beside --config and --workdir.
RUNS = {
    "train": {"distributed": cli.DISTRIBUTED},
    "finetune": {"distributed": cli.DISTRIBUTED},
    "evaluate": {
        "distributed": cli.DISTRIBUTED,
        "refine": cli.Flag("or not", kind=bool, default=False),
        "behaviours": cli.Flag("how many", kind=int, default=0),
        "out": cli.Flag("a folder"),
        "step": cli.STEP,
    },
    "diagnose": {"distributed": cli.DISTRIBUTED, "out": cli.Flag("a folder"), "step": cli.STEP},
    "collect": {"distributed": cli.DISTRIBUTED, "out": cli.Flag("a folder"), "step": cli.STEP},
    "sample": {
        "distributed": cli.DISTRIBUTED,
        "question": cli.Flag("one"),
        "answer": cli.Flag("its answer"),
        "columns": cli.Flag("its other columns"),
        "step": cli.STEP,
    },
}
TRAINING = ("train", "finetune")  # of these
WRITTEN = ("workdir", "out", "to", "to_hf", "to_peft")  # flags of folders that a program writes


@dataclasses.dataclass(frozen=True)
class InBucket:
    """A path in a bucket that must be there: the bucket at least, where a program writes it."""

    flag: str
    path: str


@dataclasses.dataclass(frozen=True)
class Given:
    """What a command reads.

    Attributes:
      config: the path of the configuration that the hosts read; empty if none is known.
      inputs: other files and folders that its configuration names, each with its flag.
      in_buckets: what must be there in buckets.
    """

    config: str = ""
    inputs: Sequence[tuple[str, str]] = ()
    in_buckets: Sequence[InBucket] = ()


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


def check_outlives_slice(flag: str, path: str, *, targets: Sequence[str]) -> None:
    """Raises a `UserError` unless `path` is in a bucket, or on what all hosts of a slice mount at `targets`."""
    _check_storage(flag, path)
    if not places.is_bucket(path) and not (path.startswith("/") and _is_under(path, *targets)):
        raise UserError(
            f"{flag}={path} would go with the slice; give a path in a bucket, gs://BUCKET/NAME, or one on a --mount"
        )


def _check_storage(flag: str, path: str) -> None:
    with places.elsewhere():
        if why := places.fault(path):
            raise UserError(f"{flag}: {why}")


def check_on_claim(flag: str, path: str, *, claim: str, mount: str) -> None:
    """Raises a `UserError` unless `path` is on the volume that a claim brings to every pod."""
    _check_storage(flag, path)
    if places.is_bucket(path):
        return
    if not claim:
        raise UserError(f"{flag}={path} would go with the pod; give the --claim of a volume, which is at {mount}")
    if not path.startswith("/") or not _is_under(path, mount):
        raise UserError(f"{flag}={path} would go with the pod; the claim's volume is at {mount}: give a folder there")


def _is_under(path: str, *folders: str) -> bool:
    parts = pathlib.PurePosixPath("/" + posixpath.normpath(path).lstrip("/"))
    return any(parts.is_relative_to(posixpath.normpath(folder)) for folder in folders)


def check_command(
    command: Sequence[str], *, where: tpus.Slice, root: pathlib.Path, check_folder: Callable[[str, str], None]
) -> Given:
    """Raises a `UserError` if the command can't run on the slice, or leaves nothing behind.

    Args:
      command: what every host runs. Of another program than this project's, only a --workdir is looked at.
      where: the slice.
      root: the repository, in which paths of the command begin.
      check_folder: raises if a path, of the flag that it is given first, is not kept.
    """
    if not command:
        raise UserError("no command to run; write it after --, such as -- python -m cgrpo_jax.train --config=...")
    if len(command) == 1 and " " in command[0]:
        raise UserError(f"the command {command[0]!r} is one word, of a program that isn't there; leave its quotes out")
    if re.match(r"[A-Za-z_][A-Za-z0-9_]*=", command[0]):
        raise UserError(f"{command[0].partition('=')[0]}=... is no program; write env before it, as no shell reads it")
    program, arguments = _program(command)
    path = (_value(arguments, "config") or "") if program in RUNS else ""
    inputs: list[tuple[str, str]] = []
    # A configuration, or a run's folder, on a volume that is mounted on the hosts alone can't be read here.
    of_a_run = program not in TRAINING and not path
    if program in RUNS and not of_a_run and (not posixpath.isabs(path) or pathlib.Path(path).is_file()):
        inputs = _check_run(program, arguments, where=where, root=root)
    workdir = _value(arguments, "workdir")
    if workdir:
        check_folder("--workdir", workdir)
    elif program in RUNS:
        raise UserError(f"{shlex.join(command)}: missing --workdir; give a folder that stays")
    in_buckets = list(_in_buckets(arguments, inputs))
    if of_a_run and program in RUNS and workdir and places.is_bucket(workdir):
        in_buckets.append(InBucket("--workdir", f"{workdir.rstrip('/')}/config.json"))
    return Given(path, [one for one in inputs if not places.is_bucket(one[1])], list(dict.fromkeys(in_buckets)))


def _in_buckets(arguments: Sequence[str], inputs: Sequence[tuple[str, str]]) -> Iterator[InBucket]:
    """Yields what must be there of a command's gs:// paths: what it reads, and the buckets that it writes into."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if not equals and flag.startswith("-"):
            value = following
        name = flag.lstrip("-")
        for path in value.split(",") if flag.startswith("-") else ():
            if places.is_bucket(path):
                _check_storage(f"--{name}", path)
                yield InBucket(f"--{name}", _bucket_of(path) if name in WRITTEN else path)
    yield from (InBucket(flag, path) for flag, path in inputs if places.is_bucket(path))


def _bucket_of(path: str) -> str:
    return "/".join(path.split("/")[:3])


def look(one: InBucket) -> list[str]:
    """Returns the command that says whether a path in a bucket is there."""
    return ["gcloud", "storage", "ls", one.path]


def check_there(one: InBucket) -> None:
    """Raises a `UserError` unless a path in a bucket is there."""
    try:
        done = subprocess.run(look(one), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("gcloud is not installed; install the Google Cloud CLI and log in") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        make = f"gcloud storage buckets create {_bucket_of(one.path)} --location=REGION"
        fix = f"make it: {make}" if one.path == _bucket_of(one.path) else "copy it there, or check the path"
        raise UserError(f"{one.flag}: {one.path} is not there, or not for this account ({why}); {fix}")


def _check_run(
    program: str, arguments: Sequence[str], *, where: tpus.Slice, root: pathlib.Path
) -> list[tuple[str, str]]:
    """Checks a command with its configuration; returns the files and folders that this names, each with its flag."""
    flags = {"config": cli.CONFIG, "workdir": cli.WORKDIR, **RUNS[program]}
    reads = {"trains": program in TRAINING, "finetunes": program == "finetune"}
    try:
        with contextlib.chdir(root), places.elsewhere():
            given = cli.parse(arguments, flags=flags, require=("config", "workdir"), **reads)
            config = given["config"]
            validate.check(config, **reads)
        devices = where.chips * chips.CHIPS[where.name.partition(":")[0]].devices_per_chip
        mesh = config.mesh
        own = sharding.make_mesh(replica=mesh.replica, fsdp=mesh.fsdp, tensor=mesh.tensor, devices=range(devices))
        sharding.generation_mesh(own, mesh.gen_tensor)
    except UserError as error:
        raise UserError(f"{PACKAGE}.{program} would fail on {where.name}: {error}") from error
    named = [(f"--config.{name}", value) for name, known, value in keys.items(config) if known.is_path and value]
    several = [(flag, value.split(",") if isinstance(value, str) else value) for flag, value in named]
    return [(flag, one.strip()) for flag, values in several for one in values]


def check_on_hosts(flag: str, path: str, *, root: pathlib.Path, targets: Sequence[str]) -> None:
    """Raises a `UserError` unless a fresh slice has what a flag names: on a mount, or in the current commit of `root`.

    A name that is no file here, such as that of a data set, passes.
    """
    file = path.rpartition(":")[0] if re.search(r"\.py:\w+$", path) else path  # of a function
    if posixpath.isabs(file):
        if not _is_under(file, *targets):
            raise UserError(
                f"{flag}={path} is not on the hosts; give a path in a bucket or on a --mount, or commit it and give "
                "its path in the repository"
            )
    elif flag == "--config" or (root / file).exists():
        _check_shipped(flag, file, root)


def _check_shipped(flag: str, path: str, root: pathlib.Path) -> None:
    """Raises a `UserError` unless a file is in the current commit of `root` as it is here."""
    look = ["git", "-C", str(root), "status", "--porcelain", "--ignored", "--", path]
    try:
        done = subprocess.run(look, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("git is not installed; install it: what is shipped is the current commit") from error
    if done.returncode:
        raise UserError(f"{flag}={path} is not in a git checkout ({done.stderr.strip()}); launch from one")
    if done.stdout:
        raise UserError(f"{flag}={path} is not committed as it is here, and only the commit is shipped: commit it")


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
