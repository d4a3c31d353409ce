"""How diverse texts are, and how hard the questions whose rows were kept: does training on one's own samples narrow?

In self-training the share of kept rows from hard questions falls from round to round (tail narrowing, arXiv
2411.16579): what is easy is solved, and so learnt, again and again.
"""

import collections
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.records import Stage

# Bins of a question's pass rate, hardest first: of each its name and the largest rate in it.
HARD = 0.25  # pass rate of a hard question, at most
BINS = (("0", 0.0), ("to 1/4", 0.25), ("to 1/2", 0.5), ("to 3/4", 0.75), ("below 1", 1 - 1e-9), ("1", 1.0))


def distinct_ngrams(texts: Iterable[Sequence[Hashable]], *, n: int) -> tuple[int, int]:
    """Returns how many different n-grams texts have, and how many in all: distinct-n (arXiv 1510.03055) is their ratio.

    Example:
      >>> distinct_ngrams([[1, 2, 3], [1, 2, 4]], n=2)
      (3, 4)
    """
    counts: collections.Counter[tuple[Hashable, ...]] = collections.Counter()
    for text in texts:
        counts.update(tuple(text[at : at + n]) for at in range(len(text) - n + 1))
    return len(counts), counts.total()


def pass_rates(paths: Iterable[pathlib.Path], *, pass_threshold: float) -> dict[str, float]:
    """Returns of each question, by its `problem_id`, the share of its responses that pass; those graded alone count.

    Raises:
      UserError: a file can't be read.
    """
    right: collections.Counter[str] = collections.Counter()
    number: collections.Counter[str] = collections.Counter()
    for path in paths:
        for row in rollouts.read_columns(path, ("problem_id", "stage", "reward")).to_pylist():
            if row["stage"] == Stage.RESPONSE.name.lower() and row["reward"] is not None:
                right[row["problem_id"]] += row["reward"] >= pass_threshold
                number[row["problem_id"]] += 1
    return {name: right[name] / count for name, count in number.items()}


def by_difficulty(kept: Mapping[str, int], rates: Mapping[str, float]) -> dict[str, float]:
    """Returns how many kept rows are of questions of each bin of `BINS`, by its name, and the share of hard ones.

    Args:
      kept: rows of each question, by its `problem_id`.
      rates: the questions' pass rates in what was collected first.

    Returns:
      The bins that are not empty, `unknown` for questions without a rate, and `hard share`: of the rows whose question
      has one, those of a rate of at most 1/4. Empty of nothing.

    Example:
      >>> by_difficulty({"a": 2, "b": 1, "c": 4}, {"a": 0.0, "b": 0.3})
      {'0': 2, 'to 1/2': 1, 'unknown': 4, 'hard share': 0.6666666666666666}
    """
    found: dict[str, float] = dict.fromkeys([*(name for name, _ in BINS), "unknown"], 0)
    hard = known = 0
    for question, number in kept.items():
        rate = rates.get(question)
        found["unknown" if rate is None else next(name for name, most in BINS if rate <= most)] += number
        known += 0 if rate is None else number
        hard += number if rate is not None and rate <= HARD else 0
    found = {name: number for name, number in found.items() if number}
    return found | ({"hard share": hard / known} if known else {})
