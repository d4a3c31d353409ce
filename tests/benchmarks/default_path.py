"""What does the default configuration cost beside an older commit: seconds of an iteration, and compiled programs?

    git worktree add DIR/before COMMIT
    python tests/benchmarks/default_path.py --before=DIR/before --workdir=DIR/runs [--pairs=5] [--iterations=12]
        [--warm_start=400] [--most=1.02] [--json=FILE] [--topology=v5e:1x1]

Both trees run the defaults with the quickstart's model and task; keys that an older tree has under another name are
given under that. All begin from one folder of weights, which the older tree warms up. A pair is a run of each, in turn
first; each has an empty cache of programs. Whatever a run's environment imports, its own tree comes first.

    step/after     seconds of an iteration, the median of a run's without its first two
    step/ratio     of after against before, of each pair
    tokens/ratio   tokens that models sampled in all its iterations, likewise: whether the work was alike
    programs       programs that a run compiled, after and before
Exits with 1 where the median ratio of seconds is above --most, or a run after compiles more programs than before.
`--pairs=1 --iterations=3` counts programs; its seconds say nothing.

With --topology=v5e:1x1 nothing is run: both trees plan that configuration for TPUs, and what the compiler says of each
program is compared, its FLOPs, the bytes that it moves and those that it holds. These are the same on a busy machine.
Exits with 1 where one is above --most, or there are other programs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from report import progress, row, table

from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.old_keys import RENAMED

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIRST = 2  # iterations of a run that still compile
# Read by a tree of any age, whose own `base` says what the keys are called.
FILE = """
from configs import base

VALUES = {values!r}
OLD = {old!r}


def known(config, name):
    for part in name.split("."):
        if not hasattr(config, "keys") or part not in config.keys():
            return False
        config = config[part]
    return True


def get_config():
    config = base.get_config()
    named = {{name if known(config, name) else OLD.get(name, name): value for name, value in VALUES.items()}}
    config.update_from_flattened_dict(named)
    return config
"""


# Plans as `cgrpo plan` does, and writes what the compiler counts in each program, in the order of their compilation.
COUNTS = """
import json, runpy, sys
import jax

found, compiled = sys.argv.pop(1), jax.stages.Lowered.compile


def compile(self, *args, **keywords):
    program = compiled(self, *args, **keywords)
    costs, memory = program.cost_analysis(), program.memory_analysis()
    held = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    row = {"name": self._lowering._name, "flops": costs["flops"], "bytes": costs["bytes accessed"], "held": held}
    with open(found, "a") as file:
        file.write(json.dumps(row) + "\\n")
    return program


jax.stages.Lowered.compile = compile
runpy.run_module("cgrpo_jax.plan", run_name="__main__", alter_sys=True)
"""


class Run(NamedTuple):
    """Of a run: seconds of an iteration, tokens that were sampled, programs that were compiled."""

    seconds: float
    tokens: int
    programs: int


def values() -> dict[str, Any]:
    """Returns the keys of the quickstart that are not the defaults, and their values."""
    defaults = config_lib.flatten(config_lib.to_json(config_lib.Config()))
    quickstart = config_lib.freeze(config_lib.load(ROOT / "configs" / "quickstart.py"))
    found = config_lib.flatten(config_lib.to_json(quickstart))
    return {name: value for name, value in found.items() if value != defaults[name]}


def write_config(path: pathlib.Path, changes: Mapping[str, Any]) -> pathlib.Path:
    """Writes a configuration for a tree of any age, the quickstart's values with further changes."""
    old = {new: name for name, new in RENAMED.items()}
    path.write_text(FILE.format(values=values() | dict(changes), old=old))
    return path


def train(tree: pathlib.Path, config: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """Trains with the program of a tree in a process of its own, and an empty cache of programs; returns its folder."""
    home = workdir.with_name(f"{workdir.name}_home")
    home.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(tree), "HOME": str(home), "JAX_COMPILATION_CACHE_DIR": str(home)}
    command = [sys.executable, "-m", "cgrpo_jax.train", f"--config={config}", f"--workdir={workdir}"]
    with open(workdir.with_name(f"{workdir.name}.log"), "w") as log:
        done = subprocess.run(command, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"the run of {tree} failed; {log.name} says why.")
    return workdir


