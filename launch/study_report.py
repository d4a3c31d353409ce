"""What a study found: its table, its numbers and its entropy plot. Used by study.py."""

import collections
import contextlib
import json
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cgrpo_jax.report import page, run_folder
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import files

# Numbers of a row: heading, path in summary.json, unit, decimals.
COLUMNS = (
    ("pass@1", ("eval_after", "pass@1"), 1, 3),
    ("pass@8", ("eval_after", "pass@8"), 1, 3),
    ("unsolved then solved", ("unsolved_before_solved_after",), 1, 3),
    ("tokens generated (k)", ("num_tokens",), 1000, 0),
)
_MEASURED = (
    "pass@1 greedy, pass@8 sampled; of the questions that no sample solved before training, the share that one solves "
    "after it."
)


def write(
    study: Mapping, runs: Sequence[Any], workdir: pathlib.Path, processes: Sequence[Mapping] | None = None
) -> str:
    """Writes table.md and results.json, and returns the table of what is done.

    Args:
      study, runs: what is done of.
      workdir: where they are written.
      processes: those that made the runs; None: the rows of processes.jsonl there.
    """
    done = {run: summary for run in runs if (summary := run.summary()) is not None}
    parts = []
    for setting in study["settings"]:
        rows = _rows(study, setting, done)
        if rows:
            parts.append(f"### {setting['label']}\n\n{_markdown(rows, columns_of(study))}\n")
    if processes is None:
        processes = processes_of(workdir)
    parts.append(_cost(study, processes, num_done=len(done), num_runs=len(runs)))
    ends = ("summary.json", "results.json")
    outdated = [run.name for run in runs if run not in done and any((run.folder / name).exists() for name in ends)]
    if outdated:
        other = "of another configuration or version of the task, or damaged"
        parts.append(f"Left out: {len(outdated)} runs {other}, such as {outdated[0]}.")
    text = "\n".join(parts) + "\n"
    files.write_atomically(workdir / "table.md", text)
    results = [
        {"setting": run.setting, "arm": run.arm, "seed": run.seed, "overrides": run.overrides, "summary": summary}
        for run, summary in done.items()
    ]
    files.write_atomically(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    return text


def columns_of(study: Mapping) -> Sequence[tuple[str, Sequence[str], float, int]]:
    """Returns the columns of a study's table: its own, else those of runs that train."""
    return study.get("columns", COLUMNS)


def _rows(study: Mapping, setting: Mapping, done: Mapping[Any, Mapping]) -> list[list[str]]:
    """Returns the cells of one setting's table: where the arms start, then each arm with at least one run done."""
    trained = {run: summary for run, summary in done.items() if run.setting == setting["name"] and run.is_arm}
    if not trained:
        return []
    rows, columns = [], columns_of(study)
    if columns is COLUMNS:
        # All arms of a seed start from the same weights: any of them says what these were worth.
        start = {run.seed: {"eval_after": summary.get("eval_before")} for run, summary in trained.items()}
        rows.append(["before training", "", str(len(start)), *_cells(list(start.values()), columns)])
    for arm in study["arms"]:
        summaries = [summary for run, summary in trained.items() if run.arm == arm["name"]]
        if summaries:
            asked = setting.get("seeds", len(arm["seeds"]))
            seeds = f"{len(summaries)}" + f" of {asked}" * (len(summaries) < asked)
            rows.append([arm["label"], arm["sees"], seeds, *_cells(summaries, columns)])
    return rows


def _cells(summaries: Sequence[Mapping], columns: Sequence[tuple[str, Sequence[str], float, int]]) -> list[str]:
    """Returns each column's mean over the runs, with the least and the greatest."""
    cells = []
    for _, path, unit, digits in columns:
        values = [value / unit for s in summaries if (value := number(s, path)) is not None]
        if not values:
            cells.append("")
        elif len(values) == 1:
            cells.append(f"{values[0]:.{digits}f}")
        else:
            mean = sum(values) / len(values)
            cells.append(f"{mean:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})")
    return cells


def number(summary: Mapping, path: Sequence[str]) -> float | None:
    """Returns the number that a path in summary.json leads to, or None: what was not measured is not there, or null."""
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def _markdown(rows: Sequence[Sequence[str]], columns: Sequence[tuple[str, Sequence[str], float, int]]) -> str:
    heading = ["arm", "critic sees", "seeds", *(column[0] for column in columns)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *rows])


def processes_of(workdir: pathlib.Path) -> list[Mapping]:
    """Returns what is kept of each process that has run in a folder of studies or sweeps."""
    return list(_rows_of(workdir / "processes.jsonl"))


