"""Prepares data sets: reads files that you have and writes them as TensorFlow Datasets in ArrayRecord.

    python -m cgrpo_jax.data prepare gsm8k --source=train=gsm8k_train.jsonl,test=gsm8k_test.jsonl
    python -m cgrpo_jax.data prepare mine --format=jsonl --source=mine.jsonl --question_key=q --answer_key=a

A file is JSON lines, JSON, CSV or parquet, also gzipped, or a folder of them. A prepared set knows its columns and
graders: train on it with --config.data.kind=tfds --config.data.train=gsm8k. Rows without a gold answer, or with one
that the grader can't read, are an error, or left out with --drop_unreadable; rows of MBPP and HumanEval whose own
solution fails their tests likewise, with --drop_unsolved. Formats, what they hold, and where their files are published:

"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import dataclasses
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import jax

from cgrpo_jax.datasets import array_record, formats
from cgrpo_jax.datasets.prepare import prepare
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rewards import user_modules
from cgrpo_jax.runs import cli
from cgrpo_jax.runtime import local_copies, places

__doc__ = f"""{__doc__}{formats.describe()}
  jsonl, parquet: any other file of that kind; the columns are named by --question_key, --answer_key, ...
"""

FLAGS = {
    "source": cli.Flag("the file to read, or one for each split: train=FILE,test=FILE"),
    "out": cli.Flag(
        "folder of data sets, also gs:// (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)",
        is_path=True,
        in_bucket=True,
    ),
    "format": cli.Flag("format of the file; by default the one that is called like the data set"),
    "grader": cli.Flag("kind of grader of the answers; by default the format's, of jsonl and parquet the run's"),
    "question_key": cli.Flag('of jsonl and parquet: column of the question, "Body,Question" for several'),
    "answer_key": cli.Flag("of jsonl and parquet: column of the gold answer"),
    "solution_key": cli.Flag("of jsonl and parquet: column of a worked solution, if there is one"),
    "answer_pattern": cli.Flag(
        "of jsonl and parquet: regular expression whose first group, in its column, is the answer"
    ),
    "drop_unreadable": cli.Flag(
        "leave rows out whose gold answer is missing or can't be read, or whose text is damaged",
        kind=bool,
        default=False,
    ),
    "drop_unsolved": cli.Flag("leave rows out whose own solution fails their tests", kind=bool, default=False),
    "modules": cli.Flag("modules of your own that programs may import: lib/hydro.py,lib/pumps, files or folders"),
}
# What JSON lines and parquet files are read with where nothing is said.
_KEYS = {"question_key": "question", "answer_key": "answer", "solution_key": None, "answer_pattern": None}


def main(
    command: str,
    name: str,
    source: str,
    out: str | None,
    format: str | None,
    grader: str | None,
    question_key: str | None,
    answer_key: str | None,
    solution_key: str | None,
    answer_pattern: str | None,
    drop_unreadable: bool,
    drop_unsolved: bool,
    modules: str | None,
) -> None:
    """Prepares one data set."""
    jax.config.update("jax_platforms", "cpu")  # reading files needs no accelerator, and takes none from a run
    if command != "prepare":
        raise UserError(f"{command!r} is unknown; write: prepare {name} --source=FILE.")
    given = {"question_key": question_key, "answer_key": answer_key}
    given |= {"solution_key": solution_key, "answer_pattern": answer_pattern}
    one = _format(name, format or name, {key: value for key, value in given.items() if value})
    if grader is not None:
        grader_lib.check_kind(grader)
        one = dataclasses.replace(one, grader=grader)
    folder = places.place(out) if out else array_record.default_folder()
    found = prepare(
        name, one, _sources(source, one.splits), folder,
        format_name=format or name, override=grader is not None, drop_unreadable=drop_unreadable,
        drop_unsolved=drop_unsolved,
        modules=user_modules.load(
            [local_copies.local(path) for path in (modules or "").split(",") if path], numpy=True
        ),
    )  # fmt: skip
    for split, what in found["splits"].items():
        left = "".join(f"; {number} left out: {reason}" for reason, number in what["left_out"].items())
        sys.stdout.write(f"{name}, split {split}: {what['rows']} rows{left}\n")
    graders = ", ".join(f"{kind or 'as the run says'} ({count})" for kind, count in found["graders"].items())
    where = f" --config.data.tfds_dir={out}" if out else ""
    use = "train" if "train" in found["splits"] else "eval"
    sys.stdout.write(f"graders: {graders}\nwrote {folder / name}; it is used with\n")
    sys.stdout.write(f"  --config.data.kind=tfds --config.data.{use}={name}{where}\n")


def _format(name: str, format_name: str, keys: Mapping[str, str]) -> formats.Format:
    """Returns how rows are read: by a format of the table, or with the columns that are named."""
    if format_name in formats.GENERIC:
        return formats.Format(
            about=f"Questions and answers from {format_name} files.",
            get="",
            grader="",
            splits=("train", "test", "validation"),
            convert=formats.generic(**{**_KEYS, **keys}),
        )
    if format_name not in formats.FORMATS:
        known = ", ".join([*formats.FORMATS, *formats.GENERIC])
        raise UserError(f"format {format_name!r} of data set {name!r} is unknown; give --format, one of {known}.")
    if keys:
        flags = ", ".join(f"--{key}" for key in keys)
        raise UserError(f"format {format_name} knows its columns; leave {flags} out, or use --format=jsonl or parquet.")
    return formats.FORMATS[format_name]


def _sources(text: str, splits: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns the file of each split; one alone is of the split that its name says, or of the format's first."""
    named = re.findall(r"(?:^|,)(\w+)=([^,]+)", text)
    if not named:
        path = local_copies.local(text)
        said = [split for split in splits if split in path.name.lower()]
        return {said[0] if len(said) == 1 else splits[0]: path}
    if len({split for split, _ in named}) != text.count("=") or text.count(",") != len(named) - 1:
        raise UserError(f"--source={text} is not clear; write --source=FILE, or --source=train=FILE,test=FILE.")
    return {split: local_copies.local(path) for split, path in named}


if __name__ == "__main__":
    cli.run(main, require=("source",), flags=FLAGS, arguments=("command", "name"))
