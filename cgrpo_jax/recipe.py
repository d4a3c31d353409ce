"""Runs a recipe: commands that follow one another, such as collecting rows and learning them, to a table at the end.

    python -m cgrpo_jax.recipe --recipe=configs/recipes/raft.py --config=configs/quickstart.py --workdir=runs/raft

The configuration is of the model, the questions and the grader; the recipe says what is collected, which rows of it are
kept, what of a row is context and what is learnt. A recipe's arguments follow its file:
`--recipe=configs/recipes/self_training.py:rounds=3,num_responses=10`. Each step has a folder of its own in --workdir,
which all commands take as any other. The same command again resumes where it was stopped, within a step too. At the end
`results.json` has the numbers of all steps.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("recipe", sys.argv[1:])

import contextlib
import gc
import json
import sys
from collections.abc import Sequence

from cgrpo_jax import collect, evaluate, finetune, train
from cgrpo_jax.datasets import rollout_questions
from cgrpo_jax.evaluation import diversity, recipe_results
from cgrpo_jax.runs import cli, recipes
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.conversion import export_hf
from cgrpo_jax.runs.recipes import Planned
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, files, processes

FLAGS = {
    "recipe": cli.Flag("file of a recipe, such as configs/recipes/raft.py; its arguments after a colon", is_path=True)
}


def main(config: Config, workdir: str, recipe: str) -> None:
    """Runs the steps that are not done, and prints the numbers of all as tables.

    Stopped by SIGTERM or Ctrl-C, it exits as the step's command does.
    """
    processes.start(command={"the command": "recipe"})
    planned = recipes.plan(recipes.load(recipe), config, workdir)
    folder = RunDir(workdir)
    with contextlib.ExitStack() as held:
        held.enter_context(folder.locked())
        resumed = recipes.open_folder(planned, workdir)
        console.say(f"folder: {folder.path}, {'of this recipe already' if resumed else 'new'}")
        for number, one in enumerate(planned, start=1):
            place = f"step {number} of {len(planned)}"
            if one.is_done():
                console.say(f"{place} is done: {one.step.name}")
                continue
            console.say(f"{place}: {recipes.said(one)}")
            _run(one)
            gc.collect()  # its arrays, before the next one's
            if not one.is_done():
                console.say(f"{place} was stopped; the same command resumes it")
                return
        _report(planned, folder)


def _run(one: Planned) -> None:
    """Runs a step's command, as by itself."""
    command, weights, own = one.step.command, str(one.weights), str(one.folder)
    if command == "train":
        train.main(one.config, own)
    elif command == "finetune":
        finetune.main(one.config, own)
    elif command == "collect":
        collect.main(one.config, weights, out=own)
    elif command == "evaluate":
        evaluate.main(one.config, weights, out=own)
    else:
        export_hf(one.weights, one.folder, of=one.step.of)


def _report(planned: Sequence[Planned], folder: RunDir) -> None:
    rates = _first_pass_rates(planned)
    numbers = []
    for one in planned:
        kept = {} if one.step.command != "finetune" else diversity.by_difficulty(one.kept_rows(), rates)
        numbers.append((one.step.name, one.step.command, one.summary() | ({"kept": kept} if kept else {})))
    written = [{"step": name, "command": command, **summary} for name, command, summary in numbers]
    files.write_atomically(folder.path / "results.json", json.dumps(written, indent=1) + "\n")
    console.say(f"{recipe_results.tables(numbers)}the numbers of all steps are in {folder.path}", sys.stdout)


def _first_pass_rates(planned: Sequence[Planned]) -> dict[str, float]:
    """Returns of each question the pass rate in what the recipe collects first: how hard it is to who wrote that."""
    first = next((one for one in planned if one.step.command == "collect"), None)
    if first is None:
        return {}
    return diversity.pass_rates(rollout_questions.files(first.folder), pass_threshold=first.pass_threshold)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir", "recipe"), flags=FLAGS, trains=False)
