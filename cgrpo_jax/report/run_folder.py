"""One run's folder, as a report reads it: also of a run that goes on, was stopped, or whose last line was cut short."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.runs import facts as facts_lib
from cgrpo_jax.runs import starts as starts_lib
from cgrpo_jax.runs.facts import RunFacts
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runs.starts import Start
from cgrpo_jax.runtime import places
from cgrpo_jax.runtime import text as text_lib


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What a folder knows of its run.

    Attributes:
      path: the folder.
      name: what the report calls it.
      facts: what its configuration says.
      metrics: a row an iteration, in their order; of rows with one step the last.
      summary: what the run wrote when it last ended; None before that.
      files: of rollouts, in the order of their iterations.
      faults: what could not be read, a sentence each.
      starts: with what it was started, each time; empty of a run of an older version.
      arm: of a study; empty: keys that differ tell arms apart.
    """

    path: pathlib.Path
    name: str
    facts: RunFacts
    metrics: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    files: Sequence[pathlib.Path]
    faults: Sequence[str] = ()
    starts: Sequence[Start] = ()
    arm: str = ""

    @property
    def ended(self) -> bool:
        """Whether it has done all iterations of its configuration; a run that was extended has an older summary."""
        done = (self.summary or {}).get("iterations")
        return isinstance(done, int) and done >= self.facts.num_iterations


def read(path: str | pathlib.Path, *, name: str | None = None, arm: str = "") -> RunFolder:
    """Returns what a run's folder knows; nothing is locked, written or waited for.

    Args:
      path: the folder.
      name: of the run; by default the folder's.
      arm: of a study that it belongs to.

    Raises:
      UserError: it is not the folder of a run.
    """
    run = RunDir(path)
    facts = facts_lib.read(path)
    metrics, faults = _metrics(run.metrics)
    summary = None
    if run.summary.is_file():
        try:
            summary = json.loads(run.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            faults.append("summary.json can't be read")
    files = sorted(one for one in run.rollouts.glob(rollouts.NAMES) if rollouts.iteration_of(one) >= 0)
    if not isinstance(summary, dict):
        summary = None
    name = text_lib.clean(name or run.path.resolve().name)  # which on a disk may be bytes that are no UTF-8
    return RunFolder(run.path, name, facts, metrics, summary, files, faults, starts_lib.read(path), arm)


def read_all(paths: Sequence[str | pathlib.Path]) -> list[RunFolder]:
    """Returns several runs, under names that tell them apart: as much of each path's end as that takes."""
    whole = [places.place(path).resolve().parts for path in paths]
    names = list(whole)
    for depth in range(1, max(map(len, whole)) + 1):
        names = [parts[-depth:] for parts in whole]
        if len(set(names)) == len(set(whole)):
            break
    return [read(path, name="/".join(parts).lstrip("/")) for path, parts in zip(paths, names, strict=True)]


def _metrics(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of `metrics.jsonl` in the order of their steps, and what of it could not be read."""
    if not path.is_file():
        return [], ["there is no metrics.jsonl yet"]
    rows: dict[int, dict[str, Any]] = {}
    damaged = 0
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in lines:
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            damaged += 1
    faults = [f"{damaged} lines of metrics.jsonl can't be read"] if damaged else []
    if rest:
        faults.append("the last line of metrics.jsonl is being written, or was cut short")
    return [rows[step] for step in sorted(rows)], faults
