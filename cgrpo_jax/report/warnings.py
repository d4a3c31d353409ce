"""What in a run deserves a look: each with its evidence, what it means, and what to try."""

import dataclasses
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
    return [found for check in _CHECKS if metrics and (found := check(metrics, dead))]


def recent(metrics: Sequence[Row], name: str) -> float | None:
    """Returns the mean of a metric over the last iterations that have it; None where none has."""
    values = _values(metrics, name)[-LAST:]
    return statistics.fmean(values) if values else None


def total(metrics: Sequence[Row], name: str) -> int:
    """Returns the sum of a metric over all iterations."""
    return int(sum(_values(metrics, name)))


def _values(metrics: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in metrics if isinstance(row.get(name), int | float)]


@dataclasses.dataclass(frozen=True)
class _Limit:
    """A warning where what is made of some metrics, added up, reaches a limit.

    Attributes:
      names: of the metrics.
      of: what is made of each: `recent` or `total`.
      limit: from which it warns, or where `below` is set, below which.
      title, evidence, means, remedy: of the warning; in `evidence` the numbers stand for {0}, {1} ...
    """

    names: Sequence[str]
    of: Callable[[Sequence[Row], str], float | None]
    limit: float
    title: str
    evidence: str
    means: str
    remedy: str
    below: bool = False

    def __call__(self, metrics: Sequence[Row], dead: Sequence[float | None]) -> Warning | None:
        del dead
        numbers = [number for name in self.names if (number := self.of(metrics, name)) is not None]
        if not numbers or (sum(numbers) >= self.limit) == self.below:
            return None
        return Warning(self.title, _spaced(self.evidence.format(*numbers)), self.means, self.remedy)


def _percent(share: float) -> str:
    return _spaced(f"{share:.0%}")


def _spaced(text: str) -> str:
    """Writes percentages as the rest of the page does: "5 %"."""
    return text.replace("%", " %")


def _dead(metrics: Sequence[Row], dead: Sequence[float | None]) -> Warning | None:
    values = [share for share in dead[-LAST:] if share is not None]
    share = statistics.fmean(values) if values else 0.0
    if share < 0.6:
        return None
    easy = recent(metrics, "frac_all_right") or 0.0
    evidence = f"{_percent(share)} of the questions of the last {len(values)} iterations"
    evidence += f", while {_percent(easy)} had right responses alone" if easy else ""
    means = "All texts of such a question have the same reward, so no advantage is left."
    if easy > share / 2:
        return Warning("most questions are too easy by now", evidence, means, "Harder ones (data.pass_rates), or stop.")
    remedy = "Questions nearer to what the model can do (data.pass_rates), more responses, or a critic that says more."
    return Warning("most questions teach nothing", evidence, means, remedy)


def _entropy(metrics: Sequence[Row], dead: Sequence[float | None]) -> Warning | None:
    del dead
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


_CHECKS: Sequence[Callable[[Sequence[Row], Sequence[float | None]], Warning | None]] = (
    _Limit(
        ("skipped_updates",), total, 1,
        "updates were skipped",
        "{0} updates had a gradient that was not finite",
        "Nothing was learned from their questions.",
        "Lower optimizer.learning_rate; where a run stopped of it, nonfinite_rows.jsonl has the rows.",
    ),
    _Limit(
        ("grade/failures", "grade/timeouts"), total, 1,
        "the grader failed",
        "{0} texts got no verdict, {1} ran into the time limit",
        "Texts without a verdict train nothing; those that ran out of time count as wrong.",
        "Filter by \"no verdict\" and read what the grader said; raise the grader's time limit.",
    ),
    _dead,
    _entropy,
    _Limit(
        ("critic/valid",), recent, 0.2,
        "the critic is hardly ever right",
        "{0:.0%} of its first critiques agree with the verifier",
        "Refinements are led by verdicts that are wrong or can't be read.",
        "Let the critic see the answer (critic.sees), give it more tokens (critic.max_length), or use another.",
        below=True,
    ),
    _Limit(
        ("refine/mentions_critique",), recent, 0.1,
        "trained texts speak of the critique",
        "{0:.0%} of the kept refinements of the last iterations",
        "The policy learns to answer as if it had seen a critique that is not there.",
        "refine.drop_critique_mentions, or another prompts.refine.",
    ),
    _Limit(
        ("completions/clipped_ratio",), recent, 0.2,
        "many responses are cut off",
        "{0:.0%} of the last iterations' reach the greatest length",
        "They are graded without their end, most often as wrong.",
        "Raise max_response_length, or ask for shorter answers.",
    ),
    _Limit(
        ("sampling/sampling_logp_difference/mean",), recent, 0.05,
        "sampler and trainer disagree",
        "by {0:.3f} nats at a token, of the same weights",
        "Ratios differ from 1 before anything was learned, and clipping acts on that.",
        "objective.old_logp='trainer'; compute in float32 to see whether rounding is the cause.",
    ),
    _Limit(
        ("critic/unanswered",), total, 1,
        "critiques that nobody wrote",
        "the endpoint did not answer {0} times",
        "A rule's critique stood in for them.",
        "Look at critic/http_failed/... in metrics.jsonl for the reason.",
    ),
)  # fmt: skip
