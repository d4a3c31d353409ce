"""Questions out of rollouts that were written before: each with its responses, and what was said of these.

for path in files("runs/a/collected"):
    for one in questions(path): ...      # one.problem, one.responses, one.critiques
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

from cgrpo_jax.datasets import fingerprints, rollouts
from cgrpo_jax.datasets.rollouts import Row
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem, Rollout, Stage
from cgrpo_jax.runtime import local_copies, places


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with what is there of it.

    Attributes:
      problem: what is asked.
      responses: to it, with who rewarded them; empty where it has not been asked yet.
      critiques: of these, without the attempts that were rejected.
    """

    problem: Problem
    responses: Sequence[Row] = ()
    critiques: Sequence[Rollout] = ()


def files(where: str | pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of rollouts that a path names: one, those of a folder, or those of a run's folder.

    Raises:
      UserError: there are none.
    """
    path = places.place(where)
    try:
        if path.is_file():
            return [path]
        found = sorted(path.glob(rollouts.NAMES)) or sorted((path / "rollouts").glob(rollouts.NAMES))
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); check who may read it.") from error
    if not found:
        raise UserError(
            f"{path} holds no rollouts ({rollouts.NAMES}); give a folder that `cgrpo collect` has written, or a run's."
        )
    return found


def problems(path: str | pathlib.Path) -> list[Problem]:
    """Returns the questions of a file in the order of `questions`, without reading its texts.

    Raises:
      UserError: as `rollouts.read`.
    """
    found: dict[int, Problem] = {}
    for one in rollouts.read_columns(path, ("question_index", *rollouts.PROBLEM_COLUMNS)).to_pylist():
        found.setdefault(one["question_index"], rollouts.problem_of(one))
    return list(found.values())


def has_critiques(path: str | pathlib.Path) -> bool:
    """Returns whether a file holds critiques; errors as of `problems`."""
    return Stage.CRITIQUE.name.lower() in rollouts.read_columns(path, ("stage",))["stage"].to_pylist()


def questions(path: str | pathlib.Path) -> list[Question]:
    """Returns the questions of a file, in the order in which it first has them.

    Raises:
      UserError: as `rollouts.read`; or a question has no response.
    """
    responses: dict[int, list[Row]] = {}
    critiques: dict[int, list[Rollout]] = {}
    asked: dict[int, Problem] = {}
    for row in rollouts.read(path):
        number, of = row.rollout.index.question, row.rollout.parent
        asked.setdefault(number, row.problem)
        if row.rollout.stage == Stage.RESPONSE:
            responses.setdefault(number, []).append(row)
        elif row.rollout.stage == Stage.CRITIQUE and of and of.stage == Stage.RESPONSE and not row.is_rejected:
            critiques.setdefault(number, []).append(row.rollout)
    for number in asked:
        if number not in responses:
            raise UserError(f"{path}: question {number} has no response; give files that hold whole questions.")
    return [Question(one, responses[number], critiques.get(number, [])) for number, one in asked.items()]


def digest(paths: Sequence[pathlib.Path]) -> str:
    """Returns how many files there are, and 8 hexadecimal digits of their names and of what they hold.

    Raises:
      UserError: one can't be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        try:
            whole.update(f"{path.name} {fingerprints.of_file(local_copies.local(path))}\n".encode())
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror or error}); check who may read it.") from error
    return f"{len(paths)} files ({whole.hexdigest()[:8]})"
