"""The problems of a run: made up or read, with gold answers that the grader can read and prompts that fit."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import array_record, filters, readers
from cgrpo_jax.datasets.tasks import arithmetic, snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.thinking_tags import without_thought
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import grader
from cgrpo_jax.runtime import local_copies, places

# Kinds of data that are made up by the package: these tasks have lessons for a warm start.
MADE_UP = ("chains", "snippets")
_VERSIONS = {"chains": arithmetic.VERSION, "snippets": snippets.VERSION}
_WORKED = re.compile(r"####[ \t]*\S+[^\n]*\Z")  # the last line of a worked solution, as in GSM8K


def task_of(kind: str) -> str | None:
    """Returns a made-up task with its version, as results name it; None for a kind of data that is read.

    Example:
      >>> task_of("snippets"), task_of("jsonl")
      ('snippets 3', None)
    """
    return f"{kind} {_VERSIONS[kind]}" if kind in MADE_UP else None


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Questions that the package makes up.

    Attributes:
      kind: chains (arithmetic) or snippets (code).
      seed: of the questions, and of what is held out.
      num_train, num_eval: how many.
      length: steps of a chain, operations of a snippet.
      hard_share: share of the questions with something held out.
      num_held_out: facts, or words, that a warm start never shows.
    """

    kind: str
    seed: int
    num_train: int
    num_eval: int
    length: int
    hard_share: float
    num_held_out: int

    def held_out_facts(self) -> frozenset[arithmetic.Fact]:
        """Returns the facts that the warm start in chains never shows."""
        return arithmetic.held_out_facts(self.num_held_out, seed=self.seed)

    def glossary(self) -> snippets.Glossary:
        """Returns what the words of the code task mean, those included that its warm start never explains."""
        return snippets.make_glossary(self.num_held_out, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Questions that are read.

    Attributes:
      kind: of the files: jsonl, parquet or tfds.
      train, eval: files, or TFDS names, separated by commas; empty for none. No `train` (None): held-out ones alone.
      train_split, eval_split: of TFDS data sets, one for all or one each.
      tfds_dir: where these lie; None for the default.
      question_key, answer_key, solution_key, answer_pattern: columns, as for `readers`.
      num_train, num_eval: of each set; 0 for all.
    """

    kind: str
    train: str | None
    eval: str
    train_split: str
    eval_split: str
    tfds_dir: str | None
    question_key: str
    answer_key: str
    solution_key: str | None
    answer_pattern: str | None
    num_train: int
    num_eval: int


@dataclasses.dataclass(frozen=True)
class Given:
    """Questions that are there already, such as those of rows collected before."""

    problems: Sequence[Problem]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a question must meet to be asked.

    Attributes:
      grader: kind of grader of the problems that name none.
      grader_timeout, grader_workers: with which gold answers are read, in seconds and processes.
      has_judge: whether there is an endpoint that judges.
      quotes_answers: whether critiques quote the gold answer.
      max_prompt_length: tokens of its prompt.
      on_long_question: `skip` those that are longer, or `error`.
      max_solution_length: tokens of its solution, where that is inserted; else None.
      needs_solutions: why training questions must have a solution, where they must; else empty.
      grader_numpy: whether tests of programs may import NumPy.
      needs_rubrics: whether critiques are of a rubric's items, so that training questions must be judged by one.
    """

    grader: str
    grader_timeout: float
    grader_workers: int
    has_judge: bool
    quotes_answers: bool
    max_prompt_length: int
    on_long_question: str
    max_solution_length: int | None
    needs_solutions: str = ""
    grader_numpy: bool = False
    needs_rubrics: bool = False


@dataclasses.dataclass(frozen=True)
class Problems:
    """The problems of a run.

    Attributes:
      training, held_out: what it learns from, and what it is measured on.
      skipped: of either, by these names ("training", "held-out"), how many were left out for their length.
    """

    training: list[Problem]
    held_out: list[Problem]
    skipped: dict[str, int]


def load_problems(source: MadeUp | Stored | Given, prompts: Prompts, limits: Limits) -> Problems:
    """Makes up, or reads, the problems of a run; what is given already is all for training, and none is left out.

    Raises:
      UserError: there are none, a file or a row of it is damaged, or a gold answer can't be read.
    """
    if isinstance(source, Given):
        train, test = list(source.problems), []
        limits = dataclasses.replace(limits, on_long_question="error")
    else:
        train, test = _made_up(source) if isinstance(source, MadeUp) else _stored(source)
    held_out_alone = isinstance(source, Stored) and source.train is None
    if not train and not isinstance(source, Given) and not held_out_alone:
        raise UserError(f"no training questions: data.num_train is {source.num_train}; use at least 1.")
    if limits.needs_solutions:
        check_solutions(train, source, limits.needs_solutions)
    if limits.needs_rubrics:
        _check_rubrics(train, limits)
    if isinstance(source, Stored) and not source.answer_pattern:
        _check_answers_alone(train, limits)
    kept: dict[str, list[Problem]] = {}
    skipped: dict[str, int] = {}
    of_test = dataclasses.replace(limits, max_solution_length=None)
    for kind, problems, its_limits in (("training", train, limits), ("held-out", test, of_test)):
        try:
            kept[kind], skipped[kind] = _usable(problems, prompts, its_limits)
        except UserError as error:
            raise UserError(f"{kind} questions: {error}") from error
    return Problems(kept["training"], kept["held-out"], skipped)


def _made_up(source: MadeUp) -> tuple[list[Problem], list[Problem]]:
    if source.kind == "chains":
        make = functools.partial(arithmetic.make_problems, held_out=source.held_out_facts())
    else:
        make = functools.partial(snippets.make_problems, glossary=source.glossary())
    make = functools.partial(make, length=source.length, hard_share=source.hard_share)
    train = make(source.num_train, seed=source.seed)
    test = make(source.num_eval, seed=source.seed + 1, exclude=[p.question for p in train])
    return [p.replace(source=source.kind) for p in train], [p.replace(source=source.kind) for p in test]


def _stored(source: Stored) -> tuple[list[Problem], list[Problem]]:
    if source.train is None:
        return [], _held_out(source)
    if not source.train:
        raise UserError("no training data: set data.train to a file or a TFDS name.")
    return _read_all(source, source.train, source.train_split, limit=source.num_train), _held_out(source)


def _held_out(source: Stored) -> list[Problem]:
    """Returns the held-out questions, with solutions where each has one.

    Nothing shows these, so none is needed; but a run of an earlier version began with them, and compares their hash.
    """
    if source.solution_key:
        with contextlib.suppress(UserError):  # it is said below, unless it is of the solutions
            return _read_all(source, source.eval, source.eval_split, limit=source.num_eval)
    source = dataclasses.replace(source, solution_key=None)
    return _read_all(source, source.eval, source.eval_split, limit=source.num_eval)


def _usable(problems: list[Problem], prompts: Prompts, limits: Limits) -> tuple[list[Problem], int]:
    """Returns the problems whose prompts fit and how many don't; every gold answer and solution must be usable."""
    if not problems:
        return [], 0
    _check_gold(problems, limits)
    lengths = [_prompt_length(problem, prompts) for problem in problems]
    problems, skipped = filters.skip_or_fail_long(
        problems, lengths, limit=limits.max_prompt_length, on_long=limits.on_long_question
    )
    if limits.max_solution_length is not None:
        for p in problems:
            opening = prompts.tokenizer.thinking_opened_by(prompts.for_question(p.question, p.turns))
            inserted = without_thought(p.solution or "", opening)
            length = len(prompts.tokenizer.encode_turn(inserted)) + 1  # and the end of the turn
            if length > limits.max_solution_length:
                raise UserError(
                    f"the solution of problem {p.index} has {length} tokens, more than max_response_length "
                    f"{limits.max_solution_length}; raise it."
                )
    return problems, skipped


def _prompt_length(problem: Problem, prompts: Prompts) -> int:
    try:
        return len(prompts.for_question(problem.question, problem.turns))
    except UserError as error:
        raise UserError(f"problem {problem.index} of {problem.source or 'the data'}: {error}") from error


def check_solutions(
    problems: Sequence[Problem], source: MadeUp | Stored | Given, why: str, *, whose: str = "training"
) -> None:
    """Checks that all problems have a solution, of which files may have an empty one, and prepared data sets none.

    Args:
      problems, source: what is checked, and where it comes from.
      why: what needs the solutions.
      whose: which questions they are, "training" or "held-out".

    Raises:
      UserError: one has none.
    """
    column = (source.solution_key if isinstance(source, Stored) else None) or "solution"
    for p in problems:
        if not (p.solution or "").strip():
            raise UserError(
                f"{whose} questions: row {p.index + 1} of {p.source} has no solution in column '{column}', which "
                f"{why}; fill it, or leave the row out."
            )


def _check_rubrics(problems: Sequence[Problem], limits: Limits) -> None:
    """Checks that all problems are judged by a rubric, whose items critiques are to name."""
    for p in problems:
        if (kind := p.grader or limits.grader) != "judge":
            raise UserError(
                f"training questions: row {p.index + 1} of {p.source} is graded by {kind!r}, but critique.kind "
                '"checklist" names the items of a rubric; leave the row out, or use another kind.'
            )


def _check_answers_alone(problems: Sequence[Problem], limits: Limits) -> None:
    """Checks that gold answers are not whole solutions that end as GSM8K's do, with which no response would agree."""
    golds = [p.answer for p in problems if (p.grader or limits.grader) in ("math", "numeric", "exact", "choice")]
    if golds and all(_WORKED.search(gold) for gold in golds):
        raise UserError(
            f"training questions: the gold answers are solutions that end as {golds[0][-20:]!r}; name the answer in "
            r"them: data.answer_pattern='####\s*(.+)'."
        )


def check_quotable(problems: Sequence[Problem], *, grader: str) -> None:
    """Checks that critiques may quote the gold answers.

    Args:
      problems: whose answers they quote.
      grader: kind of grader of those that name none.

    Raises:
      UserError: those of grader "code" are unit tests.
    """
    if any((problem.grader or grader) == "code" for problem in problems):
        raise UserError(
            'critique "indicative_gt" would quote the unit tests of grader "code"; use "execution", and leave it out '
            "of diagnosis.kinds."
        )


def _check_gold(problems: Sequence[Problem], limits: Limits) -> None:
    """Checks all gold answers, each by the grader of its problem."""
    if limits.quotes_answers:
        check_quotable(problems, grader=limits.grader)
    if any(problem.grader == "judge" for problem in problems) and not limits.has_judge:
        raise UserError(
            'the data names grader "judge", which asks an endpoint; give its address in judge.endpoint.url.'
        )
    answers = collections.defaultdict(list)
    for problem in problems:
        answers[problem.source, problem.grader or limits.grader].append(problem.answer)
    for (source, kind), golds in answers.items():
        try:
            grader.check_gold(
                kind,
                golds,
                timeout=limits.grader_timeout,
                num_workers=limits.grader_workers,
                numpy=limits.grader_numpy,
            )
        except UserError as error:
            raise UserError(f"{source}: {error}") if len(answers) > 1 else error from error


def _read_all(source: Stored, names: str, splits: str, *, limit: int) -> list[Problem]:
    """Reads the data sets, or files, that a key names; `limit` questions of each, where it is not 0."""
    each = [name.strip() for name in names.split(",") if name.strip()]
    split = [one.strip() for one in splits.split(",")]
    if source.kind == "tfds" and len(split) not in (1, len(each)):
        raise UserError(
            f"{len(split)} splits ({', '.join(split)}) are given for {len(each)} data sets; give one, or one each."
        )
    stems = [pathlib.Path(name).stem for name in each]
    problems = []
    for k, name in enumerate(each):
        # A file goes by its name without folder and suffix, unless another goes by the same.
        goes_by = stems[k] if source.kind != "tfds" and stems.count(stems[k]) == 1 else name
        problems += _read(source, name, split[k % len(split)], goes_by)[: limit or None]
    return problems


def _read(source: Stored, name: str, split: str, goes_by: str) -> list[Problem]:
    read = {"jsonl": readers.read_jsonl, "parquet": readers.read_parquet}.get(source.kind)
    where: Any = name if source.kind == "tfds" else local_copies.local(name)
    read = read or functools.partial(readers.read_tfds, split=split, data_dir=_folder_of_sets(source, name))
    return read(
        where,
        question_key=source.question_key,
        answer_key=source.answer_key,
        solution_key=source.solution_key,
        answer_pattern=source.answer_pattern,
        source=goes_by,
    )


def _folder_of_sets(source: Stored, name: str) -> pathlib.Path:
    """Returns the folder in which a data set lies; of one in a bucket the folder of its copy, which has no other."""
    folder = places.place(source.tfds_dir) if source.tfds_dir else array_record.default_folder()
    return local_copies.local(folder / re.split("[/:]", name)[0]).parent if places.is_bucket(folder) else folder
