"""maj@k: the chance that the most frequent answer among k samples is right."""

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from cgrpo_jax.errors import UserError

MOST_SAMPLES = 1024  # of a question: numbers of subsets beyond it are no float64


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
    if kind in ("math", "numeric"):
        try:
            value = Decimal(text.replace("\u2212", "-").replace("$", "").replace(",", "").replace(" ", ""))
        except InvalidOperation:
            return text
        if value.is_finite() and abs(value.adjusted()) < 300:  # what a float holds
            return f"{float(value):.12g}" if value else "0"
    return text


def is_number(form: str) -> bool:
    """Is a normal form that of a number? Two such are equal or not; nobody needs to be asked."""
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
