"""pass@k: the chance that at least one of k samples is right."""

import math
from collections.abc import Iterable

from cgrpo_jax.errors import UserError


def pass_at_k(num_correct_Q: Iterable[int], num_samples: int, k: int) -> float:
    """Mean over questions of the unbiased estimator `1 - C(n - c, k) / C(n, k)` (arXiv 2107.03374, Eq. 1).

    Among n samples of which c are right, it is the share of the subsets of size k that hold a right one.
    `pass_at_k([1, 0], num_samples=4, k=2) = (1/2 + 0) / 2 = 0.25`.

    Args:
      num_correct_Q: c, right samples of each question, integers in `0 .. num_samples`.
      num_samples: n, samples of every question.
      k: subset size, in `1 .. num_samples`.

    Raises:
      UserError: k is not in `1 .. num_samples`.
      ValueError: there is no question, or a count is not in `0 .. num_samples`.
    """
    if not 1 <= k <= num_samples:
        raise UserError(f"pass@{k} can't be estimated from {num_samples} samples; use 1 <= k <= {num_samples}.")
    counts = list(num_correct_Q)
    if not counts:
        raise ValueError("pass@k of no questions is undefined; pass at least one count.")
    for count in counts:
        if not 0 <= count <= num_samples:
            raise ValueError(f"{count} correct samples of {num_samples} are impossible; use 0 .. {num_samples}.")
    # Python's integers are exact and their quotient is rounded once, so C(256, 128), about 6e75, is no problem, and
    # nothing cancels as it would in 1 - quotient.
    subsets = math.comb(num_samples, k)
    return math.fsum((subsets - math.comb(num_samples - c, k)) / subsets for c in counts) / len(counts)
