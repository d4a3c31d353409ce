"""What a run reads besides its configuration, as hashes: by them a run that resumes sees that a file has changed.

fingerprints.of_all("math", {"training": problems}) -> {"the training questions": "e3b0c44298fc1c14"}
"""

import hashlib
import importlib.machinery
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from cgrpo_jax.datasets import cells
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import user_functions

TASK = "the task"  # a made-up one, with its version, among what `of_all` returns
_FILE_OF = "the file of "
_WHOLE_BYTES = 64 * 2**20  # of a file that is read whole; of a larger one, such as one of weights, parts are
_PARTS, _PART_BYTES = 32, 4096


def of_all(
    grader: str, problems: Mapping[str, Sequence[Problem]], *, also: Sequence[str] = (), task: str | None = None
) -> dict[str, str]:
    """Returns the hashes of problems, by what is said of them, and of the files of all functions that grade them.

    Args:
      grader: of the problems that name none.
      problems: by kind, such as "training"; a kind of which there are none is left out.
      also: further kinds of graders, of all problems.
      task: that makes them up, with its version; it is under `TASK`. None for problems that are read.
    """
    hashes = {f"the {kind} questions": of_problems(some) for kind, some in problems.items() if some}
    hashes |= {TASK: task} if task else {}
    kinds = {problem.grader or grader for some in problems.values() for problem in some} | set(also)
    return hashes | {f"{_FILE_OF}{kind}": of_function(kind) for kind in sorted(kinds) if user_functions.is_name(kind)}


def changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Returns the names of what is not what it was, what is new and what is gone included."""
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def is_function(name: str) -> bool:
    """Is this the name of a function's file, which its user may have changed, not of problems?"""
    return name.startswith(_FILE_OF)


def of_problems(problems: Iterable[Problem]) -> str:
    """Returns 16 hexadecimal digits of problems in their order: all that training, or a grader, reads of them."""
    whole = hashlib.sha256()
    for one in problems:
        read = [one.source, one.grader, one.question, one.answer, one.solution, cells.plain(one.columns)]
        read += [one.turns] if one.turns else []
        whole.update(json.dumps(read, sort_keys=True).encode() + b"\n")
    return whole.hexdigest()[:16]


def of_function(kind: str) -> str:
    """Returns 16 hexadecimal digits of the file that holds a user's function; "" where it has none.

    Of that file alone: what it imports in its turn is not looked at. A module is found without being imported.

    Args:
      kind: "FILE.py:name" or "package.module:name".

    Raises:
      UserError: there is no such file.
    """
    where, _, _ = user_functions.resolved(kind).rpartition(":")
    path = where if where.endswith(".py") else _source(where)
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16] if path else ""


def of_file(path: pathlib.Path) -> str:
    """Returns a file's size and 8 hexadecimal digits of what it holds; a large one is read at 32 places alone."""
    size = path.stat().st_size
    whole = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            whole.update(file.read())
        else:
            for part in range(_PARTS):
                file.seek((size - _PART_BYTES) * part // (_PARTS - 1))
                whole.update(file.read(_PART_BYTES))
    return f"{size} bytes ({whole.hexdigest()[:8]})"


def of_folder(folder: pathlib.Path) -> str:
    """Returns how many files a folder and those in it hold, and 8 hexadecimal digits of their names and `of_file`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder)} {of_file(path)}\n".encode())
    return f"{len(files)} files ({whole.hexdigest()[:8]})"


def _source(module: str) -> str | None:
    """Returns the file of a module; None of one that is not found, or has none."""
    first, *rest = module.split(".")
    found = importlib.util.find_spec(first)  # which imports the packages around a module; the first has none
    for name in rest:
        if found is None or found.submodule_search_locations is None:
            return None
        name = f"{found.name}.{name}"  # noqa: PLW2901
        found = importlib.machinery.PathFinder.find_spec(name, found.submodule_search_locations)
    return found.origin if found and found.has_location else None
