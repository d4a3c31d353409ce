"""The numbers of a recipe's steps as tables: a table for what collects, one for what learns, one for what evaluates."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cgrpo_jax.evaluation import collection_summary
from cgrpo_jax.evaluation.summary import aligned, cell

_LEARNS = ("updates", "num_tokens", "rows")
_LEFT_OUT = ("questions", "mean_length", "truncated", "samples_mean_length", "samples_truncated")


def tables(steps: Iterable[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Returns the tables of a recipe's steps; a row for each number, a column for each step.

    Args:
      steps: of each its name, its command, and the summary that this has written.
    """
    steps = list(steps)
    columns = {
        "collected": {name: _collected(one) for name, command, one in steps if command == "collect"},
        "learnt": {name: _learnt(one) for name, command, one in steps if command in ("train", "finetune")},
        "kept rows, by first pass rate": {name: one["kept"] for name, _, one in steps if "kept" in one},
        "held-out": {name: _evaluated(one) for name, command, one in steps if command == "evaluate"},
    }
    return "".join(f"{_table(title, some)}\n" for title, some in columns.items() if some)


def _collected(summary: Mapping[str, Any]) -> dict[str, Any]:
    counts = ("questions", "responses", "critiques", "refinements")
    return {name: summary[name] for name in (*counts, *collection_summary.SHOWN) if name in summary}


def _learnt(summary: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: summary[name] for name in _LEARNS if name in summary}
    for when in ("before", "after"):
        numbers = summary[f"eval_{when}"] or {}
        found |= {f"{name} {when}": numbers[name] for name in ("loss", "pass@1") if name in numbers}
    return found


def _evaluated(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary["mean"].items() if name not in _LEFT_OUT}


def _table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for numbers in columns.values() for name in numbers))
    rows: Sequence[Sequence[str]] = [
        [title, *columns],
        *([name.replace("_", " "), *(cell(numbers.get(name)) for numbers in columns.values())] for name in names),
    ]
    return aligned(rows)
