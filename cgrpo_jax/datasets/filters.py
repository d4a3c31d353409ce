"""Which problems a run trains on: those whose prompts fit, and those that are neither too easy nor too hard."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from cgrpo_jax.datasets import tables
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem, problem_id
from cgrpo_jax.runtime import text as text_lib


@dataclasses.dataclass(frozen=True)
class Left:
    """Questions that were left out for how often they are solved.

    Attributes:
      too_hard: those whose pass rate is not above the minimum.
      too_easy: those whose pass rate is not below the maximum.
      unknown: those without a pass rate, which were kept.
      total: of all.
    """

    too_hard: int
    too_easy: int
    unknown: int
    total: int


def read_pass_rates(path: str | pathlib.Path) -> dict[str, float]:
    """Reads how often each question was solved: JSON lines with `id` (`records.problem_id`) and `pass_rate`.

    A question that comes more than once has the mean of its rates.

    Raises:
      UserError: no such file, a line that is no such object, or a rate that is no share.
    """
    rates = collections.defaultdict(list)
    for where, row in tables.jsonl_rows(path):
        name, rate = tables.column(row, "id", where), row.get("pass_rate")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise UserError(
                f"{where}: column 'pass_rate' is {text_lib.quoted(rate, 40)}; it must be a number from 0 to 1."
            )
        rates[name].append(rate)
    if not rates:
        raise UserError(f"data file '{path}' has no rows; it needs at least one.")
    return {name: sum(each) / len(each) for name, each in rates.items()}


def by_pass_rate(
    problems: Sequence[Problem], rates: Mapping[str, float], *, minimum: float, maximum: float
) -> tuple[list[Problem], Left]:
    """Keeps the problems with minimum < pass rate < maximum, and those of which it is not known.

    With 0 and 1 these are the questions that are solved sometimes: from one that is always or never solved, a group
    of responses learns nothing.

    Raises:
      UserError: nothing is left.
    """
    known = [rates.get(problem_id(problem)) for problem in problems]
    kept = [p for p, rate in zip(problems, known, strict=True) if rate is None or minimum < rate < maximum]
    if not kept:
        raise UserError(
            f"none of {len(problems)} questions has a pass rate above data.min_pass_rate {minimum:g} and below "
            f"data.max_pass_rate {maximum:g}; widen them."
        )
    left = Left(
        too_hard=sum(rate is not None and rate <= minimum for rate in known),
        too_easy=sum(rate is not None and rate > minimum and rate >= maximum for rate in known),
        unknown=sum(rate is None for rate in known),
        total=len(problems),
    )
    return kept, left


def skip_or_fail_long(
    problems: Sequence[Problem], lengths: Sequence[int], *, limit: int, on_long: str
) -> tuple[list[Problem], int]:
    """Drops (and counts) the problems whose prompt is longer than the limit, or fails where there is one.

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
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= limit]
    skipped = len(problems) - len(kept)
    if skipped and (on_long == "error" or not kept):
        longest, problem = max(zip(lengths, problems, strict=True), key=lambda pair: pair[0])
        otherwise = ", or set prompts.on_long_question to skip" if kept else ""
        raise UserError(
            f"{skipped} of {len(problems)} prompts have more than max_prompt_length {limit} tokens, the longest, of "
            f"problem {problem.index}, {longest}; raise it{otherwise}."
        )
    return kept, skipped
