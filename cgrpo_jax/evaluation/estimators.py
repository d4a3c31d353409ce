"""Estimators of an evaluation: pass@k, maj@k, and 95 % intervals of shares and of means over questions."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.numeric import read_number

MOST_SAMPLES = 1024  # of a question: numbers of subsets beyond it are no float64
_AT_ONCE = 2**22  # draws of questions that are held in memory


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


# --- majority votes ---------------------------------------------------------------------------------------------------


def maj_at_k(right: int, wrong: Sequence[int], *, num_samples: int, k: int) -> float:
    """The share of the subsets of k samples whose majority vote is right: unbiased, exact, and without a seed.

    Equal answers vote together. The answer with the most votes wins, and of those with equally many the one that is
    seen first. Samples come in no order of their own, so the average is also one over all orders of a subset, in which
    each of t + 1 answers with equally many votes is first equally often:

        maj@k = 1 / C(n, k) sum_m C(r, m) sum_t 1/(t + 1) [x^(k-m) y^t] (1 + x)^b prod_j P_m,j(x, y),
        P_m,j(x, y) = sum_(i < m) C(w_j, i) x^i + C(w_j, m) x^m y

    with r votes for the right answer, w_j for wrong answer j, and b samples that have no answer and no vote; m is how
    many votes the right one gets. It is what the mean over random ordered subsets tends to.

    Example: of the three pairs of [right, right, wrong] one is right, and two are ties, which count 1/2:
      >>> maj_at_k(2, [1], num_samples=3, k=2)
      0.6666666666666666

    Args:
      right: samples with the right answer.
      wrong: samples with each wrong answer.
      num_samples: n, samples of the question; those in no group have no answer.
      k: subset size, in `1 .. num_samples`.

    Raises:
      UserError: k is not in `1 .. num_samples`, or there are more than 1024 samples.
      ValueError: there are more votes than samples, or a wrong answer without one.
    """
    if not 1 <= k <= num_samples <= MOST_SAMPLES:
        raise UserError(
            f"maj@{k} can't be computed from {num_samples} samples; use 1 <= k <= samples <= {MOST_SAMPLES}."
        )
    if right < 0 or right + sum(wrong) > num_samples or min(wrong, default=1) < 1:
        raise ValueError(f"{right} right and {list(wrong)} wrong votes of {num_samples} samples are impossible.")
    total = 0.0
    for votes in range(1, min(right, k) + 1):
        # Nothing is subtracted, so nothing cancels, and no number exceeds C(1024, 512), which is a float64.
        total += math.comb(right, votes) * _ways(votes, wrong, num_samples - right, k - votes)
    return total / math.comb(num_samples, k)


def _ways(votes: int, wrong: Sequence[int], others: int, rest: int) -> float:
    """In how many ways the other `rest` samples, of `others`, let `votes` votes win; ties count as what they share."""
    rivals = [size for size in wrong if size >= votes]
    harmless = others - sum(rivals)  # no vote, or an answer with too few samples to win
    ties = min(len(rivals), rest // votes)
    ways_TX = np.zeros((ties + 1, rest + 1))  # t answers tie, x samples are taken
    ways_TX[0] = [float(math.comb(harmless, x)) for x in range(rest + 1)]
    for size in rivals:
        new_TX = np.zeros_like(ways_TX)
        for i in range(min(votes - 1, rest) + 1):
            new_TX[:, i:] += float(math.comb(size, i)) * ways_TX[:, : rest + 1 - i]
        if rest >= votes:
            new_TX[1:, votes:] += float(math.comb(size, votes)) * ways_TX[:-1, : rest + 1 - votes]
        ways_TX = new_TX
    return float((ways_TX[:, rest] / np.arange(1, ties + 2)).sum())


def normal_form(answer: str, kind: str) -> str:
    """Returns an extracted answer so that equal ones are equal text: spaces squeezed, numbers by their value.

    Example:
      >>> normal_form("$1,200.0", "numeric") == normal_form("1200", "numeric")
      True

    Args:
      answer: as a grader extracted it.
      kind: of the grader; "math" and "numeric" compare numbers by value, "choice" takes no notice of case.
    """
    text = " ".join(answer.split())
    if kind == "choice":
        return text.casefold()
    if kind == "numeric":
        number = read_number(text)
        return text if number is None else f"{number:.12g}" if number else "0"
    if kind == "math":
        try:
            value = Decimal(text.replace("\u2212", "-").replace("$", "").replace(",", "").replace(" ", ""))
        except InvalidOperation:
            return text
        if value.is_finite() and abs(value.adjusted()) < 300:  # what a float holds
            return f"{float(value):.12g}" if value else "0"
    return text


def is_number(form: str) -> bool:
    """Is a normal form that of a number? Two such are equal or not; no grader needs to be asked."""
    try:
        return Decimal(form).is_finite()
    except InvalidOperation:
        return False


def by_votes(forms: Sequence[str]) -> list[str]:
    """Returns the distinct forms, those with the most votes first, of equally many the one seen first."""
    return [form for form, _ in Counter(forms).most_common()]


def group_sizes(votes: Sequence[int | None], right: Sequence[bool]) -> tuple[int, list[int]]:
    """Returns (votes for the right answer, votes for each wrong one) of a question's samples.

    Args:
      votes: the number of each sample's answer; None for a sample without one.
      right: whether each sample is right.
    """
    wrong = Counter(vote for vote, r in zip(votes, right, strict=True) if vote is not None and not r)
    return sum(right), list(wrong.values())


# --- intervals --------------------------------------------------------------------------------------------------------


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
    from scipy import stats  # takes a second to import

    interval = stats.binomtest(successes, number).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


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


def bootstrap_ratios(
    part_MQ: np.ndarray, whole_MQ: np.ndarray, *, seed: int, num_resamples: int = 2000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of ratios of sums over questions (Efron, 1979): shares of what a question has several of.

        theta* = sum_q part_q / sum_q whole_q,  Q questions q drawn with replacement

    What belongs to one question is drawn together: eight responses to it are not eight independent trials. Draws in
    which a ratio is of nothing are left out of its interval. Where all of the parts are 0, or all the whole, draws are
    alike, and the interval is Wilson's of the questions that have any, none or all of which succeed.

    Example:
      >>> low, high = bootstrap_ratios(np.array([[0.0, 2.0]]), np.array([[2.0, 2.0]]), seed=0)
      >>> low.tolist(), high.tolist()
      ([0.0], [1.0])

    Args:
      part_MQ, whole_MQ: of M metrics, each question's share in the numerator and in the denominator; of each metric at
        least one denominator is positive.
      seed: of the draws; the same seed gives the same interval.
      num_resamples: how many times all questions are drawn.
      level: the share of such intervals that hold the true ratio.

    Returns:
      (`[M]` lower ends, `[M]` upper ends)
    """
    metrics, questions = part_MQ.shape
    drawn_MR = np.empty((metrics, num_resamples))
    rng, at_once = np.random.default_rng([seed, questions]), max(1, _AT_ONCE // questions)
    for first in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - first)
        drawn_RQ = rng.integers(questions, size=(size, questions))
        with np.errstate(invalid="ignore"):
            for metric in range(metrics):
                parts, wholes = part_MQ[metric, drawn_RQ].sum(axis=1), whole_MQ[metric, drawn_RQ].sum(axis=1)
                drawn_MR[metric, first : first + size] = parts / wholes
    low_M, high_M = np.nanquantile(drawn_MR, [(1 - level) / 2, (1 + level) / 2], axis=1)
    for metric in range(metrics):
        any_of_it = whole_MQ[metric] > 0
        number, part = int(any_of_it.sum()), part_MQ[metric][any_of_it]
        if not part.any() or (part == whole_MQ[metric][any_of_it]).all():
            low_M[metric], high_M[metric] = wilson(number if part.any() else 0, number, level=level)
    return low_M, high_M
