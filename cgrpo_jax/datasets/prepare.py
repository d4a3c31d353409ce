"""What `python -m cgrpo_jax.data prepare` does: reads a source twice, checks its gold answers, and writes a data set.

The first reading surveys it: which rows have no gold answer, one that their grader can't read, or a solution of their
own that fails their tests. These are an error, or left out. The second reading writes the others.
"""

import collections
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

from cgrpo_jax.datasets import array_record, examples, formats, tables
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rewards.sandbox.modules import NONE, Modules
from cgrpo_jax.runtime import console, digests, files

_SHOWN = 5  # rows named in an error
# Why rows are left out.
_MISSING, _DAMAGED = "no gold answer", "text is damaged"
_UNREADABLE, _UNSOLVED = "gold answer can't be read", "its own solution fails its tests"


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
    modules: Modules = NONE,
) -> dict:
    """Writes a data set, or nothing.

    Args:
      name: of the data set.
      one: how its rows are read.
      sources: the file, or folder of files, of each split.
      out: folder of data sets, on a disk or in a bucket; the set becomes a folder in it, which must not be there yet.
      format_name: what its description calls the format.
      override: all rows have the format's grader, whatever it says of single ones.
      drop_unreadable: leave rows out whose gold answer is missing or can't be read, or whose text is not valid Unicode;
        otherwise they are an error.
      drop_unsolved: leave rows out whose own solution fails their tests, where the format has such solutions; otherwise
        they are an error.
      modules: of the user's own, which programs may import.

    Returns:
      The description that the set keeps of itself (see `array_record.description`).

    Raises:
      UserError: a file or a row can't be read, a row's own solution can't be run, or `out` has such a set or can't be
        written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"data set name {name!r} can't be used; use lower-case letters, digits and _, such as my_set.")
    if os.path.lexists(out / name) or (out / name).exists():  # said at once, not after an hour of reading
        raise UserError(f"{out / name} exists already; give another --out, or remove it.")
    for path in sources.values():
        tables.check_exists(path)

    def rows(split: str) -> _Rows:
        for where, example in examples.examples(one.convert, sources[split], split):
            if isinstance(example, examples.Example):
                kind = one.grader if override else example.grader or one.grader
                yield where, dataclasses.replace(example, grader=kind)
            else:
                yield where, example

    surveys = {split: _survey(rows(split), f"checking {path}") for split, path in sources.items()}
    missing = {split: survey.missing for split, survey in surveys.items()}
    damaged = {split: survey.damaged for split, survey in surveys.items()}
    if not drop_unreadable:
        _refuse(missing, "rows have no gold answer", "fix these rows", "drop_unreadable")
        _refuse(damaged, "rows have damaged text", "fix these rows", "drop_unreadable")
    unreadable = {split: _unreadable(survey) for split, survey in surveys.items()}
    if not drop_unreadable:
        _refuse(unreadable, "gold answers can't be read", "fix these rows, choose another --grader", "drop_unreadable")
    solved = {split: _solutions(rows(split), unreadable[split]) if one.solved else [] for split in sources}
    unsolved = _unsolved(solved, modules)
    if not drop_unsolved:
        _refuse(unsolved, "rows' own solutions fail their tests", "fix these rows", "drop_unsolved")
    bad = {split: unreadable[split] | unsolved[split] for split in sources}
    left_out = {_MISSING: missing, _DAMAGED: damaged, _UNREADABLE: unreadable, _UNSOLVED: unsolved}
    description = _describe(format_name, sources, surveys, left_out)

    total = sum(survey.read for survey in surveys.values())
    with (
        files.new_folder(out / name) as folder,
        files.checked(out / name),
        files.filled_folder(folder, last=digests.FILE) as made,
        console.progress_bar(total=total, desc=f"writing {name}", unit=" rows") as bar,
    ):

        def kept(split: str) -> Iterator[examples.Example]:
            for where, example in rows(split):
                bar.update()
                if isinstance(example, examples.Example) and where not in bad[split]:
                    yield example

        splits = {split: functools.partial(kept, split) for split in sources}
        array_record.build(made, name, splits=splits, about=one.about, description=description)
    return description


_Rows = Iterator[tuple[str, examples.Example | str | examples.Unusable]]  # with where they are


@dataclasses.dataclass
class _Survey:
    """A source, read once.

    Attributes:
      read: rows.
      left_out: how many of them for which reason of their format's.
      missing, damaged: where those without a gold answer are, or with damaged text, and what is said of them.
      answers: of each grader the gold answers, with where they are.
    """

    read: int
    left_out: collections.Counter
    missing: dict[str, str]
    damaged: dict[str, str]
    answers: dict[str, list[tuple[str, str]]]


def _survey(rows: _Rows, desc: str) -> _Survey:
    survey = _Survey(0, collections.Counter(), {}, {}, collections.defaultdict(list))
    with console.progress_bar(rows, desc=desc, unit=" rows") as bar:
        for where, example in bar:
            survey.read += 1
            if isinstance(example, str):
                survey.left_out[example] += 1
            elif isinstance(example, examples.Unusable):
                found = survey.missing if isinstance(example, examples.NoAnswer) else survey.damaged
                found[where] = str(example).removesuffix(".")
            else:
                survey.answers[example.grader].append((where, example.answer))
    return survey


def _unreadable(survey: _Survey) -> dict[str, str]:
    """Returns where gold answers are that their grader can't read, and what is said of them."""
    bad = {}
    for kind, rows in survey.answers.items():
        if kind not in grader_lib.KINDS:  # the run's, or a user's own function, which alone knows what it reads
            continue
        with grader_lib.Grader(kind, num_workers=os.cpu_count() or 1, numpy=True) as grader:
            readable = grader.readable([answer for _, answer in rows])
            for (where, answer), ok in zip(rows, readable, strict=True):
                if not ok:  # of those that are named, say why
                    said = (
                        grader_lib.said_of_unreadable(grader, answer, kind) if len(bad) < _SHOWN else f"{answer[:80]!r}"
                    )
                    bad[where] = f"{where}: {said}, by grader '{kind}'"
    return bad


def _solutions(rows: _Rows, unreadable: Mapping[str, str]) -> list:
    """Returns where the rows are that have a program as their solution, and their examples."""
    return [
        (where, example)
        for where, example in rows
        if isinstance(example, examples.Example) and where not in unreadable
        if example.solution and example.grader == "code"
    ]


def _unsolved(solved: Mapping[str, list[tuple[str, examples.Example]]], modules: Modules) -> dict[str, dict[str, str]]:
    """Returns for each split where rows are whose own solution gets no reward, and what is said of them.

    Each has the time that training gives a response by default: a row that needs more can't be solved there.

    Raises:
      UserError: a solution could not be run, which says nothing of it.
    """
    found = {split: {} for split in solved}
    total = sum(map(len, solved.values()))
    if not total:
        return found
    with (
        grader_lib.Grader("code", num_workers=os.cpu_count() or 1, numpy=True, modules=modules) as grader,
        console.progress_bar(total=total, desc="running the rows' own solutions", unit=" rows") as bar,
    ):
        for split, rows in solved.items():
            pending = [grader.submit(example.solution, example.answer) for _, example in rows]
            for (where, _), one in zip(rows, pending, strict=True):
                grade = one.result()
                if grade.failed:
                    raise UserError(
                        f"{where}: its own solution could not be run ({' '.join(grade.reason.split())}); nothing was "
                        "written. Fix what keeps programs from running on this machine, and give the same command."
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
