"""Examples: rows of a source as they are stored, each read by its format, and what keeps a row from being one."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cgrpo_jax.datasets import cells, tables
from cgrpo_jax.datasets.cells import DamagedText
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Turn


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as it is stored.

    Attributes:
      question: what the policy sees.
      answer: the gold answer, for the grader; of kind `code` it is JSON.
      solution: a worked solution; empty if there is none.
      columns: the row's other columns that a user's own reward function may want.
      grader: kind of grader; empty: the format's, and where that is empty the run's.
      turns: of a chat, what comes before the question.
    """

    question: str
    answer: str
    solution: str = ""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grader: str = ""
    turns: tuple[Turn, ...] = ()


class NoAnswer(UserError):
    """A row has no gold answer: its column is missing or empty, or nothing in it is an answer."""


# What keeps a row from being used: it is an error, or left out.
Unusable = NoAnswer | DamagedText

# (row, where it is, split) -> the example, or why the row is left out.
Convert = Callable[[Mapping[str, Any], str, str], Example | str]


@contextlib.contextmanager
def gold_answer() -> Iterator[None]:
    """Within the block the gold answer is read: what is wrong there is raised as `NoAnswer`."""
    try:
        yield
    except UserError as error:
        raise NoAnswer(str(error)) from error


def examples(convert: Convert, path: str | pathlib.Path, split: str) -> Iterator[tuple[str, Example | str | Unusable]]:
    """Yields where each row of a source is, and its example, why it is left out, or what keeps it from being used.

    Raises:
      UserError: a row that can't be read for another reason: the file, the row and the column.
    """
    for where, row in tables.rows(path):
        try:
            example = convert(row, where, split)
            if isinstance(example, Example):
                _check(example, where)
        except (NoAnswer, DamagedText) as error:
            example = error
        except RecursionError as error:
            raise UserError(f"{where}: a column is {error}; leave it out, or flatten it.") from error
        yield where, example


def _check(example: Example, where: str) -> None:
    """Checks what an example is made of, from however many columns it came."""
    with gold_answer():
        tables.finite(cells.check_text(example.answer, f"{where}: the gold answer"), where)
    for what, text in (("the question", example.question), ("the solution", example.solution)):
        cells.check_text(text, f"{where}: {what}")
