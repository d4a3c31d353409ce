"""Prepares data sets: reads files that you have and writes them as TensorFlow Datasets in ArrayRecord.

    python -m cgrpo_jax.data prepare gsm8k --source=train=gsm8k_train.jsonl,test=gsm8k_test.jsonl
    python -m cgrpo_jax.data prepare mine --format=jsonl --source=mine.jsonl --question_key=q --answer_key=a

A file is JSON lines, JSON, CSV or parquet, also gzipped, or a folder of them. A prepared set knows its columns and
graders: train on it with --config.data.kind=tfds --config.data.train=gsm8k. Rows without a gold answer, or with one
that the grader can't read, are an error, or left out with --drop_unreadable; rows of MBPP and HumanEval whose own
solution fails their tests likewise, with --drop_unsolved. Formats, what they hold, and where their files are published:

"""

import collections
import dataclasses
import functools
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping

import jax

from cgrpo_jax.datasets import array_record, formats, tables
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.runs import cli
from cgrpo_jax.runtime import console, files

__doc__ += f"""{formats.describe()}
  jsonl, parquet: any other file of that kind; the columns are named by --question_key, --answer_key, ...
"""

FLAGS = {
    "source": cli.Flag("the file to read, or one for each split: train=FILE,test=FILE"),
    "out": cli.Flag("folder of data sets (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)"),
    "format": cli.Flag("format of the file; by default the one that is called like the data set"),
    "grader": cli.Flag("kind of grader of the answers; by default the format's, of jsonl and parquet the run's"),
    "question_key": cli.Flag('of jsonl and parquet: column of the question, "Body,Question" for several'),
    "answer_key": cli.Flag("of jsonl and parquet: column of the gold answer"),
    "solution_key": cli.Flag("of jsonl and parquet: column of a worked solution, if there is one"),
    "answer_pattern": cli.Flag(
        "of jsonl and parquet: regular expression whose first group, in its column, is the answer"
    ),
    "drop_unreadable": cli.Flag(
        "leave rows out whose gold answer is missing or can't be read", kind=bool, default=False
    ),
    "drop_unsolved": cli.Flag("leave rows out whose own solution fails their tests", kind=bool, default=False),
}
_SHOWN = 5  # rows named in an error
# Why rows are left out.
_MISSING, _UNREADABLE, _UNSOLVED = "no gold answer", "gold answer can't be read", "its own solution fails its tests"
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
    folder = pathlib.Path(out) if out else array_record.default_folder()
    found = prepare(
        name, one, _sources(source, one.splits), folder,
        format_name=format or name, override=grader is not None, drop_unreadable=drop_unreadable,
        drop_unsolved=drop_unsolved,
    )  # fmt: skip
    for split, what in found["splits"].items():
        left = "".join(f"; {number} left out: {reason}" for reason, number in what["left_out"].items())
        sys.stdout.write(f"{name}, split {split}: {what['rows']} rows{left}\n")
    graders = ", ".join(f"{kind or 'as the run says'} ({count})" for kind, count in found["graders"].items())
    where = f" --config.data.tfds_dir={out}" if out else ""
    use = "train" if "train" in found["splits"] else "eval"
    sys.stdout.write(f"graders: {graders}\nwrote {folder / name}; it is used with\n")
    sys.stdout.write(f"  --config.data.kind=tfds --config.data.{use}={name}{where}\n")


