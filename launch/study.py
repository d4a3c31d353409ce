"""Runs studies: trains every arm, seed and setting of one or all, or runs its recipe; ends in tables, pages and JSON.

    python launch/study.py --study=configs/studies/arithmetic.py --workdir=DIR
    python launch/study.py --all --workdir=DIR --hours=10
    python launch/study.py --page

  --study      file whose get_study() returns the arms (launch/study_file.py), such as configs/studies/arithmetic.py
  --all        all studies of --order, one after the other; runs that several of them have are run once
  --workdir    folder of the study, also gs://: DIR/SETTING/ARM/seedN holds one run, DIR/SETTING/ARM/seedN.log what it
               printed (in a bucket when it has ended; until then it lies under ~/.cache/cgrpo_jax/logs). One study at a
               time works in it. With --all DIR/runs holds the runs, and DIR/NAME what is written of a study
  --jobs       runs at once, each on its share of the cores (default: 2); 1 on an accelerator
  --only       regular expression: of all runs, those whose SETTING/ARM/seedN it matches, and their warm starts; with
               --all STUDY/SETTING/ARM/seedN
  --report     train nothing, print the table of what is done
  --hours      with --all: of this machine; when the runs in DIR have taken them no further one starts (default: 10)
  --order      with --all and --page: file whose get_order() lists study files (default: configs/studies/order.py)
  --predict    with --all: run nothing, print how many runs and hours each study is expected to take
  --results    folder of NAME.json, a study's numbers with its registration: with --all and --page
               configs/results/studies by default, with --study none is written without it. --all keeps the rows there
               of runs that DIR has not, and leaves a study of which --only matches nothing as it is
  --page       run nothing, write README.md of --results from the JSON there of the studies of --order; --all does so
               when it ends

The same command again resumes where the last one stopped: finished runs stay, an interrupted one resumes. The table is
also written to DIR/table.md, every number to DIR/results.json, the page of all runs (`cgrpo report`) to DIR/report.html
and, with matplotlib, the entropy to DIR/entropy.png. With --all files that differ from what is committed are refused: a
study is registered by the commit that its runs follow.
"""

import contextlib
import dataclasses
import pathlib
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import registration
import runner
import study_list
import study_page
import study_report
import study_results
import study_sharing
from study_file import load

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import recipe_results
from cgrpo_jax.runs import cli, recipes, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import files, places

WARM_START = "warm_start"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of the study; `config` is what config.json must hold, `needs` the run whose weights it starts from.

    Of a recipe `steps` are what recipe.json must hold; empty of a run that trains alone. `result` is the step whose
    numbers are the run's, empty: all by their names. `metrics` are those of which a mean is wanted too.
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
    result: str = ""
    metrics: Sequence[str] = ()

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
        if not self.steps:
            found, folder = runner.summary(self.folder, self.config, list(self.overrides)), self.folder
        else:
            found, folder = recipe_results.results(self.steps, self.folder), self.folder / self.result
            if found is not None and self.result:
                found = dict(found[self.result])
                if found["command"] == "finetune":
                    found.pop("num_tokens", None)  # those that it has learned, not such as were generated
        if found is not None and self.metrics:
            found = found | {"metrics": study_report.spans(folder, self.metrics)}
        return found


