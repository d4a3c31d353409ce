"""The summary of an evaluation's answers: numbers with their intervals, by benchmark and on average, and a table.

Everything is computed from the lines of `samples.jsonl`, so a run that was interrupted gives the same numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax.evaluation.estimators import bootstrap, bootstrap_ratios, group_sizes, maj_at_k, pass_at_k, wilson

_UNNAMED = "held-out"  # problems without a source, such as generated chains
_SHARES = ("pass@1", "refined@1", "oracle")  # of questions: one trial each
_COUNTS = ("questions", "fixed", "broken", "ungraded")
_COLUMNS = 5  # benchmarks side by side
# What a critic is worth at test time, of answers with a verdict of the grader before and after.
CRITIC = {
    "verdict_accuracy": "of the answers that have a critique, those about which it is right",
    "false_right": "of the wrong answers, those that it calls right",
    "false_wrong": "of the right answers, those that it calls wrong",
    "fix_rate": "of the wrong answers, those that are right in the end",
    "break_rate": "of the right answers, those that are wrong in the end",
    "utility": "of the refinements, the mean: 1 better than the answer, 0.5 alike, 0 worse",
}


def summarize(lines: Iterable[Mapping[str, Any]], *, ks: Sequence[int], pass_threshold: float, seed: int) -> dict:
    """Returns the numbers of each benchmark, and their mean over benchmarks.

    Args:
      lines: of `samples.jsonl`.
      ks: the k of pass@k and maj@k.
      pass_threshold: reward from which a response is right.
      seed: of the bootstrap.

    Returns:
      `{"benchmarks": {NAME: numbers}, "mean": numbers}`. Numbers are `questions`; accuracies as `{"value", "low",
      "high"}`: `pass@1` (greedy), `pass@k`, `mean@n`, `maj@k`, `refined@1`, `oracle`; lengths in tokens and shares of
      truncated texts; of test-time refinement the shares `critiqued_wrong` and `malformed`, and how many answers it
      `fixed` (wrong to right) and `broken` (right to wrong), of those with a verdict before and after it; and how many
      texts are `ungraded`, because their grader failed: in accuracies they count as wrong. What the critic is worth
      (`CRITIC`) is of answers that have a verdict before and after. The mean has what all benchmarks have; it counts
      each benchmark once, whatever its number of questions, and adds up what is counted; of several it has no `CRITIC`.
    """
    by_source: dict[str, list] = {}
    for line in lines:
        by_source.setdefault(line["source"] or _UNNAMED, []).append(_of_question(line, ks, pass_threshold))
    critics = {name: _of_critic([row["critic"] for row in rows], seed) for name, rows in by_source.items()}
    accuracies = {name: _columns(rows, "accuracy") for name, rows in by_source.items()}
    others = {name: _others(rows) for name, rows in by_source.items()}
    benchmarks = {
        name: _with_intervals([values], seed) | critics[name] | others[name] for name, values in accuracies.items()
    }
    mean = _with_intervals(list(accuracies.values()), seed) | _mean(others.values())
    return {"benchmarks": benchmarks, "mean": mean | (next(iter(critics.values())) if len(critics) == 1 else {})}


def _of_question(line: Mapping[str, Any], ks: Sequence[int], pass_threshold: float) -> dict[str, dict[str, float]]:
    """Returns the accuracies of a question, and what else is averaged or counted, by name."""
    right = line["greedy_reward"] >= pass_threshold
    accuracy: dict[str, float] = {"pass@1": right}
    critic: dict[str, float] = {}
    other: dict[str, float] = {
        "questions": 1, "mean_length": line["greedy_length"], "truncated": line["greedy_truncated"],
        "ungraded": line["ungraded"],
    }  # fmt: skip
    if "samples" in line:
        number = len(line["samples"])
        rights = [reward >= pass_threshold for reward in line["rewards"]]
        accuracy |= {f"pass@{k}": pass_at_k([sum(rights)], number, k) for k in ks if k > 1}
        accuracy[f"mean@{number}"] = sum(rights) / number
        if line["votes"] is not None:
            sizes = group_sizes(line["votes"], rights)
            accuracy |= {f"maj@{k}": maj_at_k(*sizes, num_samples=number, k=k) for k in ks if k > 1}
        other["samples_mean_length"] = sum(line["lengths"]) / number
        other["samples_truncated"] = sum(line["truncated"]) / number
    if "refined_reward" in line:
        after = line["refined_reward"] >= pass_threshold
        changed = after != right and not line["refined_ungraded"]
        accuracy["refined@1"] = after
        critic = {} if line["refined_ungraded"] else _critic(line, bool(right), bool(after))
        other |= {
            "critiqued_wrong": line["verdict"] is False,
            "malformed": line["verdict"] is None,
            "fixed": changed and after,
            "broken": changed and right,
        }
    if "oracle_reward" in line:
        accuracy["oracle"] = line["oracle_reward"] >= pass_threshold
    return {"accuracy": accuracy, "other": other, "critic": critic}


def _critic(line: Mapping[str, Any], before: bool, after: bool) -> dict[str, float]:
    """Returns what a critique of an answer says and achieves, by names of `CRITIC`: of what it counts for.

    One that its endpoint has left out says nothing, and has no verdict that could be wrong.
    """
    verdict, found = line["verdict"], {}
    if line["critique"] is not None:
        found |= {"verdict_accuracy": verdict is before}
        found |= {"false_wrong" if before else "false_right": verdict is (not before)}
    found |= {"break_rate" if before else "fix_rate": after != before}
    return found | ({"utility": (1 + after - before) / 2} if verdict is False else {})


def _of_critic(rows: Sequence[Mapping[str, float]], seed: int) -> dict[str, dict[str, float | None]]:
    """Returns the shares of `CRITIC` with the bootstrap's interval over questions, of those that there are."""
    names = [name for name in CRITIC if any(name in row for row in rows)]
    if not names:
        return {}
    part_MQ = np.array([[row.get(name, 0.0) for row in rows] for name in names], np.float64)
    whole_MQ = np.array([[name in row for row in rows] for name in names], np.float64)
    low_M, high_M = bootstrap_ratios(part_MQ, whole_MQ, seed=seed)
    ends = [[None if np.isnan(end) else float(end) for end in some] for some in (low_M, high_M)]
    values_M = part_MQ.sum(axis=1) / whole_MQ.sum(axis=1)
    return {
        name: {"value": float(value), "low": low, "high": high}
        for name, value, low, high in zip(names, values_M, *ends, strict=True)
    }


