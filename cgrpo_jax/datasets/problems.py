"""The problems of a run: made up or read, with gold answers that the grader can read and prompts that fit."""

import collections
import dataclasses
import functools
import pathlib
import sys

from cgrpo_jax.critiques import schedule
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import filters, readers
from cgrpo_jax.datasets import mixture as mixture_lib
from cgrpo_jax.datasets.tasks import arithmetic, snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import grader

# Kinds of data that are made up by the package: these tasks have lessons for a warm start.
MADE_UP = ("chains", "snippets")


def load_problems(config, prompts: Prompts) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """Returns (training problems, held-out problems, number of problems of either kind left out for their length).

    Raises:
      UserError: there are none, a file or a row of it is damaged, a gold answer can't be read, or the longest question
        leaves no room for a critique in a refine prompt.
    """
    d = config.data
    if d.kind in MADE_UP:
        if d.kind == "chains":
            make = functools.partial(arithmetic.make_problems, held_out=held_out_facts(config))
        else:
            make = functools.partial(snippets.make_problems, glossary=glossary(config))
        make = functools.partial(make, length=d.chain_length, hard_share=d.hard_share)
        train = [p.replace(source=d.kind) for p in make(d.num_train, seed=d.seed)]
        test = make(d.num_eval, seed=d.seed + 1, exclude=[p.question for p in train])
        test = [p.replace(source=d.kind) for p in test]
    else:
        if not d.train:
            raise UserError("no training data: set data.train to a file or a TFDS name.")
        train = _read_all(d, d.train, d.train_split, limit=d.num_train)
        test = _read_all(d, d.eval, d.eval_split, limit=d.num_eval)
    if not train:
        raise UserError(f"no training questions: data.num_train is {d.num_train}; use at least 1.")
    kept, skipped = {}, {}
    for kind, problems in (("training", train), ("held-out", test)):
        try:
            kept[kind], skipped[kind] = _usable(config, prompts, problems)
        except UserError as error:
            raise UserError(f"{kind} questions: {error}") from error
    _check_room(config, prompts, kept["training"])
    return kept["training"], kept["held-out"], skipped


def choose(config, problems: list[Problem]) -> tuple[list[Problem], dict[str, float], str]:
    """Returns the training problems that are neither too easy nor too hard, the mixture that they are drawn by, and
    what is to be said of those left out.

    Raises:
      UserError: the file of pass rates can't be read, nothing is left, or the mixture is of other sources.
    """
    d, said = config.data, ""
    if d.pass_rates:
        rates = filters.read_pass_rates(d.pass_rates)
        problems, left = filters.by_pass_rate(problems, rates, minimum=d.min_pass_rate, maximum=d.max_pass_rate)
        said = (
            f"{len(problems)} of {left.total} training questions are left by data.pass_rates: {left.too_hard} have a "
            f"rate of at most {d.min_pass_rate:g}, {left.too_easy} of at least {d.max_pass_rate:g}; {left.unknown} "
            "without a rate were kept"
        )
    mixture = mixture_lib.parse_mixture(d.mixture)
    mixture_lib.check_mixture(mixture, [p.source for p in problems])
    return problems, mixture, said


def _check_room(config, prompts: Prompts, problems: list[Problem]) -> None:
    """Checks that the longest question fits the prompts that hold more, lest a run end at the first that does not."""
    longest = max(problems, key=lambda problem: len(prompts.for_question(problem.question)))
    kinds = schedule.kinds(critique=config.critique, schedule=config.critique_schedule)
    criticises = "cot" in kinds and (config.refine == "policy" or config.critique_when == "all")
    if criticises and not config.critic_folder:
        prompts.for_critique(longest.question, "", longest.answer if config.critic_sees_answer else None)
    if config.refine != "policy":
        return
    unlimited = dataclasses.replace(prompts, max_refinement_prompt_length=sys.maxsize)
    ids, _ = unlimited.for_refinement(longest.question, "", None if kinds == {"none"} else "")
    critique = config.max_critique_length if "cot" in kinds else 0
    if len(ids) + critique > config.max_refinement_prompt_length:
        raise UserError(
            f"the refine prompt of the longest question, problem {longest.index}, needs {len(ids) + critique} tokens, "
            f"{critique} of them for a critique, without the response; max_refinement_prompt_length is "
            f"{config.max_refinement_prompt_length}; raise it."
        )


