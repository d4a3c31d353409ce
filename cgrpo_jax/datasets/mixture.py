"""The order in which training reads problems: a pure function of (seed, step), so a resumed run reads the same.

There is no position to save and nothing to restore: step s reads the same problems whoever asks, however often the run
was stopped before, and on every process. Only where steps draw on beyond their batch does a run keep how many problems
those before have read so. All processes hold all problems and compute the same order; what they divide is the work on
them.
"""

import collections
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem

_BLOCK = 1000  # questions over which the weights of a mixture are kept exactly


def batch_indices(
    *, seed: int, step: int, batch_size: int, num_problems: int, before: int = 0, more: int = 0
) -> list[int]:
    """Which problems step `step` (from 0) reads: a pure function of its arguments, so a resumed run reads the same.

    Steps read on in an endless stream of epochs, each its own permutation from (seed, epoch). A batch may span epochs.
    A step that reads beyond its batch moves those after it on by as many.

    Args:
      seed, step, batch_size, num_problems: the stream, and where a step is in it.
      before: problems that the steps before have read beyond their batches.
      more: problems after the batch that are returned too.

    Example:
      >>> sorted(batch_indices(seed=0, step=0, batch_size=2, num_problems=4)
      ...        + batch_indices(seed=0, step=1, batch_size=2, num_problems=4))
      [0, 1, 2, 3]
    """
    _check(seed, step, batch_size, [num_problems])
    positions = _positions(step, batch_size, before, more)
    epochs = {position // num_problems for position in positions}
    order = {epoch: np.random.default_rng([seed, epoch]).permutation(num_problems) for epoch in epochs}
    return [int(order[position // num_problems][position % num_problems]) for position in positions]


def mixture_indices(
    *,
    seed: int,
    step: int,
    batch_size: int,
    sizes: Sequence[int],
    weights: Sequence[float],
    before: int = 0,
    more: int = 0,
) -> list[tuple[int, int]]:
    """Which problems of which sets step `step` reads, where the sets have shares: as pure a function.

    The stream is cut into blocks of 1000 positions. In each block every set has its share of them exactly (up to
    rounding to a thousandth), spread evenly from a start drawn from (seed, block). The positions of a set read on in
    the set's own endless stream of epochs, each a permutation from (seed, epoch, set): a small set comes round again
    while a large one is still in its first epoch.

    Example:
      >>> picked = mixture_indices(seed=0, step=0, batch_size=1000, sizes=[5, 7000], weights=[0.3, 0.7])
      >>> sum(which == 0 for which, _ in picked)
      300

    Args:
      seed, step, batch_size, before, more: as for `batch_indices`.
      sizes: problems of each set.
      weights: share of each set, positive; they are divided by their sum.

    Returns:
      `batch_size + more` pairs (set, index within the set).
    """
    _check(seed, step, batch_size, sizes)
    counts = _shares(tuple(weights))
    picked = []
    for position in _positions(step, batch_size, before, more):
        block, offset = divmod(position, _BLOCK)
        sets, ranks = _block(seed, block, counts)
        which = int(sets[offset])
        epoch, at = divmod(block * counts[which] + int(ranks[offset]), sizes[which])
        picked.append((which, int(_permutation(seed, epoch, which, sizes[which])[at])))
    return picked


def _positions(step: int, batch_size: int, before: int, more: int) -> range:
    """The places in the stream that a step reads."""
    first = step * batch_size + before
    return range(first, first + batch_size + more)


def draw(
    problems: Sequence[Problem],
    mixture: Mapping[str, float],
    *,
    seed: int,
    step: int,
    batch_size: int,
    before: int = 0,
    more: int = 0,
) -> list[Problem]:
    """Returns the problems of a step, then those that it may draw on.

    Args:
      problems: all of them, of one or several sources.
      mixture: share of each source, from `parse_mixture`; empty: all problems are one set.
      seed, step, batch_size, before, more: as for `batch_indices`.
    """
    read: dict[str, int] = {"seed": seed, "step": step, "batch_size": batch_size, "before": before, "more": more}
    if not mixture:
        indices = batch_indices(num_problems=len(problems), **read)
        return [problems[i] for i in indices]
    sets = collections.defaultdict(list)
    for problem in problems:
        sets[problem.source].append(problem)
    sizes, weights = [len(sets[name]) for name in mixture], list(mixture.values())
    picked = mixture_indices(sizes=sizes, weights=weights, **read)
    names = list(mixture)
    return [sets[names[which]][index] for which, index in picked]


def parse_mixture(text: str) -> dict[str, float]:
    """Returns `data.mixture` as a dict in its order.

    Example:
      >>> parse_mixture("gsm8k:0.3, openr1:0.7")
      {'gsm8k': 0.3, 'openr1': 0.7}

    Raises:
      UserError: an entry is not NAME:WEIGHT, a weight is not positive or below a thousandth, or a name comes twice.
    """
    mixture: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, colon, number = entry.rpartition(":")  # the name may hold a colon: "my_set:1.0.0"
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (colon and name and 0 < weight < math.inf):
            raise UserError(f"data.mixture: {entry!r} is not NAME:WEIGHT, such as gsm8k:0.3, with a positive weight.")
        if name in mixture:
            raise UserError(f"data.mixture names {name!r} twice; give it one weight.")
        mixture[name] = weight
    for name, count in zip(mixture, _shares(tuple(mixture.values())), strict=True):
        if not count:
            raise UserError(f"data.mixture gives {name!r} less than a thousandth of the questions; raise its weight.")
    return mixture


def check_mixture(mixture: Mapping[str, float], sources: Iterable[str]) -> None:
    """Raises a `UserError` where a mixture names other sources than the problems have."""
    has = sorted(set(sources))
    if mixture and sorted(mixture) != has:
        raise UserError(f"data.mixture names {', '.join(mixture)}, the training questions are of {', '.join(has)}.")


def _check(seed: int, step: int, batch_size: int, sizes: Sequence[int]) -> None:
    if seed < 0 or step < 0 or batch_size < 1 or min(sizes) < 1:
        raise ValueError(
            f"seed {seed} and step {step} must be at least 0, "
            f"batch_size {batch_size} and num_problems {min(sizes)} at least 1."
        )


@functools.lru_cache(maxsize=8)
def _shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Positions of each set in a block: its weight's share, the largest remainders rounded up."""
    exact = [_BLOCK * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: _BLOCK - sum(counts)]:
        counts[k] += 1
    return tuple(counts)


@functools.lru_cache(maxsize=8)
def _block(seed: int, block: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which set each position of a block is of, and how many of this set come before it in the block."""
    start = np.random.default_rng([seed, block, len(counts)]).random(len(counts))
    places = [(np.arange(count) + start[k]) / count for k, count in enumerate(counts)]
    sets = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort(np.concatenate(places), kind="stable")
    return sets[order], ranks[order]


@functools.lru_cache(maxsize=32)
def _permutation(seed: int, epoch: int, which: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, which, size]).permutation(size)
