"""The page of all studies, of their JSON alone: tables, differences with intervals, and what the paper says of them.

    python launch/study.py --page

An arm is compared with another one seed by seed, since both start from the same weights: of the differences of the
deciding column the mean and its 95 % interval by Student's t. Where the paper says that the arm is above, and the
interval is above 0, it is as the paper; below 0, against it; with 0 in it, undecided; and so with below. For study.py.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import study_results
from scipy import stats

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files

NAME = "README.md"
AS, AGAINST, UNDECIDED, UNSAID = "as the paper", "against the paper", "undecided", "not in the paper"
_FOUND = (AGAINST, UNDECIDED, AS, UNSAID)  # in the order in which the page has them
_HEAD = """# Studies

Written by `python launch/study.py --page` from the JSON files beside it; edit neither. What is against the paper stands
first. What all of them ask, in which order they run and what they are expected to cost:
[configs/studies](../../studies/README.md).

**How to read it.** A cell is the mean over seeds, with the least and the greatest. Arms are compared seed by seed, as
those of a seed start from the same weights: of the differences of the deciding column the mean, and its 95 % interval
by Student's t. With the paper's sign and without 0 in it: *as the paper*; with the other sign: *against the paper*;
with 0 in it, or of a single seed: *undecided*. The interval is of seeds alone: all see the same held-out questions.
Several comparisons of a study are not corrected for their number. No arm was tuned: all have the hyperparameters of the
quickstart of their task, which were chosen for Critique-GRPO with execution critiques; `learning_rate` asks what that
does. The paper's numbers are of models of 3 to 32 billion parameters, these of one of a million.
"""


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm beside another one over the seeds that both have.

    Attributes:
      mean: of the differences.
      low, high: its 95 % interval; None of fewer than two seeds.
      seeds: how many.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Returns how much higher the values of the first are, seed by seed; None where both have no seed in common.

    Example: of differences 0.1, 0.2 and 0.3 the mean is 0.2, and its interval 0.2 +- 4.303 * 0.1 / sqrt(3).

    Args:
      first, second: from seeds to values.
    """
    found = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not found:
        return None
    mean = statistics.fmean(found)
    if len(found) < 2:
        return Difference(mean, None, None, len(found))
    half = float(stats.t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / len(found) ** 0.5
    return Difference(mean, mean - half, mean + half, len(found))


def verdict(found: Difference, sign: str) -> str:
    """Returns what a difference says of the paper's sign, which is above, below, or empty where the paper says none."""
    if not sign:
        return UNSAID
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return UNDECIDED
    return AS if (found.low > 0) == (sign == "above") else AGAINST


def read(folder: pathlib.Path, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Returns the studies of a folder of results, as they stand in their list.

    Args:
      folder: of the results.
      names: of the studies that are listed, None: all are read.

    Raises:
      UserError: a file is damaged.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if names is None or path.stem in names]
    found = [study_results.read(folder, path.stem) for path in paths]
    return sorted(found, key=lambda one: (one["place"], one["study"]))


def unlisted(folder: pathlib.Path, names: Collection[str]) -> list[str]:
    """Returns the names of the JSON files in a folder that are of no listed study, such as of one that was renamed."""
    return sorted(path.name for path in folder.glob("*.json") if path.stem not in names)


def write(folder: pathlib.Path, names: Collection[str] | None = None) -> pathlib.Path:
    """Writes the page beside the JSON files that it is of, and returns its path.

    Args:
      folder: of the results.
      names: as in `read`.

    Raises:
      UserError: there is no such folder, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"--results {folder} does not exist; run the studies first, or give their folder")
    path = folder / NAME
    files.write_atomically(path, page(read(folder, names)))
    return path


def page(studies: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page, as Markdown, of what the files of the studies hold."""
    run = [one for one in studies if one["rows"]]
    if not run:
        return f"{_HEAD}\nNo study has run yet.\n"
    compared = {one["study"]: comparisons(one) for one in run}
    ranked = sorted(run, key=lambda one: _rank(compared[one["study"]]))  # stable: else as in the list
    seconds = {row["run"]: row["machine_seconds"] for one in run for row in one["rows"]}
    parts = [_HEAD, _summary(ranked, compared)]
    parts.append(
        f"{sum(seconds.values()) / 3600:.1f} hours of the machine in all, warm starts aside; a run of several studies "
        "counts once here, and in each of them below.\n"
    )
    parts += [_section(one, compared[one["study"]]) for one in ranked]
    if waiting := [one for one in studies if _missing(one)]:
        lines = [f"- {one['study']}: {_missing(one)} of {one['runs']} runs. {one['question']}" for one in waiting]
        parts.append("## Left out\n\nNot run, for want of hours or because they failed:\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


# --- comparisons --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm beside another one, in a setting, by the deciding column, with the paper's sign."""

    setting: str
    arm: str
    other: str
    sign: str
    difference: Difference

    @property
    def found(self) -> str:
        return verdict(self.difference, self.sign)


def comparisons(study: Mapping[str, Any]) -> list[Comparison]:
    """Returns all comparisons of a study for which there are runs of both arms."""
    found = []
    for setting in study["settings"]:
        for arm in study["arms"]:
            for other, sign in arm["against"].items():
                values = [_by_seed(study, setting["name"], name, study["decides"]) for name in (arm["name"], other)]
                if (one := difference(*values)) is not None:
                    found.append(Comparison(setting["name"], arm["name"], other, sign, one))
    return found


def _by_seed(study: Mapping[str, Any], setting: str, arm: str, column: str) -> dict[int, float]:
    rows = [row for row in study["rows"] if (row["setting"], row["arm"]) == (setting, arm)]
    return {row["seed"]: value for row in rows if (value := row["numbers"].get(column)) is not None}


def _rank(found: Sequence[Comparison]) -> int:
    """Returns where a study stands on the page: by the first of `_FOUND` that one of its comparisons is."""
    return min((_FOUND.index(one.found) for one in found), default=len(_FOUND))


# --- texts --------------------------------------------------------------------------------------------------------


def sentence(study: Mapping[str, Any], found: Sequence[Comparison]) -> str:
    """Returns what a study has found, in a sentence."""
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    several = len({one.setting for one in found}) > 1

    def said(one: Comparison) -> str:
        where = f" ({one.setting})" if several else ""
        return f"{labels[one.arm]} beside {labels[one.other]}{where}"

    parts = []
    for what in (AGAINST, AS, UNDECIDED):
        if some := [said(one) for one in found if one.found == what]:
            parts.append(f"{what}: {'; '.join(some)}")
    if not parts:
        return "Nothing that the paper says is compared here."
    text = ". ".join(part[0].upper() + part[1:] for part in parts)
    return f"{text}."


def _summary(ranked: Sequence[Mapping[str, Any]], compared: Mapping[str, Sequence[Comparison]]) -> str:
    heading = ["study", AGAINST, AS, UNDECIDED, "runs", "hours", "registered"]
    rows = [heading, ["---"] * len(heading)]
    for one in ranked:
        found = [comparison.found for comparison in compared[one["study"]]]
        rows.append(
            [
                f"[{one['study']}](#{one['study']})",
                *(str(found.count(what)) for what in (AGAINST, AS, UNDECIDED)),
                f"{len(one['rows'])} of {one['runs']}",
                f"{one['cost']['machine_seconds'] / 3600:.1f}",
                _registered(one),
            ]
        )
    return _table(rows)


def _registered(study: Mapping[str, Any]) -> str:
    """Returns by which commit a study is registered, and what speaks against that."""
    registered, start = study["registered"], study["cost"]["first_start"]
    if not registered["commit"]:
        return "by no commit"
    text = registered["commit"]
    if registered["changed"]:
        text += f", changed since: {', '.join(registered['changed'])}"
    if start and registered["time"] > start:
        text += ", after its first run had begun"
    return text


def _missing(study: Mapping[str, Any]) -> int:
    return study["runs"] - len(study["rows"])


def _section(study: Mapping[str, Any], found: Sequence[Comparison]) -> str:
    cost = study["cost"]
    parts = [
        f"## {study['study']}\n\n**{study['question']}** {sentence(study, found)}\n\nThe paper: {study['paper']}\n"
    ]
    for setting in study["settings"]:
        if rows := _arms(study, setting["name"]):
            parts.append(f"### {study['study']}: {setting['name']}\n\n{setting['label']}.\n\n{_table(rows)}")
        if rows := _differences(study, [one for one in found if one.setting == setting["name"]]):
            parts.append(f"Differences of {study['decides']}:\n\n{_table(rows)}")
    parts.append(
        f"Measured: {study['measured']} Registered: {_registered(study)}. {len(study['rows'])} of {study['runs']} runs"
        ", "
        f"{cost['machine_seconds'] / 3600:.1f} hours of the machine (expected {study['predicted_minutes'] / 60:.1f}), "
        f"{cost['cpu_seconds'] / 3600:.1f} hours of CPU time on {_numbers(cost['cpus'])} cores; code of "
        f"{', '.join(cost['commits']) or 'an unknown commit'}; task {', '.join(study['tasks'])}.\n"
    )
    return "\n".join(parts)


def _numbers(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values) or "an unknown number of"


def _arms(study: Mapping[str, Any], setting: str) -> list[list[str]]:
    """Returns the cells of a setting's table: each arm with at least one run."""
    rows = []
    for arm in study["arms"]:
        values = [list(_by_seed(study, setting, arm["name"], column["name"]).values()) for column in study["columns"]]
        seeds = sum((row["setting"], row["arm"]) == (setting, arm["name"]) for row in study["rows"])
        if seeds:
            cells = [_cell(some, column) for some, column in zip(values, study["columns"], strict=True)]
            rows.append([arm["label"], arm["sees"], str(seeds), *cells])
    heading = ["arm", "critic sees", "seeds", *(column["name"] for column in study["columns"])]
    return [heading, ["---"] * len(heading), *rows] if rows else []


def _cell(values: Sequence[float], column: Mapping[str, Any]) -> str:
    if not values:
        return ""
    digits, unit = column["digits"], column["unit"]
    mean, least, greatest = (f"{one / unit:.{digits}f}" for one in (statistics.fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least}-{greatest})"


def _differences(study: Mapping[str, Any], found: Sequence[Comparison]) -> list[list[str]]:
    if not found:
        return []
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    (column,) = (one for one in study["columns"] if one["name"] == study["decides"])
    heading = ["arm", "beside", "difference", "95 % interval", "seeds", "the paper", "so"]

    def number(value: float | None) -> str:
        return "" if value is None else f"{value / column['unit']:+.{column['digits']}f}"

    rows = []
    for one in sorted(found, key=lambda one: _FOUND.index(one.found)):
        interval = f"{number(one.difference.low)} to {number(one.difference.high)}" if one.difference.seeds > 1 else ""
        cells = [labels[one.arm], labels[one.other], number(one.difference.mean), interval, str(one.difference.seeds)]
        rows.append([*cells, one.sign, one.found])
    return [heading, ["---"] * len(heading), *rows]


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in rows) + "\n"