def _cost(study: Mapping, processes: Sequence[Mapping], *, num_done: int, num_runs: int) -> str:
    """Returns the line under the tables: what the numbers were computed with, and for how long."""
    measured = study.get("measured", _MEASURED)
    text = f"Mean (min-max) over seeds, on held-out questions: {measured}\n\n{num_done} of {num_runs} runs done"
    if processes:
        commits, cpus = (", ".join(dict.fromkeys(str(p.get(key)) for p in processes)) for key in ("commit", "cpus"))
        hours = sum(number(process, ("cpu_seconds",)) or 0.0 for process in processes) / 3600
        text += f"; commit {commits}; {cpus} CPUs; {hours:.1f} hours of CPU time"
    return text + "."


def _rows_of(path: pathlib.Path) -> Iterator[Mapping]:
    """Yields the rows of a file of JSON lines, but for one that was cut short; none where it is missing."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, Mapping):
                yield row


def curve(runs: Sequence[Any], key: str) -> list[tuple[int, float, float, float]]:
    """Returns (iteration, mean, least, greatest) of a metric over runs, for the iterations that have it."""
    values = collections.defaultdict(list)
    for run in runs:
        for row in _rows_of(RunDir(run.folder).metrics):
            # Without a trained row there is no entropy, though its column holds a 0.
            step, value = number(row, ("step",)), number(row, (key,))
            if row.get("rows_trained") and step is not None and value is not None:
                values[int(step)].append(value)
    return [(step, sum(v) / len(v), min(v), max(v)) for step, v in sorted(values.items())]


def spans(folder: pathlib.Path, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns of each metric that a run has its mean over the first and the last tenth of the iterations, and all.

    Example: of a metric that was 0.5, 0.3 and 0.1 in three iterations `{"first": 0.5, "last": 0.1, "all": 0.3}`.
    """
    rows = list(_rows_of(RunDir(folder).metrics))
    found = {}
    for key in keys:
        # What is of trained tokens alone is 0 in the row of an iteration that has trained none.
        trained = "entropy" in key or key.startswith("refined/")
        values = [
            v for row in rows if (row.get("rows_trained") or not trained) and (v := number(row, (key,))) is not None
        ]
        if values:
            part = max(1, len(values) // 10)
            means = {"first": values[:part], "last": values[-part:], "all": values}
            found[key] = {name: sum(some) / len(some) for name, some in means.items()}
    return found


def write_page(study: Mapping, runs: Sequence[Any], workdir: pathlib.Path) -> None:
    """Writes report.html, the page of the runs that are done: arms as colours, seeds as bands.

    Warm starts are left out, and recipes, each of whose steps has a page of its own.
    """
    done = [run for run in runs if run.is_arm and not run.steps and run.summary() is not None]
    if not done:
        return
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    folders = [
        run_folder.read(run.folder, name=run.name, arm=f"{labels[run.arm]} ({run.setting.replace('_', ' ')})")
        for run in done
    ]
    with files.filled_folder(workdir, last="report.html") as here:
        written = page.write(folders, here / "report.html", max_groups=500)
    size = f"{written.bytes / 1e6:.1f} MB"
    print(f"wrote {workdir / written.path.name} ({size}), the page of {len(done)} runs")


def plot_entropy(study: Mapping, runs: Sequence[Any], workdir: pathlib.Path) -> None:
    """Draws entropy.png: that of initial and of refined rows over the run, an arm a panel, a setting a row."""
    if not study["entropy"]:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no entropy.png: matplotlib is not installed; pip install -e '.[report]'")
        return
    done = [run for run in runs if run.is_arm and run.summary() is not None]
    settings = [s for s in study["settings"] if any(run.setting == s["name"] for run in done)]
    arms = [a for a in study["arms"] if a["name"] in study["entropy"] and any(run.arm == a["name"] for run in done)]
    if not arms:
        return
    figure = Figure(figsize=(1 + 2.6 * len(arms), 1.2 + 2.2 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), len(arms), sharex=True, sharey=True, squeeze=False)
    series = (("entropy", "initial responses", "#0072b2"), ("refined/entropy", "kept refinements", "#d55e00"))
    handles = {}
    for y, setting in enumerate(settings):
        for x, arm in enumerate(arms):
            panel = panels[y, x]
            here = [run for run in done if (run.setting, run.arm) == (setting["name"], arm["name"])]
            if not here:
                panel.set_axis_off()
                continue
            for key, label, color in series:
                if points := curve(here, key):
                    steps, mean, low, high = zip(*points, strict=True)
                    (handles[label],) = panel.plot(steps, mean, color=color, linewidth=1.2)
                    panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            label = textwrap.fill(arm["label"], 34)
            panel.set_title(f"{label}\n({setting['name'].replace('_', ' ')})", fontsize=8)
            panel.tick_params(labelsize=8, labelbottom=True, labelleft=True)
            panel.grid(alpha=0.25)
    figure.suptitle("Entropy of the policy at trained tokens: mean, least and greatest over seeds", fontsize=11)
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel("entropy (nats a token)", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    with files.filled_folder(workdir, last="entropy.png") as here:
        figure.savefig(here / "entropy.png", dpi=150)