def plan(study: Mapping, workdir: pathlib.Path, *, trains: bool = True, shared: bool = False) -> list[Run]:
    """Returns all runs in the order in which they start: seed by seed, in each the headline arms first.

    Args:
      study: from `study_file.load`.
      workdir: of the study.
      trains: whether they must be such as can start; a report is also of runs that a later version would refuse.
      shared: whether equal runs of several studies in this folder are one run: each has a folder that is named by a
        digest of what makes it.

    Raises:
      UserError: an override names a key that no configuration has, a value of a wrong type, or what no run can have.
    """
    metrics = sorted({path[1] for _, path, *_ in study.get("columns", ()) if path[0] == "metrics"})
    known: dict[tuple, config_lib.Config] = {}  # to apply overrides takes time, and seeds differ in two of them alone

    def configured(file: str, overrides: Mapping) -> config_lib.Config:
        own = {key: value for key, value in overrides.items() if key in ("seed", "model.init")}
        changes = tuple(f"--config.{key}={value}" for key, value in overrides.items() if key not in own)
        if (file, changes) not in known:
            values = config_lib.load(file)
            config_lib.override(values, changes)
            known[file, changes] = config_lib.freeze(values)
        return config_lib.replaced(known[file, changes], own)

    def make(
        setting: Mapping, name: str, seed: int, overrides: Mapping, needs: Run | None = None, arm: Mapping | None = None
    ) -> Run:
        overrides = {**setting["overrides"], **overrides, "seed": seed}
        recipe, result = ((arm or {}).get(key, "") for key in ("recipe", "result"))
        file = setting.get("config", study["config"])
        run = Run(
            setting["name"], name, seed, workdir / setting["name"] / name / f"seed{seed}", overrides, (), {}, needs,
            (), result, metrics if arm else (),
        )  # fmt: skip
        if shared:
            run = dataclasses.replace(run, folder=workdir / study_sharing.FOLDER / "planned")
        try:
            config = configured(file, overrides)
            run = _with_steps(run, recipe, config, trains=trains)
            if trains and not recipe:
                validate.check(config)
        except UserError as error:
            raise UserError(f"{run.name}: {error}") from error
        run = dataclasses.replace(run, config=config_lib.to_json(config))
        if shared:
            run = dataclasses.replace(run, folder=study_sharing.folder_of(run, workdir))
            run = _with_steps(run, recipe, config, trains=False)
        command = ["recipe", f"--recipe={recipe}"] if recipe else ["train"]
        changes = [f"--config.{key}={value}" for key, value in overrides.items()]
        return dataclasses.replace(run, arguments=[*command, f"--config={file}", f"--workdir={run.folder}", *changes])

    runs, warm_starts = [], {}
    jobs = [
        (seed, not arm["headline"], setting, arm)
        for setting in study["settings"]
        for arm in study["arms"]
        for seed in (range(setting["seeds"]) if "seeds" in setting else arm["seeds"])
        if arm["headline"] or not setting["headline_only"]
    ]
    for seed, _, setting, arm in sorted(jobs, key=lambda job: job[:2]):  # stable: otherwise in the file's order
        if not study.get("warm_start", True):  # each starts from the weights of its configuration
            runs.append(make(setting, arm["name"], seed, arm["overrides"], arm=arm))
            continue
        at = setting["name"], seed
        if at not in warm_starts:
            # Each arm evaluates these weights itself before it trains.
            warm_start = make(setting, WARM_START, seed, {"num_iterations": 0, "data.num_eval": 0})
            warm_starts[at] = next((one for one in warm_starts.values() if one.folder == warm_start.folder), warm_start)
            if warm_starts[at] is warm_start:
                runs.append(warm_start)
        init = {"model.init": str(warm_starts[at].folder / "checkpoints"), "warm_start.num_updates": 0}
        runs.append(make(setting, arm["name"], seed, {**arm["overrides"], **init}, warm_starts[at], arm))
    return runs


def _with_steps(run: Run, recipe: str, config: config_lib.Config, *, trains: bool) -> Run:
    """Returns a run with the steps of its recipe in its folder; as it is where it has none."""
    if not recipe:
        return run
    steps = recipes.plan(recipes.load(recipe), config, run.folder, runs=trains)
    if run.result and run.result not in [one.step.name for one in steps]:
        raise UserError(f"result is {run.result!r}, which is no step of the recipe")
    return dataclasses.replace(run, steps=steps)


def select(runs: Sequence[Run], only: str, study: str = "") -> list[Run]:
    """Returns the arms' runs whose name the regular expression matches, and the warm starts that they need.

    Args:
      runs: of a study.
      only: regular expression.
      study: its name, which stands before those of the runs and a slash; such a study may have none that matches.

    Raises:
      UserError: it is no regular expression, or matches no run.
    """
    prefix = f"{study}/" if study else ""
    try:
        chosen = [run for run in runs if run.is_arm and re.search(only, prefix + run.name)]
    except re.error as error:
        raise UserError(f"--only={only} is not a regular expression ({error}); give one such as seed0") from error
    if not chosen and not study:
        raise UserError(f"--only={only} matches no run; the first is {next(run for run in runs if run.is_arm).name}")
    return [run for run in runs if run in chosen or any(run is arm.needs for arm in chosen)]


def run_study(
    study: str, workdir: str, jobs: int, only: str, report: bool, results: str = "",
    command: Sequence[str] = runner.CGRPO,
) -> list[Run]:  # fmt: skip
    """Trains what is left of a study, unless only the report is asked for, and reports; returns what failed."""
    folder = places.place(workdir).resolve()
    arms = load(study)
    runs = plan(arms, folder, trains=not report)
    chosen = select(runs, only)
    if report and not folder.is_dir():
        raise UserError(f"--workdir {workdir} does not exist; leave --report out to train")
    if results and (there := pathlib.Path(results) / f"{pathlib.Path(study).stem}.json").exists():
        study_results.read(there.parent, there.stem)  # a damaged one is said before anything runs
    with contextlib.nullcontext(lambda: None) if report else runner.locked(folder) as check:
        slots = runner.local_slots(jobs, command)
        failed = [] if report else runner.run_all(chosen, slots=slots, workdir=folder, check=check)
        with files.checked(folder):
            print("\n" + study_report.write(arms, runs, folder))
            study_report.write_page(arms, runs, folder)
            study_report.plot_entropy(arms, runs, folder)
            if results:
                path = pathlib.Path(study)
                registered = registration.of_study(path, arms)
                study_results.write(arms, path.stem, runs, folder, pathlib.Path(results), registered)
    return failed


