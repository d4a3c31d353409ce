"""Which checkpoints a folder holds, by their steps, and which of them is meant: a number, the newest or the best."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files, places
from cgrpo_jax.runtime.digests import Damaged
from cgrpo_jax.training import checkpoint_seal

COMMITTED = "commit_success.txt"  # by which Orbax knows that all of a checkpoint in a bucket is there

# Which checkpoint: by its number, the best one of a run that has kept it, or the newest.
Step = int | Literal["best"] | None


@dataclasses.dataclass
class Kept:
    """Preserves the checkpoint of one step, for Orbax; None: of no step."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [one.step == self.step for one in checkpoints]


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint: Orbax takes the bare number when all of it is there."""
    return name.isascii() and name.isdecimal()


def is_whole(path: pathlib.Path) -> bool:
    """Whether a folder is a whole checkpoint. In a bucket, where nothing is renamed, Orbax's mark comes last."""
    return is_step(path.name) and (not places.is_bucket(path) or (path / COMMITTED).exists())


def commit(path: pathlib.Path) -> None:
    """Marks a checkpoint in a bucket as whole."""
    files.write_atomically(path / COMMITTED, "whole\n")


def being_written(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Returns where Orbax writes a step's checkpoint before it is whole; in a bucket it has its name from the start."""
    if places.is_bucket(folder):
        return folder / str(step)
    (found,) = folder.glob(f"{step}.orbax-checkpoint-tmp*")
    return found


def find(directory: str | pathlib.Path, step: Step) -> tuple[pathlib.Path, int, list[int]]:
    """Returns the folder of checkpoints, the step wanted, and the other steps that it has.

    Args:
      directory: folder of checkpoints, or the run's folder that holds it as `checkpoints`.
      step: which; "best" is what the newest checkpoint whose `extra` can be read calls so (`best`, with its `step`).

    Raises:
      UserError: there is no such checkpoint.
    """
    given = places.place(directory).absolute()
    folder = given / "checkpoints" if (given / "checkpoints").is_dir() else given
    if not folder.is_dir():
        raise UserError(f"checkpoint folder {given} does not exist; give a --workdir that train has written")
    there = [path for path in folder.iterdir() if is_step(path.name)]
    steps = sorted(int(path.name) for path in there if is_whole(path))
    if there and not steps:
        raise UserError(
            f"the checkpoints in {folder} have no {COMMITTED}, which is written last: their run was killed, or they "
            "were copied from a disk; of one that is whole, write an empty file of that name into its folder."
        )
    if not steps:
        raise UserError(f"{given} holds no checkpoint; give a --workdir that train has written")
    number = steps[-1] if step is None else _best(folder, steps) if step == "best" else step
    if number not in steps:
        which = f"step {number}" + (", its best one" if step == "best" else "")
        raise UserError(f"{given} has no checkpoint of {which}; it has {', '.join(map(str, steps))}")
    return folder, number, [other for other in steps if other != number]


def _best(folder: pathlib.Path, steps: list[int]) -> int:
    """Returns the step that is called the best by the newest checkpoint whose word on it can be read."""
    fault = None
    for step in reversed(steps):
        try:
            best = extra(folder, step, [other for other in steps if other != step]).get("best")
        except UserError as error:
            fault = fault or error
            continue
        if isinstance(best, dict) and isinstance(best.get("step"), int):
            return best["step"]
        raise UserError(
            f"{folder} has no best checkpoint: its run kept none (eval.keep_best); give the number of a step."
        )
    assert fault
    raise fault


def extra(folder: pathlib.Path, step: int, others: list[int]) -> dict[str, Any]:
    """Returns the JSON values of a checkpoint, besides its arrays; raises a `UserError` where it is damaged."""
    with readable(folder / str(step), others):
        return checkpoint_seal.extra(folder / str(step))


def is_of_service(folder: pathlib.Path, error: Exception) -> bool:
    """Whether a checkpoint can't be read now because its bucket can't, not because it is damaged.

    What Orbax raises is the bucket's fault, too: the digests of all that it reads were compared before.
    """
    if not places.is_bucket(folder):
        return False
    if not isinstance(error, Damaged):
        return not isinstance(error, FileNotFoundError)
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)


def check_service(folder: pathlib.Path, error: Exception) -> None:
    """Raises a `UserError` where a checkpoint can't be read because its bucket can't."""
    if is_of_service(folder, error):
        raise UserError(f"{folder} can't be read now ({first_line(error)}); start again when it can.") from error


@contextlib.contextmanager
def readable(checkpoint: pathlib.Path, others: list[int]) -> Iterator[None]:
    """Turns what Orbax raises for a damaged checkpoint, which may be anything, into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        steps = ", ".join(map(str, others)) or "none"
        raise UserError(f"checkpoint {checkpoint} can't be read ({first_line(error)}); other steps: {steps}") from error


def first_line(error: Exception) -> str:
    """Returns what an error says, short."""
    if isinstance(error, Damaged):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
