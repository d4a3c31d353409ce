"""What became of every row of a run, without its text: for groups whose texts are not in the page, and for sums."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import estimators
from cgrpo_jax.report import details
from cgrpo_jax.report.run_folder import RunFolder

STAGES = ("response", "critique", "refinement")
MOST_BINS = 8  # of critiques by their lengths
_COLUMNS = ("question_index", "stage", "response_index", "parent", "reward", "verdict", "rejected", "truncated")
_COLUMNS += ("kept", "advantage", "trained", "dropped", "token_ids", "author")
_MODELS = ("policy", "critic", "refiner")  # authors whose tokens are generated


@dataclasses.dataclass
class Sums:
    """What the rows of a run add up to.

    Attributes:
      tokens: that models wrote, by stage; what a rule says, or the data's solution, is none of them.
      critiques: of each refinement of a response that fails: tokens of its critique, and whether it passes.
    """

    tokens: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    critiques: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def gains(self) -> list[dict[str, float]]:
        """Returns what critiques of a length gained: the share of the refinements after them that pass.

        Critiques are parted by quantiles of their lengths: `tokens`, the mean length of a part, `number` of its
        refinements, `share` of these that pass, with Wilson's interval from `low` to `high`.
        """
        if not self.critiques:
            return []
        tokens, passes = (np.concatenate(columns) for columns in zip(*self.critiques, strict=True))
        edges = np.unique(np.quantile(tokens, np.linspace(0, 1, MOST_BINS + 1)))
        bins = np.searchsorted(edges[1:-1], tokens, side="right")
        found = []
        for one in np.unique(bins):
            inside = bins == one
            number, right = int(inside.sum()), int(passes[inside].sum())
            low, high = estimators.wilson(right, number)
            part = {"tokens": float(tokens[inside].mean()), "number": number, "share": right / number}
            found.append(part | {"low": low, "high": high})
        return found


def read(run: RunFolder, sums: Sums, faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields of each iteration its rows by columns, and adds them to the sums.

    The columns are `question`, `stage` (a place in `STAGES`), `response`, `reward`, `verdict`, `tokens`, `advantage`
    and `fate`, a place in `fates`: `trained`, `rejected`, why it did not train, or nothing.

    Args:
      run: the run.
      sums: of it.
      faults: a file that is damaged is left out; `groups.read` has said so.
    """
    for path in run.files:
        try:
            table = rollouts.read_columns(path, _COLUMNS)
        except UserError as error:
            fault = f"{run.name}: {error}"
            if fault not in faults:
                faults.append(fault)
            continue
        yield rollouts.iteration_of(path), _columns(table, sums, run.facts.pass_threshold)


def _columns(table: pa.Table, sums: Sums, threshold: float) -> dict[str, Any]:
    tokens = pc.list_value_length(table["token_ids"]).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    cells = {name: table[name].to_pylist() for name in _COLUMNS if name != "token_ids"}
    stages = np.array([STAGES.index(stage) for stage in cells["stage"]], np.int64)
    written = np.isin(cells["author"], _MODELS)
    for number, stage in enumerate(STAGES):
        sums.tokens[stage] += int(tokens[written & (stages == number)].sum())
    _add_critiques(cells, tokens, sums, threshold)
    rows = [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]
    fates = [_fate(row) for row in rows]
    names = sorted(set(fates))
    return {
        "question": cells["question_index"],
        "stage": stages.tolist(),
        "response": cells["response_index"],
        "reward": [None if value is None else details.finite(float(f"{value:.4g}")) for value in cells["reward"]],
        "verdict": [None if value is None else int(value) for value in cells["verdict"]],
        "tokens": tokens.tolist(),
        "advantage": [None if value is None else details.finite(float(f"{value:.4g}")) for value in cells["advantage"]],
        "fate": [names.index(fate) for fate in fates],
        "fates": names,
    }


def _fate(row: Mapping[str, Any]) -> str:
    if row["rejected"]:
        return "rejected"
    return "trained" if row["trained"] else row["dropped"] or ""


def _add_critiques(cells: Mapping[str, Sequence], tokens: np.ndarray, sums: Sums, threshold: float) -> None:
    lengths, passes = [], []
    for stage, parent, reward in zip(cells["stage"], cells["parent"], cells["reward"], strict=True):
        if stage != "refinement" or parent is None or reward is None or cells["stage"][parent] != "critique":
            continue
        response = cells["parent"][parent]
        before = None if response is None else cells["reward"][response]
        if before is not None and before < threshold:
            lengths.append(tokens[parent])
            passes.append(reward >= threshold)
    if lengths:
        sums.critiques.append((np.array(lengths, np.int64), np.array(passes, bool)))