def _columns(rows: Sequence[Mapping], which: str) -> dict[str, np.ndarray]:
    """Returns `[Q]` values by name, of what all questions have."""
    names = [name for name in rows[0][which] if all(name in row[which] for row in rows)]
    return {name: np.array([row[which][name] for row in rows], np.float64) for name in names}


def _others(rows: Sequence[Mapping]) -> dict[str, float]:
    columns = _columns(rows, "other")
    return {name: int(v.sum()) if name in _COUNTS else float(v.mean()) for name, v in columns.items()}


def _mean(others: Iterable[Mapping[str, float]]) -> dict[str, float]:
    others = list(others)
    names = [name for name in others[0] if all(name in one for one in others)]
    values = {name: [one[name] for one in others] for name in names}
    return {name: sum(v) if name in _COUNTS else float(np.mean(v)) for name, v in values.items()}


def _with_intervals(groups: Sequence[Mapping[str, np.ndarray]], seed: int) -> dict[str, dict[str, float]]:
    """Returns `{"value", "low", "high"}` of each accuracy: Wilson's interval for one share, else the bootstrap's."""
    names = [name for name in groups[0] if all(name in group for group in groups)]
    low_M, high_M = bootstrap([np.stack([group[name] for name in names]) for group in groups], seed=seed)
    numbers = {}
    for m, name in enumerate(names):
        low, high = float(low_M[m]), float(high_M[m])
        if name in _SHARES and len(groups) == 1:
            low, high = wilson(int(groups[0][name].sum()), len(groups[0][name]))
        value = float(np.mean([group[name].mean() for group in groups]))
        numbers[name] = {"value": value, "low": low, "high": high}
    return numbers


def table(summary: Mapping[str, Any]) -> str:
    """Returns a summary as a table: a row for each number, a column for each benchmark and one for their mean."""
    columns = dict(summary["benchmarks"])
    if len(columns) > 1:
        columns["mean"] = summary["mean"]
    names = list(columns)
    blocks = [names[first : first + _COLUMNS] for first in range(0, len(names), _COLUMNS)]
    text = "\n".join(_block({name: columns[name] for name in block}) for block in blocks)
    return text + said_of_ungraded({name: one.get("ungraded", 0) for name, one in summary["benchmarks"].items()})


def said_of_ungraded(numbers: Mapping[str, int]) -> str:
    """Returns a line that says how many texts have no verdict, by where they are; nothing where all have one."""
    where = ", ".join(f"{name}: {number}" for name, number in numbers.items() if number)
    if not where:
        return ""
    return (
        f"{sum(numbers.values())} texts have no verdict, because their grader failed ({where}); they count as wrong\n"
    )


def _block(columns: Mapping[str, Mapping]) -> str:
    rows = list(dict.fromkeys(row for numbers in columns.values() for row in numbers if row != "ungraded"))
    rows.sort(key=lambda row: row != "questions")  # else in the order in which they came
    return aligned(
        [["", *columns], *([row, *(cell(numbers.get(row)) for numbers in columns.values())] for row in rows)]
    )


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines whose columns are aligned, the first to the left."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def cell(number: Any) -> str:
    """Returns a number, with its interval if it has one, as a cell of a table; a dash for what there is not.

    An interval whose ends are None is of one question, and is said to be.
    """
    if number is None:
        return "-"
    if isinstance(number, Mapping):
        if number["low"] is None:
            return f"{number['value']:.3f} (of one question: no interval)"
        return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"
    return str(number) if isinstance(number, int) else f"{number:.3f}"


def share(successes: int, number: int) -> dict[str, float] | None:
    """Returns a share with Wilson's interval; None of nothing."""
    if not number:
        return None
    low, high = wilson(successes, number)
    return {"value": successes / number, "low": low, "high": high}