def prepare(
    name: str,
    one: formats.Format,
    sources: Mapping[str, pathlib.Path],
    out: pathlib.Path,
    *,
    format_name: str,
    override: bool = False,
    drop_unreadable: bool = False,
    drop_unsolved: bool = False,
) -> dict:
    """Writes a data set, or nothing.

    Args:
      name: of the data set.
      one: how its rows are read.
      sources: the file, or folder of files, of each split.
      out: folder of data sets; the set becomes a folder in it, which must not be there yet.
      format_name: what its description calls the format.
      override: all rows have the format's grader, whatever it says of single ones.
      drop_unreadable: leave rows out whose gold answer is missing or can't be read; otherwise they are an error.
      drop_unsolved: leave rows out whose own solution fails their tests, where the format has such solutions; otherwise
        they are an error.

    Returns:
      The description that the set keeps of itself (see `array_record.description`).

    Raises:
      UserError: a file or a row can't be read, a row's own solution can't be run, or `out` has such a set or can't be
        written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"data set name {name!r} can't be used; use lower-case letters, digits and _, such as my_set.")
    if os.path.lexists(out / name):  # said at once, not after an hour of reading
        raise UserError(f"{out / name} exists already; give another --out, or remove it.")
    for path in sources.values():
        tables.check_exists(path)

    def rows(split: str) -> _Rows:
        for where, example in formats.examples(one.convert, sources[split], split):
            if isinstance(example, formats.Example):
                kind = one.grader if override else example.grader or one.grader
                yield where, dataclasses.replace(example, grader=kind)
            else:
                yield where, example

    surveys = {split: _survey(rows(split), f"checking {path}") for split, path in sources.items()}
    missing = {split: survey.missing for split, survey in surveys.items()}
    if not drop_unreadable:
        _refuse(missing, "rows have no gold answer", "mend these rows", "drop_unreadable")
    unreadable = {split: _unreadable(survey) for split, survey in surveys.items()}
    if not drop_unreadable:
        _refuse(unreadable, "gold answers can't be read", "mend these rows, choose another --grader", "drop_unreadable")
    solved = {split: _solutions(rows(split), unreadable[split]) if one.solved else [] for split in sources}
    unsolved = _unsolved(solved)
    if not drop_unsolved:
        _refuse(unsolved, "rows' own solutions fail their tests", "mend these rows", "drop_unsolved")
    bad = {split: unreadable[split] | unsolved[split] for split in sources}
    left_out = {_MISSING: missing, _UNREADABLE: unreadable, _UNSOLVED: unsolved}
    description = _describe(format_name, sources, surveys, left_out)

    total = sum(survey.read for survey in surveys.values())
    with (
        files.new_folder(out / name) as folder,
        files.checked(out / name),
        console.progress_bar(total=total, desc=f"writing {name}", unit=" rows") as bar,
    ):

        def kept(split: str) -> Iterator[formats.Example]:
            for where, example in rows(split):
                bar.update()
                if isinstance(example, formats.Example) and where not in bad[split]:
                    yield example

        splits = {split: functools.partial(kept, split) for split in sources}
        array_record.build(folder, name, splits=splits, about=one.about, description=description)
    return description


_Rows = Iterator[tuple[str, formats.Example | str | formats.NoAnswer]]  # with where they stand


@dataclasses.dataclass
class _Survey:
    """A source, read once.

    Attributes:
      read: rows.
      left_out: how many of them for which reason of their format's.
      missing: where those without a gold answer stand, and what is said of them.
      answers: of each grader the gold answers, with where they stand.
    """

    read: int
    left_out: collections.Counter
    missing: dict[str, str]
    answers: dict[str, list[tuple[str, str]]]


def _survey(rows: _Rows, desc: str) -> _Survey:
    survey = _Survey(0, collections.Counter(), {}, collections.defaultdict(list))
    with console.progress_bar(rows, desc=desc, unit=" rows") as bar:
        for where, example in bar:
            survey.read += 1
            if isinstance(example, str):
                survey.left_out[example] += 1
            elif isinstance(example, formats.NoAnswer):
                survey.missing[where] = str(example).removesuffix(".")
            else:
                survey.answers[example.grader].append((where, example.answer))
    return survey


def _unreadable(survey: _Survey) -> dict[str, str]:
    """Returns where gold answers stand that their grader can't read, and what is said of them."""
    bad = {}
    for kind, rows in survey.answers.items():
        if kind not in grader_lib.KINDS:  # the run's, or a user's own function, which alone knows what it reads
            continue
        with grader_lib.Grader(kind, num_workers=os.cpu_count() or 1) as grader:
            readable = grader.readable([answer for _, answer in rows])
            for (where, answer), ok in zip(rows, readable, strict=True):
                if not ok:  # of those that are named, say why
                    told = (
                        grader_lib.said_of_unreadable(grader, answer, kind) if len(bad) < _SHOWN else f"{answer[:80]!r}"
                    )
                    bad[where] = f"{where}: {told}, by grader '{kind}'"
    return bad


def _solutions(rows: _Rows, unreadable: Mapping[str, str]) -> list:
    """Returns where the rows stand that have a program as their solution, and their examples."""
    return [
        (where, example)
        for where, example in rows
        if isinstance(example, formats.Example) and where not in unreadable
        if example.solution and example.grader == "code"
    ]


