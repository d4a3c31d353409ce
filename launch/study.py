"""Runs a study: trains every arm, seed and setting of a study file, or runs its recipe, and prints one table.

    python launch/study.py --study=configs/studies/arithmetic.py --workdir=DIR

  --study      file whose get_study() returns the arms, such as configs/studies/arithmetic.py
  --workdir    folder of the study, also gs://: DIR/SETTING/ARM/seedN holds one run, DIR/SETTING/ARM/seedN.log what it
               printed (in a bucket when it has ended; until then it lies under ~/.cache/cgrpo_jax/logs). One study at a
               time works in it
  --jobs       runs at once, each on its share of the cores (default: 2); 1 on an accelerator
  --only       regular expression: of all runs, those whose SETTING/ARM/seedN it matches, and their warm starts
  --report     train nothing, print the table of what is done

The same command again resumes where the last one stopped: finished runs stay, an interrupted one resumes. The table is
also written to DIR/table.md, every number to DIR/results.json, the page of all runs (`cgrpo report`) to DIR/report.html
and, with matplotlib, the entropy to DIR/entropy.png.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import runner
import study_report

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import recipe_results
from cgrpo_jax.runs import cli, recipes, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import files, places

WARM_START = "warm_start"

# What a study file must name. It may also have `warm_start`, False where no run starts from another's weights. Where
# its arms have a `recipe` each (as for `cgrpo recipe`), `columns` of the table are of the numbers of a recipe's steps,
# in the form of `study_report.COLUMNS`, and `measured` says what these are.
KEYS = {
    "study": {"config", "settings", "arms", "entropy"},
    "settings": {"name", "label", "overrides", "headline_only"},
    "arms": {"name", "label", "sees", "overrides", "headline", "seeds"},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of the study; `config` is what config.json must hold, `needs` the run whose weights it starts from.

    Of a recipe `steps` are what recipe.json must hold; empty of a run that trains alone.
    """

    setting: str
    arm: str
    seed: int
    folder: pathlib.Path
    overrides: Mapping[str, Any]
    arguments: Sequence[str]
    config: Mapping[str, Any]
    needs: "Run | None" = None
    steps: Sequence[recipes.Planned] = ()

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.arm}/seed{self.seed}"

    @property
    def is_arm(self) -> bool:
        """Is it one that is compared, not one that others start from?"""
        return self.arm != WARM_START

    def summary(self) -> dict | None:
        """Returns the results, or None unless the run has finished with the configuration that the study now has."""
        if self.needs and self.needs.summary() is None:
            return None
        if self.steps:
            return recipe_results.results(self.steps, self.folder)
        return runner.summary(self.folder, self.config, list(self.overrides))