def read(workdir: pathlib.Path) -> Run:
    """Returns the numbers of a run."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [one for one in rows if "step_time" in one]
    seconds = statistics.median(one["step_time"] for one in rows[FIRST:])
    return Run(seconds, rows[-1]["num_tokens"], rows[-1]["num_compilations"])


def count(tree: pathlib.Path, config: pathlib.Path, topology: str, file: pathlib.Path) -> list[dict]:
    """Plans with a tree's programs in a process of its own; returns what the compiler counts in each."""
    command = [sys.executable, "-c", COUNTS, file, f"--config={config}", f"--topology={topology}", "--nocosts"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    with open(file.with_suffix(".log"), "w") as log:
        done = subprocess.run(list(map(str, command)), cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"the plan of {tree} failed; {log.name} says why.")
    return [json.loads(line) for line in file.read_text().splitlines()]


def counted(before: Sequence[dict], after: Sequence[dict], *, most: float) -> list[dict]:
    """Returns the rows of the report on what the compiler counts in the programs of two trees."""
    names = [[one["name"] for one in some] for some in (before, after)]
    if names[0] != names[1]:
        raise SystemExit(f"the trees have other programs: before {', '.join(names[0])}; after {', '.join(names[1])}")
    rows = []
    for number, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        for what in ("flops", "bytes", "held"):
            named = f"program {number}, {new['name']}; before: {old[what]:,.0f}"
            rows.append(row(f"{what}/{number}", [new[what] / old[what]], named, target=most, most=True))
    return rows


def report(pairs: Sequence[tuple[Run, Run]], *, most: float) -> list[dict]:
    """Returns the rows of the report on pairs of (before, after)."""
    what = f"{len(pairs)} pairs; before: {statistics.median(before.seconds for before, _ in pairs):.3g} s"
    counts = ", ".join(sorted({f"{after.programs} after {before.programs}" for before, after in pairs}))
    return [
        row("step/after", [after.seconds for _, after in pairs], what, unit="s"),
        row("step/ratio", [after.seconds / before.seconds for before, after in pairs], what, target=most, most=True),
        row("tokens/ratio", [after.tokens / before.tokens for before, after in pairs], "tokens sampled"),
        row("programs", [after.programs / before.programs for before, after in pairs], counts, target=1.0, most=True),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=pathlib.Path, required=True)
    parser.add_argument("--after", type=pathlib.Path, default=ROOT)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--warm_start", type=int, default=400)
    parser.add_argument("--most", type=float, default=1.02)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--topology", help="compare what the compiler counts for such TPUs, and run nothing")
    given = parser.parse_args(arguments)
    if given.iterations <= FIRST:
        parser.error(f"--iterations {given.iterations} leaves none to measure; use {FIRST + 1} or more")
    trees, folder = {"before": given.before.resolve(), "after": given.after.resolve()}, given.workdir.resolve()
    folder.mkdir(parents=True)
    fixed = {"data.num_eval": 0, "eval.every": 0}
    if given.topology:
        config = write_config(
            folder / "plan.py", fixed | {"warm_start.num_updates": 0, "objective.clip_refined": False}
        )
        found = [count(tree, config, given.topology, folder / f"{name}.jsonl") for name, tree in trees.items()]
        return finish(counted(*found, most=given.most), given.json)
    warm = fixed | {"num_iterations": 0, "warm_start.num_updates": given.warm_start}
    progress(f"warming up for {given.warm_start} updates")
    start = train(trees["before"], write_config(folder / "start.py", warm), folder / "start")
    changes = fixed | {"num_iterations": given.iterations, "warm_start.num_updates": 0, "model.init": str(start)}
    config = write_config(folder / "run.py", changes)
    pairs = []
    for number in range(given.pairs):
        found = {}
        for name in sorted(trees, reverse=number % 2 == 0):
            progress(f"pair {number + 1} of {given.pairs}: {name}")
            found[name] = read(train(trees[name], config, folder / f"{name}{number}"))
        pairs.append((found["before"], found["after"]))
    return finish(report(pairs, most=given.most), given.json)


def finish(rows: list[dict], path: pathlib.Path | None) -> int:
    """Prints the table of a report, and writes it; returns the exit status."""
    print(table(rows))
    if path:
        path.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(one["met"] is False for one in rows))


if __name__ == "__main__":
    sys.exit(main())
