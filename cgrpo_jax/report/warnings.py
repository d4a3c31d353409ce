"""What in a run deserves a look: each with its evidence, what it means, and what to try."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
LAST = 10  # iterations that say how a run is now


@dataclasses.dataclass(frozen=True)
class Warning:
    """Something to look at.

    Attributes:
      title: what it is, in a few words.
      evidence: the numbers.
      means: what it means for training.
      remedy: what to try.
    """

    title: str
    evidence: str
    means: str
    remedy: str


def find(metrics: Sequence[Row], dead: Sequence[float | None] = ()) -> list[Warning]:
    """Returns what a run warns of, the gravest first; nothing where all is well.

    Args:
      metrics: its rows.
      dead: of each row, the share of questions whose texts have no advantage; None where that is not known.
    """
    checks = (*_LOST, functools.partial(_dead, dead=dead), *_CHECKS)
    return [found for check in checks if metrics and (found := check(metrics))]


def recent(metrics: Sequence[Row], name: str) -> float | None:
    """Returns the mean of a metric over the last iterations that have it; None where none has."""
    values = _values(metrics, name)[-LAST:]
    return statistics.fmean(values) if values else None


def _values(metrics: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in metrics if isinstance(row.get(name), int | float)]


def _total(metrics: Sequence[Row], name: str) -> int:
    return int(sum(_values(metrics, name)))


def _skipped(metrics: Sequence[Row]) -> Warning | None:
    number = _total(metrics, "skipped_updates")
    return None if not number else Warning(
        "updates were skipped",
        f"{number} updates had a gradient that was not finite",
        "Nothing was learned from their questions.",
        "Lower optimizer.learning_rate; where a run stopped of it, nonfinite_rows.jsonl has the rows.",
    )  # fmt: skip


def _graders(metrics: Sequence[Row]) -> Warning | None:
    failed, late = _total(metrics, "grade/failures"), _total(metrics, "grade/timeouts")
    return None if not failed + late else Warning(
        "the grader failed",
        f"{failed} texts got no verdict, {late} ran into the time limit",
        "Texts without a verdict train nothing; those that ran out of time count as wrong.",
        "Filter by \"no verdict\" and read what the grader said; raise the grader's time limit.",
    )  # fmt: skip


def _dead(metrics: Sequence[Row], dead: Sequence[float | None]) -> Warning | None:
    values = [share for share in dead[-LAST:] if share is not None]
    share = statistics.fmean(values) if values else 0.0
    if share < 0.6:
        return None
    easy = recent(metrics, "frac_all_right") or 0.0
    evidence = f"{share:.0%} of the questions of the last {len(values)} iterations; all responses right: {easy:.0%}"
    means = "All their texts have the same reward, so no advantage is left."
    if easy > share / 2:
        return Warning("most questions are too easy by now", evidence, means, "Harder ones (data.pass_rates), or stop.")
    remedy = "Questions nearer to what the model can do (data.pass_rates), more responses, or a critic that says more."
    return Warning("most questions teach nothing", evidence, means, remedy)


def _entropy(metrics: Sequence[Row]) -> Warning | None:
    values = _values(metrics, "entropy")
    if len(values) < 5:
        return None
    for at in range(3, len(values)):
        usual = statistics.median(values[max(0, at - 5) : at])
        if usual > 0.01 and values[at] > 3 * usual:
            return Warning(
                "entropy jumps",
                f"from {usual:.2f} to {values[at]:.2f} nats at a token, {at} rows of metrics.jsonl after the first",
                "The policy suddenly writes far more at random, often after a step that was too large.",
                "Lower optimizer.learning_rate, more optimizer.warmup_updates, or clip refined tokens.",
            )
    first, last = statistics.fmean(values[:3]), statistics.fmean(values[-3:])
    return None if not (first > 0.05 and last < first / 20) else Warning(
        "entropy is nearly gone",
        f"from {first:.3f} to {last:.4f} nats at a token",
        "All responses to a question are nearly the same: there is little left to compare.",
        "This is fine where held-out accuracy is high; else a lower learning rate or objective.entropy_coef.",
    )  # fmt: skip


def _critic(metrics: Sequence[Row]) -> Warning | None:
    valid = recent(metrics, "critic/valid")
    return None if valid is None or valid >= 0.2 else Warning(
        "the critic is hardly ever right",
        f"{valid:.0%} of its first critiques agree with the verifier",
        "Refinements are led by verdicts that are wrong or can't be read.",
        "Let the critic see the answer (critic.sees), give it more tokens (critic.max_length), or use another.",
    )  # fmt: skip


def _mentions(metrics: Sequence[Row]) -> Warning | None:
    share = recent(metrics, "refine/mentions_critique")
    return None if share is None or share < 0.1 else Warning(
        "trained texts speak of the critique",
        f"{share:.0%} of the kept refinements of the last iterations",
        "The policy learns to answer as if it had seen a critique that is not there.",
        "refine.drop_critique_mentions, or another prompts.refine.",
    )  # fmt: skip


def _cut_off(metrics: Sequence[Row]) -> Warning | None:
    share = recent(metrics, "completions/clipped_ratio")
    return None if share is None or share < 0.2 else Warning(
        "many responses are cut off",
        f"{share:.0%} of the last iterations' reach the greatest length",
        "They are graded without their end, most often as wrong.",
        "Raise max_response_length, or ask for shorter answers.",
    )  # fmt: skip


def _gap(metrics: Sequence[Row]) -> Warning | None:
    gap = recent(metrics, "sampling/sampling_logp_difference/mean")
    return None if gap is None or gap < 0.05 else Warning(
        "sampler and trainer disagree",
        f"by {gap:.3f} nats at a token, of the same weights",
        "Ratios differ from 1 before anything was learned, and clipping acts on that.",
        "objective.old_logp='trainer'; compute in float32 to see whether rounding is the cause.",
    )  # fmt: skip


def _unanswered(metrics: Sequence[Row]) -> Warning | None:
    number = _total(metrics, "critic/unanswered")
    return None if not number else Warning(
        "critiques that nobody wrote",
        f"the endpoint did not answer {number} times",
        "A rule's critique stood in for them.",
        "Look at critic/http_failed/... in metrics.jsonl for the reason.",
    )  # fmt: skip


Check = Callable[[Sequence[Row]], Warning | None]
_LOST: Sequence[Check] = (_skipped, _graders)  # whole texts
_CHECKS: Sequence[Check] = (
    _entropy,
    _critic,
    _mentions,
    _cut_off,
    _gap,
    _unanswered,
)
