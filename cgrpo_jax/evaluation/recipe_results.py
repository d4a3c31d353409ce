"""The numbers of a recipe's steps: read from its folder; as tables, for what collects, what learns, what evaluates."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import collection_summary
from cgrpo_jax.evaluation.summary import aligned, cell
from cgrpo_jax.runs import recipes
from cgrpo_jax.runtime import places
from cgrpo_jax.runtime.json_files import read_json, read_json_object

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


def results(planned: Sequence[recipes.Planned], workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """Returns the numbers of a recipe's steps, by their names; None unless all have ended, and were of this recipe.

    A folder whose files can't be read is of none: the recipe is run again, and says what is wrong with them.
    """
    folder = places.place(workdir)
    try:
        kept, names = read_json_object(folder / "recipe.json")["steps"], [one.step.name for one in planned]
        found = {one["step"]: one for one in read_json(folder / "results.json")}
        other = recipes.changed(kept, recipes.kept_of(planned)["steps"], done=names)
    except (UserError, LookupError, TypeError):
        return None
    return None if other or list(found) != names else found


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