def run_list(
    order: str, workdir: str, jobs: int, only: str, report: bool, predict: bool, hours: float, results: str,
    command: Sequence[str] = runner.CGRPO,
) -> list[Run]:  # fmt: skip
    """Trains what is left of all studies, while the hours last, and reports; returns what failed."""
    folder, into = places.place(workdir).resolve(), pathlib.Path(results)
    listed = study_list.load(pathlib.Path(order), folder, plan, trains=not (report or predict))
    if predict:
        print(study_list.prediction(listed), end="")
        return []
    chosen = {one.name: select(one.runs, only, one.name) for one in listed}
    if not any(chosen.values()):
        raise UserError(f"--only={only} matches no run; the first study is {listed[0].name}")
    if report and not folder.is_dir():
        raise UserError(f"--workdir {workdir} does not exist; leave --report out to train")
    with files.checked(into):
        into.mkdir(parents=True, exist_ok=True)
    study_list.check_results(listed, into)
    if report:
        study_list.report(listed, folder, into, lambda one: chosen[one.name])
        failed = []
    else:
        for one in listed:
            study_sharing.check_folders(one.name, chosen[one.name])
        with runner.locked(folder) as check:
            slots = runner.local_slots(jobs, command)
            failed = study_list.run_all(
                listed, folder, slots=slots, hours=hours, choose=lambda one: chosen[one.name], check=check, results=into
            )
    names = [one.name for one in listed]
    print(f"wrote {study_page.write(into, names)}; {study_list.used(folder):.2f} of {hours:g} hours are used")
    say_unlisted(into, names)
    for line in study_list.left_out(listed):
        print(f"left out: {line}")
    return failed


def say_unlisted(results: pathlib.Path, names: Sequence[str]) -> None:
    """Prints in a line which JSON files are of no listed study, if any."""
    if found := study_page.unlisted(results, names):
        print(f"left off the page, as no listed study has them: {', '.join(found)} in {results}; remove or rename them")


def main(
    study: str, workdir: str, jobs: int, only: str, report: bool, all: bool = False, hours: float = 10.0,
    order: str = str(study_list.ORDER), predict: bool = False, results: str = "", page: bool = False,
    command: Sequence[str] = runner.CGRPO,
) -> None:  # fmt: skip
    """Runs a study, all of them, or writes the page of what they found."""
    wanted = [name for name, given in (("--study", study), ("--all", all), ("--page", page)) if given]
    if len(wanted) != 1:
        raise UserError(f"{' and '.join(wanted) or 'nothing to do'}: give one of --study=FILE, --all, --page")
    of_all = results or str(study_results.RESULTS)
    if page:
        names = [path.stem for path in study_list.paths_of(pathlib.Path(order))]
        print(f"wrote {study_page.write(pathlib.Path(of_all), names)}")
        say_unlisted(pathlib.Path(of_all), names)
        return
    if not workdir and not predict:
        raise UserError("--workdir=DIR is missing: the folder of the runs")
    if jobs < 1:
        raise UserError(f"--jobs={jobs} runs nothing; use at least 1")
    if not hours > 0:
        raise UserError(f"--hours={hours:g} runs nothing; use more than 0")
    if all:
        failed = run_list(order, workdir or "runs", jobs, only, report, predict, hours, of_all, command)
    else:
        failed = run_study(study, workdir, jobs, only, report, results, command)
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
        flags={
            "study": cli.Flag("study file", str, "", is_path=True),
            "workdir": dataclasses.replace(cli.WORKDIR, default=""),
            "jobs": cli.Flag("runs at once", int, 2),
            "only": cli.Flag("regular expression of the runs", str, ""),
            "report": cli.Flag("only report", bool, False),
            "all": cli.Flag("all studies", bool, False),
            "hours": cli.Flag("of this machine", float, 10.0),
            "order": cli.Flag("list of studies", str, str(study_list.ORDER), is_path=True),
            "predict": cli.Flag("only print the expected hours", bool, False),
            "results": cli.Flag("folder of the JSON", str, "", is_path=True),
            "page": cli.Flag("only write the page", bool, False),
        },
    )