def load(path: str) -> dict:
    """Returns the study of a study file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"study file {path} does not exist; give one like configs/studies/arithmetic.py")
    try:
        study = runpy.run_path(path)["get_study"]()
        runner.expect("get_study()", study, Mapping, f"a dict of {', '.join(sorted(KEYS['study']))}")
        for kind, keys in KEYS.items():
            runner.expect(kind, study if kind == "study" else study[kind], (Mapping, list, tuple), "a list of dicts")
            for item in [study] if kind == "study" else study[kind]:
                runner.expect(f"one of {kind}", item, Mapping, "a dict")
                if missing := sorted(keys - item.keys()):
                    raise KeyError(f"{', '.join(missing)} in {item.get('name', 'get_study()')}")
        _check_kinds(study)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".replace("KeyError:", "it lacks").replace("UserError: ", "")
        raise UserError(f"study file {path} fails to load: {what}; see configs/studies/arithmetic.py") from error
    return study


def _check_kinds(study: Mapping) -> None:
    """Raises a `UserError` if a part of the study is of another kind than the code that follows takes."""
    runner.expect("config", study["config"], (str, pathlib.Path), "a path")
    runner.expect("entropy", study["entropy"], (list, tuple), "a list of names of arms")
    runner.expect("measured", study.get("measured", ""), str, "a text, of what the columns are")
    runner.expect("columns", study.get("columns", ()), (list, tuple), "a list of columns of the table")
    for column in study.get("columns", ()):
        _check_column(column)
    for item in [*study["settings"], *study["arms"]]:
        for key in ("name", "label", "sees"):
            if key in item:
                runner.expect(f"a {key}", item[key], str, "a string")
        runner.expect_overrides(item["name"], item["overrides"])
        runner.expect(
            f"{item['name']}'s recipe", item.get("recipe", ""), str, "a file, with its arguments after a colon"
        )
    for arm in study["arms"]:
        runner.expect(f"{arm['name']}'s seeds", arm["seeds"], (list, tuple, range), "a list of numbers, such as [0, 1]")
        for seed in arm["seeds"]:
            runner.expect(f"one of {arm['name']}'s seeds", seed, int, "a whole number")


def _check_column(column: Any) -> None:
    """Raises a `UserError` unless a column is as those of `study_report.COLUMNS`."""
    wanted = "a column, such as ('pass@1', ('after', 'mean', 'pass@1', 'value'), 1, 3): name, path, unit, digits"
    runner.expect("one of columns", column, (list, tuple), wanted)
    if len(column) != 4:
        raise UserError(f"one of columns is {column!r:.60}, not {wanted}")
    name, path, unit, digits = column
    runner.expect("the name of a column", name, str, "a string")
    runner.expect(f"column {name}'s path", path, (list, tuple), "a list of keys, of which a step's name is the first")
    for key in path:
        runner.expect(f"a key of column {name}'s path", key, str, "a string")
    if isinstance(unit, bool) or not isinstance(unit, int | float) or not unit or not math.isfinite(unit):
        raise UserError(f"column {name}'s unit is {unit!r:.60}, not a number by which values are divided, such as 1")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 0:
        raise UserError(f"column {name}'s digits are {digits!r:.60}, not a whole number from 0")


def plan(study: Mapping, workdir: pathlib.Path, *, trains: bool = True) -> list[Run]:
    """Returns all runs in the order in which they start: seed by seed, in each the headline arms first.

    Args:
      study: from `load`.
      workdir: of the study.
      trains: whether they must be such as can start; a report is also of runs that a later version would refuse.

    Raises:
      UserError: an override names a key that no configuration has, a value of a wrong type, or what no run can have.
    """

    def make(
        setting: Mapping, arm: str, seed: int, overrides: Mapping, needs: Run | None = None, recipe: str = ""
    ) -> Run:
        overrides = {**setting["overrides"], **overrides, "seed": seed}
        folder = workdir / setting["name"] / arm / f"seed{seed}"
        changes = [f"--config.{key}={value}" for key, value in overrides.items()]
        config = config_lib.load(study["config"])
        config_lib.override(config, changes)
        command = ["recipe", f"--recipe={recipe}"] if recipe else ["train"]
        arguments = [*command, f"--config={study['config']}", f"--workdir={folder}", *changes]
        frozen, steps = config_lib.freeze(config), []
        try:
            if recipe:
                steps = recipes.plan(recipes.load(recipe), frozen, folder, runs=trains)
            elif trains:
                validate.check(frozen)
        except UserError as error:
            raise UserError(f"{setting['name']}/{arm}/seed{seed}: {error}") from error
        return Run(setting["name"], arm, seed, folder, overrides, arguments, config_lib.to_json(frozen), needs, steps)

    runs, warm_starts = [], {}
    jobs = [
        (seed, not arm["headline"], setting, arm)
        for setting in study["settings"]
        for arm in study["arms"]
        for seed in arm["seeds"]
        if arm["headline"] or not setting["headline_only"]
    ]
    for seed, _, setting, arm in sorted(jobs, key=lambda job: job[:2]):  # stable: otherwise in the file's order
        if not study.get("warm_start", True):  # each starts from the weights of its configuration
            runs.append(make(setting, arm["name"], seed, arm["overrides"], recipe=arm.get("recipe", "")))
            continue
        at = setting["name"], seed
        if at not in warm_starts:
            # Each arm evaluates these weights itself before it trains.
            warm_starts[at] = make(setting, WARM_START, seed, {"num_iterations": 0, "data.num_eval": 0})
            runs.append(warm_starts[at])
        init = {"model.init": str(warm_starts[at].folder / "checkpoints"), "warm_start.num_updates": 0}
        overrides = {**arm["overrides"], **init}
        runs.append(make(setting, arm["name"], seed, overrides, warm_starts[at], arm.get("recipe", "")))
    return runs


def select(runs: Sequence[Run], only: str) -> list[Run]:
    """Returns the arms' runs whose name the regular expression matches, and the warm starts that they need."""
    try:
        chosen = [run for run in runs if run.is_arm and re.search(only, run.name)]
    except re.error as error:
        raise UserError(f"--only={only} is not a regular expression ({error}); give one such as seed0") from error
    if not chosen:
        raise UserError(f"--only={only} matches no run; the first is {next(run for run in runs if run.is_arm).name}")
    return [run for run in runs if run in chosen or any(run is arm.needs for arm in chosen)]


def main(study: str, workdir: str, jobs: int, only: str, report: bool, command: Sequence[str] = runner.CGRPO) -> None:
    """Trains what is left, unless only the report is asked for, and reports."""
    if jobs < 1:
        raise UserError(f"--jobs={jobs} runs nothing; use at least 1")
    folder = places.place(workdir).resolve()
    arms = load(study)
    runs = plan(arms, folder, trains=not report)
    chosen = select(runs, only)
    if report and not folder.is_dir():
        raise UserError(f"--workdir {workdir} does not exist; leave --report out to train")
    with contextlib.nullcontext(lambda: None) if report else runner.locked(folder) as check:
        slots = runner.local_slots(jobs, command)
        failed = [] if report else runner.run_all(chosen, slots=slots, workdir=folder, check=check)
        with files.checked(folder):
            print("\n" + study_report.write(arms, runs, folder))
            study_report.write_page(arms, runs, folder)
            study_report.plot_entropy(arms, runs, folder)
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(run.name for run in failed)}")
        sys.exit(1)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the runs as Ctrl-C does
    cli.run(
        main,
        require=("study", "workdir"),
        flags={
            "study": cli.Flag("study file"),
            "workdir": cli.WORKDIR,
            "jobs": cli.Flag("runs at once", int, 2),
            "only": cli.Flag("regular expression of the runs", str, ""),
            "report": cli.Flag("only report", bool, False),
        },
    )