def _unsolved(solved: Mapping[str, list[tuple[str, formats.Example]]]) -> dict[str, dict[str, str]]:
    """Returns for each split where rows stand whose own solution gets no reward, and what is said of them.

    Each has the time that training gives a response by default: a row that needs more can't be solved there.

    Raises:
      UserError: a solution could not be run, which says nothing of it.
    """
    found = {split: {} for split in solved}
    total = sum(map(len, solved.values()))
    if not total:
        return found
    with (
        grader_lib.Grader("code", num_workers=os.cpu_count() or 1) as grader,
        console.progress_bar(total=total, desc="running the rows' own solutions", unit=" rows") as bar,
    ):
        for split, rows in solved.items():
            pending = [grader.submit(example.solution, example.answer) for _, example in rows]
            for (where, _), one in zip(rows, pending, strict=True):
                grade = one.result()
                if grade.failed:
                    raise UserError(
                        f"{where}: its own solution could not be run ({' '.join(grade.reason.split())}); nothing was "
                        "written. Mend what keeps programs from running on this machine, and give the same command."
                    )
                if not grade.score:
                    found[split][where] = f"{where}: {grade.reason}"
                bar.update()
    return found


def _refuse(bad: Mapping[str, Mapping[str, str]], what: str, do: str, flag: str) -> None:
    said = [text for found in bad.values() for text in found.values()]
    if said:
        shown = "; ".join(" ".join(text.split()) for text in said[:_SHOWN])
        more = "; ..." if len(said) > _SHOWN else ""
        raise UserError(f"{len(said)} {what} ({shown}{more}); {do}, or leave them out with --{flag}.")


def _describe(format_name, sources, surveys, reasons) -> dict:
    splits, graders = {}, collections.Counter()
    for split, path in sources.items():
        survey = surveys[split]
        bad = set().union(*(found[split] for found in reasons.values()))
        left_out = dict(survey.left_out) | {why: len(found[split]) for why, found in reasons.items() if found[split]}
        number = survey.read - sum(left_out.values())
        if not number:
            left = "; ".join(f"{count} left out: {why}" for why, count in left_out.items())
            example = next((text for found in reasons.values() for text in found[split].values()), "")
            left += f", such as {example}" if example else ""
            left = f" ({left})" if left else ""
            raise UserError(f"data file '{path}' has no rows for split {split}{left}; it needs at least one.")
        for kind, answers in survey.answers.items():
            graders[kind] += sum(where not in bad for where, _ in answers)
        splits[split] = {"rows": number, "left_out": left_out, "source": path.name, "sha256": array_record.digest(path)}
    return {"format": format_name, "graders": dict(+graders), "splits": splits}


# --- the command line ---------------------------------------------------------------------------------------------


def _format(name: str, format_name: str, keys: Mapping[str, str]) -> formats.Format:
    """Returns how rows are read: by a format of the table, or with the columns that are named."""
    if format_name in formats.GENERIC:
        return formats.Format(
            about=f"Questions and answers from {format_name} files.",
            get="",
            grader="",
            splits=("train", "test", "validation"),
            convert=formats.generic(**_KEYS | keys),
        )
    if format_name not in formats.FORMATS:
        known = ", ".join([*formats.FORMATS, *formats.GENERIC])
        raise UserError(f"format {format_name!r} of data set {name!r} is unknown; give --format, one of {known}.")
    if keys:
        flags = ", ".join(f"--{key}" for key in keys)
        raise UserError(f"format {format_name} knows its columns; leave {flags} out, or use --format=jsonl or parquet.")
    return formats.FORMATS[format_name]


def _sources(text: str, splits: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Returns the file of each split; one alone is of the split that its name tells, or of the format's first."""
    named = re.findall(r"(?:^|,)(\w+)=([^,]+)", text)
    if not named:
        path = pathlib.Path(text)
        told = [split for split in splits if split in path.name.lower()]
        return {told[0] if len(told) == 1 else splits[0]: path}
    if len({split for split, _ in named}) != text.count("=") or text.count(",") != len(named) - 1:
        raise UserError(f"--source={text} is not clear; write --source=FILE, or --source=train=FILE,test=FILE.")
    return {split: pathlib.Path(path) for split, path in named}


if __name__ == "__main__":
    cli.run(main, require=("source",), flags=FLAGS, arguments=("command", "name"))
