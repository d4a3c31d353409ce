"""Problems from JSON lines or TensorFlow Datasets (ArrayRecord), and the order in which training reads them."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem


def read_jsonl(
    path: str | pathlib.Path,
    *,
    question_key: str,
    answer_key: str,
    solution_key: str | None = None,
    answer_pattern: str | None = None,
) -> list[Problem]:
    """Reads one problem a line from a file of JSON objects; blank lines are passed over.

    Example:
      read_jsonl("train.jsonl", question_key="question", answer_key="answer", answer_pattern=r"####\\s*(.+)")

    Args:
      path: the file.
      question_key: column of the question; several columns, "Body,Question", are joined by a space.
      answer_key: column (or columns) of the gold answer.
      solution_key: column (or columns) of a worked solution, if there is one.
      answer_pattern: regular expression whose group 1, in the answer column, is the answer.

    Raises:
      UserError: no such file, a line that is no JSON object, a missing column, an answer without the pattern, no rows.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"data file '{path}' does not exist; check the path.")
    read = _reader(question_key, answer_key, solution_key, answer_pattern)
    problems = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON ({error.msg}); each line must be one JSON object.") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: a {type(row).__name__}; each line must be one JSON object.")
            problems.append(read(row, len(problems), where))
    return _not_empty(problems, f"data file '{path}'")


def read_tfds(
    name: str,
    *,
    split: str,
    data_dir: str | pathlib.Path | None = None,
    question_key: str,
    answer_key: str,
    solution_key: str | None = None,
    answer_pattern: str | None = None,
) -> list[Problem]:
    """Reads a prepared TensorFlow Datasets data set through its random-access source, without importing TensorFlow.

    Args:
      name: data set, with config and version if needed, "gsm8k" or "my_set/small:1.0.0".
      split: "train", "test[:100]".
      data_dir: where the data set was prepared; None is TensorFlow Datasets' own default.
      question_key, answer_key, solution_key, answer_pattern: as for `read_jsonl`.

    Raises:
      UserError: the data set or split is not there, or not in ArrayRecord format; errors of rows as in `read_jsonl`.
    """
    import tensorflow_datasets as tfds  # heavy: only who reads such data pays for it

    try:
        source = tfds.data_source(name, split=split, data_dir=None if data_dir is None else str(data_dir))
    except (
        tfds.core.DatasetNotFoundError,
        AssertionError,
        FileNotFoundError,
        NotImplementedError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data set '{name}', split '{split}' can't be opened in '{data_dir or 'default directory'}' ({reason}); "
            "it must have been prepared there in the array_record file format."
        ) from error
    read = _reader(question_key, answer_key, solution_key, answer_pattern)
    problems = [read(source[row], row, f"{name}, split {split}, row {row}") for row in range(len(source))]
    return _not_empty(problems, f"data set '{name}', split '{split}'")


def _not_empty(problems, what):
    if not problems:
        raise UserError(f"{what} has no rows; it needs at least one.")
    return problems


def _reader(question_key, answer_key, solution_key, answer_pattern):
    """Returns the function `(row, index, where) -> Problem`."""
    try:
        pattern = None if answer_pattern is None else re.compile(answer_pattern)
    except re.error as error:
        raise UserError(f"answer_pattern {answer_pattern!r} is no regular expression ({error}).") from error
    if pattern is not None and pattern.groups < 1:
        raise UserError(f"answer_pattern {answer_pattern!r} has no group; put the answer in parentheses.")

    def read(row, index, where):
        answer = _column(row, answer_key, where)
        if pattern is not None:
            match = pattern.search(answer)
            if match is None or match.group(1) is None:
                raise UserError(f"{where}: answer_pattern {answer_pattern!r} is not found in {answer[-80:]!r}.")
            answer = match.group(1)
        solution = None if solution_key is None else _column(row, solution_key, where)
        return Problem(index, _column(row, question_key, where), answer.strip(), solution)

    return read


def _column(row: Mapping, keys: str, where: str) -> str:
    """The text of a column, or of several ("Body,Question") joined by a space."""
    parts = []
    for key in keys.split(","):
        value = row.get(key.strip())
        if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 145.0, as JSON writers put it, is the answer 145
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            found = f"is {value!r:.40}" if key.strip() in row else f"is missing (there are: {', '.join(row)})"
            raise UserError(f"{where}: column '{key.strip()}' {found}; it must hold text or a number.")
        parts.append(str(value).strip())
    return " ".join(parts)


def batch_indices(*, seed: int, step: int, batch_size: int, num_problems: int) -> list[int]:
    """Which problems step `step` (from 0) reads: a pure function of its arguments, so a resumed run reads the same.

    Steps read on in an endless stream of epochs, each its own permutation from (seed, epoch). A batch may span epochs.

    Example:
      >>> sorted(batch_indices(seed=0, step=0, batch_size=2, num_problems=4)
      ...        + batch_indices(seed=0, step=1, batch_size=2, num_problems=4))
      [0, 1, 2, 3]
    """
    if seed < 0 or step < 0 or batch_size < 1 or num_problems < 1:
        raise ValueError(
            f"seed {seed} and step {step} must be at least 0, "
            f"batch_size {batch_size} and num_problems {num_problems} at least 1."
        )
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = {position // num_problems for position in positions}
    order = {epoch: np.random.default_rng([seed, epoch]).permutation(num_problems) for epoch in epochs}
    return [int(order[position // num_problems][position % num_problems]) for position in positions]


def skip_or_fail_long(
    problems: Sequence[Problem], lengths: Sequence[int], *, limit: int, on_long: str
) -> tuple[list[Problem], int]:
    """Drops (and counts) the problems whose prompt is longer than the limit, or fails at the first.

    Args:
      problems: as read.
      lengths: tokens of each problem's prompt.
      limit: `max_prompt_length`, in tokens.
      on_long: "skip" or "error".

    Returns:
      The problems that fit, and the number of those that don't.

    Raises:
      UserError: unknown `on_long`; a prompt that is too long, under "error"; nothing left, under "skip".
    """
    if on_long not in ("skip", "error"):
        raise UserError(f"on_long is '{on_long}'; choose skip or error.")
    kept = []
    for problem, length in zip(problems, lengths, strict=True):
        if length <= limit:
            kept.append(problem)
        elif on_long == "error":
            raise UserError(
                f"the prompt of problem {problem.index} has {length} tokens, max_prompt_length is {limit}; raise it, "
                "or set on_long_question to skip."
            )
    if not kept:
        raise UserError(f"none of {len(problems)} prompts has at most max_prompt_length = {limit} tokens; raise it.")
    return kept, len(problems) - len(kept)
