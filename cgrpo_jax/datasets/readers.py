"""Problems from JSON lines, parquet, or TensorFlow Datasets (ArrayRecord), with column names by configuration."""

import pathlib
from collections.abc import Callable, Mapping

from cgrpo_jax.datasets import array_record, tables
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem


def read_jsonl(
    path: str | pathlib.Path,
    *,
    question_key: str,
    answer_key: str,
    solution_key: str | None = None,
    answer_pattern: str | None = None,
    source: str = "",
) -> list[Problem]:
    """Reads one problem a line from a file of JSON objects; blank lines are passed over.

    Example:
      read_jsonl("train.jsonl", question_key="question", answer_key="answer", answer_pattern=r"####\\s*(.+)")

    Args:
      path: the file.
      question_key: column of the question; several columns, "Body,Question", are joined by a space. Of a chat it is
        the user's last turn, what comes before becomes the problem's `turns`, and what follows is left out.
      answer_key: column (or columns) of the gold answer.
      solution_key: column (or columns) of a worked solution, if there is one.
      answer_pattern: regular expression whose group 1, in the answer column, is the answer.
      source: what the problems' `source` says.

    Raises:
      UserError: no such file, a line that is no JSON object, a missing column, an answer without the pattern, no rows.
    """
    read = _reader(question_key, answer_key, solution_key, answer_pattern, source)
    return _read(tables.jsonl_rows(path), read, f"data file '{path}'")


def read_parquet(
    path: str | pathlib.Path,
    *,
    question_key: str,
    answer_key: str,
    solution_key: str | None = None,
    answer_pattern: str | None = None,
    source: str = "",
) -> list[Problem]:
    """Reads one problem a row from a parquet file; arguments and errors of `read_jsonl`."""
    read = _reader(question_key, answer_key, solution_key, answer_pattern, source)
    return _read(tables.parquet_rows(path), read, f"data file '{path}'")


def read_tfds(
    name: str,
    *,
    split: str,
    data_dir: str | pathlib.Path | None = None,
    question_key: str,
    answer_key: str,
    solution_key: str | None = None,
    answer_pattern: str | None = None,
    source: str = "",
) -> list[Problem]:
    """Reads a prepared TensorFlow Datasets data set through its random-access source, without importing TensorFlow.

    A set that `python -m cgrpo_jax.data prepare` has written knows its own columns and graders: of the columns here
    only whether there is a `solution_key` counts, without which solutions, often the largest column, are not kept.

    Args:
      name: data set, with config and version if needed, "gsm8k" or "my_set/small:1.0.0".
      split: "train", "test[:100]".
      data_dir: where the data set was prepared; None is TensorFlow Datasets' own default.
      question_key, answer_key, solution_key, answer_pattern, source: as for `read_jsonl`.

    Raises:
      UserError: the data set or split is not there, or not in ArrayRecord format; errors of rows as in `read_jsonl`.
    """
    data = array_record.open_source(name, split=split, data_dir=data_dir)
    rows = (
        (f"{name}, split {split}, row {number}", row) for number, row in enumerate(array_record.rows(data), start=1)
    )
    if array_record.description(data) is None:
        read = _reader(question_key, answer_key, solution_key, answer_pattern, source)
    else:
        read = _prepared_reader(source, with_solution=bool(solution_key))
    return _read(rows, read, f"data set '{name}', split '{split}'")


def _read(rows: tables.Rows, read: Callable[[Mapping, int, str], Problem], what: str) -> list[Problem]:
    problems = [read(row, index, where) for index, (where, row) in enumerate(rows)]
    if not problems:
        raise UserError(f"{what} has no rows; it needs at least one.")
    return problems


def _prepared_reader(source: str, *, with_solution: bool) -> Callable[[Mapping, int, str], Problem]:
    def read(row, index, where):
        example = array_record.decode(row, where)
        return Problem(
            index,
            example.question,
            example.answer,
            (example.solution or None) if with_solution else None,
            source=source,
            grader=example.grader,
            columns=example.columns,
            turns=example.turns,
        )

    return read


def _reader(question_key, answer_key, solution_key, answer_pattern, source) -> Callable[[Mapping, int, str], Problem]:
    """Returns the function `(row, index, where) -> Problem`."""
    pattern = tables.answer_pattern(answer_pattern)
    asked = {key.strip() for key in question_key.split(",")}

    def read(row, index, where):
        gold = tables.solution_column(row, answer_key, where, named_by="data.answer_key")
        answer, solution = tables.answer_in(gold, pattern, where), None
        if solution_key is not None:
            solution = tables.solution_column(row, solution_key, where, named_by="data.solution_key")
        others = tables.others(row, asked, where)
        question = tables.column(row, question_key, where, named_by="data.question_key")
        turns = tables.turns(row, question_key, where)
        return Problem(index, question, answer, solution, source=source, columns=others, turns=turns)

    return read