def _usable(config, prompts: Prompts, problems: list[Problem]) -> tuple[list[Problem], int]:
    """Returns the problems whose prompts fit and how many don't; every gold answer and solution must be usable."""
    if not problems:
        return [], 0
    _check_gold(config, problems)
    lengths = [len(prompts.for_question(p.question)) for p in problems]
    problems, skipped = filters.skip_or_fail_long(
        problems, lengths, limit=config.max_prompt_length, on_long=config.on_long_question
    )
    if config.refine == "solution":
        for p in problems:
            length = len(prompts.tokenizer.encode(p.solution)) + 1  # and the end of the turn
            if length > config.max_response_length:
                raise UserError(
                    f"the solution of problem {p.index} has {length} tokens, more than max_response_length "
                    f"{config.max_response_length}; raise it."
                )
    return problems, skipped


def check_told(config, problems: list[Problem]) -> None:
    """Checks that critiques may tell the gold answers.

    Raises:
      UserError: those of grader "code" are unit tests.
    """
    if any((problem.grader or config.grader) == "code" for problem in problems):
        raise UserError(
            'critique "indicative_gt" would quote the unit tests of grader "code"; use "execution", and leave it out '
            "of diagnosis.kinds."
        )


def _check_gold(config, problems: list[Problem]) -> None:
    """Checks all gold answers, each by the grader of its problem."""
    if "indicative_gt" in schedule.kinds(critique=config.critique, schedule=config.critique_schedule):
        check_told(config, problems)
    if any(problem.grader == "judge" for problem in problems) and not config.judge.url:
        raise UserError('the data names grader "judge", which asks an endpoint; give its address in judge.url.')
    answers = collections.defaultdict(list)
    for problem in problems:
        answers[problem.source, problem.grader or config.grader].append(problem.answer)
    for (source, kind), golds in answers.items():
        try:
            grader.check_gold(kind, golds, timeout=config.grader_timeout, num_workers=config.grader_workers)
        except UserError as error:
            raise UserError(f"{source}: {error}") if len(answers) > 1 else error from error


def _read_all(d, names: str, splits: str, *, limit: int) -> list[Problem]:
    """Reads the data sets, or files, that a key names; `limit` questions of each, where it is not 0."""
    names = [name.strip() for name in names.split(",") if name.strip()]
    splits = [split.strip() for split in splits.split(",")]
    if d.kind == "tfds" and len(splits) not in (1, len(names)):
        raise UserError(
            f"{len(splits)} splits ({', '.join(splits)}) are given for {len(names)} data sets; give one, or one each."
        )
    stems = [pathlib.Path(name).stem for name in names]
    problems = []
    for k, name in enumerate(names):
        # A file goes by its name without folder and suffix, unless another goes by the same.
        source = stems[k] if d.kind != "tfds" and stems.count(stems[k]) == 1 else name
        problems += _read(d, name, splits[k % len(splits)], source)[: limit or None]
    return problems


def _read(d, name: str, split: str, source: str) -> list[Problem]:
    columns = dict(
        question_key=d.question_key,
        answer_key=d.answer_key,
        solution_key=d.solution_key or None,
        answer_pattern=d.answer_pattern or None,
        source=source,
    )
    if d.kind == "tfds":
        return readers.read_tfds(name, split=split, data_dir=d.tfds_dir or None, **columns)
    return {"jsonl": readers.read_jsonl, "parquet": readers.read_parquet}[d.kind](name, **columns)


def held_out_facts(config) -> frozenset[arithmetic.Fact]:
    """Returns the facts that the quickstart's warm start never shows."""
    return arithmetic.held_out_facts(config.data.num_held_out, seed=config.data.seed)


def glossary(config) -> snippets.Glossary:
    """Returns what the words of the code task mean, those included that its warm start never explains."""
    return snippets.make_glossary(config.data.num_held_out, seed=config.data.seed)
