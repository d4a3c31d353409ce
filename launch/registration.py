"""The commit that registers a study before it runs: the last one that touched what the study is made of. For study.py.

found = of_study(pathlib.Path("configs/studies/gamma.py"), load("configs/studies/gamma.py"))
found.commit, found.time      # ("4ce34fd", "2026-12-01T08:00:00+00:00")
found.changed                 # () or files that differ from it
"""

import ast
import dataclasses
import functools
import os
import pathlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cgrpo_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Registration:
    """What a study was registered by.

    Attributes:
      commit: the last one that touched one of the files; empty where there is none, as outside of a repository.
      time: of that commit, ISO 8601 in UTC; empty without one.
      files: what the study is made of, from the repository's root.
      changed: of these files, those that differ from the commit, or that no commit has.
    """

    commit: str
    time: str
    files: tuple[str, ...]
    changed: tuple[str, ...]


def of_study(path: pathlib.Path, study: Mapping[str, Any], root: pathlib.Path = ROOT) -> Registration:
    """Returns the registration of a study file with all files of `configs` that it is made of.

    These are the study file, its configurations and recipes, and what they import of `configs`. Files beyond `root` are
    in no commit of it, and are left out; without any other there is no registration.

    Args:
      path: of the study file.
      study: what it holds.
      root: of the repository.

    Raises:
      UserError: there is a repository, and git can't read it.
    """
    recipes = [arm["recipe"].partition(":")[0] for arm in study["arms"] if arm.get("recipe")]
    configs = [study["config"], *(one["config"] for one in study["settings"] if "config" in one)]
    found = sorted(_with_imports(pathlib.Path(one).resolve() for one in (path, *configs, *recipes)))
    root = root.resolve()
    if path.resolve() not in found or root not in path.resolve().parents or not (root / ".git").exists():
        return Registration("", "", (), ())
    inside = tuple(one.relative_to(root).as_posix() for one in found if root in one.parents)
    commit = time = ""
    if git(root, "rev-list", "--max-count=1", "--all"):  # else there is no commit yet
        said = git(root, "log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%S+00:00", "--format=%h %cd", "--", *inside)
        commit, _, time = said.partition(" ")
    status = git(root, "status", "--porcelain", "--untracked-files=all", "--", *inside)
    tracked = set(git(root, "ls-files", "--", *inside).splitlines())  # status is silent on what is ignored
    changed = {line[3:] for line in status.splitlines()} | (set(inside) - tracked)
    return Registration(commit, time, inside, tuple(sorted(changed)))


@functools.cache
def code(root: pathlib.Path = ROOT) -> str:
    """Returns the commit of the code that runs, with `+` if tracked files differ from it, as when it is first asked.

    Files of configs/results are left out: the launcher writes them itself. Empty where there is no repository, and
    where git can't read it, as sweeps run there too; `of_study` refuses that.
    """
    if not (root / ".git").exists():
        return ""
    try:
        status = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)configs/results")
        return git(root, "rev-parse", "--short", "HEAD") + "+" * bool(status)
    except UserError:
        return ""


def _with_imports(files: Iterable[pathlib.Path]) -> set[pathlib.Path]:
    """Returns files with all that they import from a package `configs`, and these from there, and so on."""
    found: set[pathlib.Path] = set()
    left = list(files)
    while left:
        path = left.pop()
        if path not in found and path.is_file():
            found.add(path)
            left += _imports(path)
    return found


def _imports(path: pathlib.Path) -> Iterator[pathlib.Path]:
    folders = [parent for parent in path.parents if parent.name == "configs"][:1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        elif isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        for name in names:
            if name.startswith("configs."):
                for folder in (*folders, ROOT / "configs"):
                    yield folder.joinpath(*name.split(".")[1:]).with_suffix(".py")


def git(root: pathlib.Path, *arguments: str) -> str:
    """Returns what git says of a repository, of paths as they are, of times in UTC.

    Raises:
      UserError: there is no git, or it fails.
    """
    command = ["git", "-C", str(root), "-c", "core.quotePath=off", *arguments]
    environment = os.environ | {"TZ": "UTC", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise UserError(
            f"git {arguments[0]} fails in {root} ({said[-1] if said else error}); a study is registered by a commit: "
            "mend the repository, or run a copy without its .git."
        ) from error
    return done.stdout.rstrip("\n")
