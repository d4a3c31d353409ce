"""Which checkpoint of a run is its best: by a number of the held-out evaluation that `eval.keep_best` names.

    better(None, "pass@1", {"pass@1": 0.25}, step=50)  # {"step": 50, "metric": "pass@1", "value": 0.25}

What it returns is kept with that checkpoint and every later one (`initial_state.Progress`), so that the weights and the
word of which are the best are written as one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

LOSS = "loss"  # of held-out rows, which `finetune` alone has


def metrics(ks: Sequence[int], num_samples: int) -> tuple[str, ...]:
    """Returns the names of the numbers of an evaluation; see `benchmark.evaluate`.

    Args:
      ks: of pass@k.
      num_samples: a question.
    """
    sampled = [*(f"pass@{k}" for k in ks if k > 1), f"mean@{num_samples}"] if max(ks) > 1 else []
    return ("pass@1", *dict.fromkeys(sampled), "mean_length", "truncated", "ungraded")


def check(wanted: str, known: Sequence[str]) -> str | None:
    """Returns what is wrong with a value of `eval.keep_best`, or None; `known` is what `metrics` returns."""
    if not wanted or wanted.removeprefix("-") in known:
        return None
    return (
        f"{wanted!r} is no number of the evaluation; use one of {', '.join(known)}, with a - before it for the lowest."
    )


def better(
    best: dict[str, Any] | None, wanted: str, result: Mapping[str, float] | None, *, step: int
) -> dict[str, Any] | None:
    """Returns the best of a run after another evaluation: the earlier of two that are equal; NaN is never the best.

    Args:
      best: before it; one by another metric counts no more.
      wanted: the metric whose highest value is best, or with a `-` before it whose lowest.
      result: the evaluation's numbers, by name; None where there was none.
      step: of the weights.

    Returns:
      `step`, `metric` (as it was wanted) and `value`; None where nothing was evaluated yet.
    """
    before = best if best and best["metric"] == wanted else None
    value, sign = (result or {}).get(wanted.removeprefix("-")), -1 if wanted.startswith("-") else 1
    if value is None or math.isnan(value):
        return before
    if before is None or sign * value > sign * before["value"]:
        return {"step": step, "metric": wanted, "value": value}
    return before
