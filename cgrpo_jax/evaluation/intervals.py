"""95 % confidence intervals: Wilson's for shares, the bootstrap over questions for anything that is a mean of them."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

_AT_ONCE = 2**22  # draws of questions that are held in memory


def wilson(successes: int, number: int, *, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson, 1927).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  p = successes / n

    where z is the normal quantile at `1/2 + level/2`. It stays within 0 and 1, and has a width where p is 0 or 1.

    Example:
      >>> wilson(8, 10)
      (0.4901..., 0.9433...)

    Args:
      successes: of independent trials, in `0 .. number`.
      number: n, the trials; at least 1.
      level: the share of such intervals that hold the true share.

    Raises:
      ValueError: the counts are impossible.
    """
    if not (number >= 1 and 0 <= successes <= number):
        raise ValueError(f"{successes} successes of {number} trials are impossible; use 0 .. number, number >= 1.")
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    share = successes / number
    middle = share + z * z / (2 * number)
    half = z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    low, high = ((middle + sign * half) / (1 + z * z / number) for sign in (-1, 1))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    return (0.0 if successes == 0 else low), (1.0 if successes == number else high)


def bootstrap(
    groups: Sequence[np.ndarray], *, seed: int, num_resamples: int = 2000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of a mean over groups of their means over questions (Efron, 1979).

        theta* = mean over groups g of 1/Q_g sum of Q_g values drawn from group g with replacement

    The interval is from the `(1 - level) / 2` to the `(1 + level) / 2` quantile of theta* over the resamples. Each
    group is resampled by itself: a benchmark keeps its number of questions. All metrics see the same questions drawn.

    Example:
      >>> low, high = bootstrap([np.array([[0.0, 1.0, 0.0, 1.0]])], seed=0)
      >>> low.tolist(), high.tolist()
      ([0.0], [1.0])

    Args:
      groups: of each group `[M, Q_g]`, M metrics of each of its questions; one group for one benchmark.
      seed: of the draws; the same seed gives the same interval.
      num_resamples: how many times all questions are drawn.
      level: the share of such intervals that hold the true mean.

    Returns:
      (`[M]` lower ends, `[M]` upper ends)

    Raises:
      ValueError: there is no group, or one without questions.
    """
    if not groups or any(group.shape[1] < 1 for group in groups):
        raise ValueError("the bootstrap needs at least one group, and a question in each.")
    total_RM = np.zeros((num_resamples, groups[0].shape[0]))
    for number, group_MQ in enumerate(groups):
        rng, questions = np.random.default_rng([seed, number]), group_MQ.shape[1]
        at_once = max(1, _AT_ONCE // questions)
        for first in range(0, num_resamples, at_once):
            size = min(at_once, num_resamples - first)
            drawn_RQ = rng.integers(questions, size=(size, questions))
            for metric, values_Q in enumerate(group_MQ):
                total_RM[first : first + size, metric] += values_Q[drawn_RQ].mean(axis=1)
    low_M, high_M = np.quantile(total_RM / len(groups), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low_M, high_M
