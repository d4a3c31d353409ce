"""A recipe of configs/recipes in miniature: its run, the rows that it learns, and one that is killed and resumed."""

import json
import pathlib
import random
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
import tiny_run
from finetune_cases import questions
from paths import CONFIGS

from cgrpo_jax import recipe
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.runs import cli, load_rows
from cgrpo_jax.runtime import files
from cgrpo_jax.training.checkpoint import SavedWeights

NAMES = sorted(path.stem for path in (CONFIGS / "recipes").glob("*.py"))
SMALL = {
    "finetune.rows_per_update": 4,
    "finetune.epochs": 1,
    "finetune.on_long": "skip",
    "collect.num_questions": 6,
    "packing.slots": 8,
    "data.num_eval": 4,
    "eval.k": (1,),
    "eval.num_samples": 1,
    "optimizer.updates_per_batch": 1,
}
QUICK = ("cft", "raft", "sft")  # in which nothing but responses is written
ARGUMENTS = {
    "raft": "num_responses=4",
    "refinement_ft": "num_responses=4,which=right",
    "critique_ft": "num_responses=4",
    "citl_ft": "num_responses=4",
    "self_training": "rounds=2,num_responses=4,max_per_question=2",
    "rco": "num_responses=2,num_critiques=2,num_refinements=2",
    "dpco": "num_responses=2,num_critiques=3,num_refinements=2",
    "grpo_then_refinement_sft": "num_responses=4",
    "one_problem_cft": "num_responses=8,num_critiques=2",
}
CLOCKS = ("seconds", "num_compilations", "weights")  # the last are named by their way from the results


def rows_given(name: str) -> list[dict]:
    """Returns rows of one's own, for the recipes that learn such."""
    asked = questions(8)
    if name == "sft":
        return [{"prompt": one, "completion": arithmetic.solution(one)} for one in asked]
    if name == "cft":
        said = ((one, arithmetic.solution(one).partition("=")[2].partition(".")[0]) for one in asked)
        return [
            {"question": one, "response": "Answer: 1", "critique": f"Step 1 is wrong: {one}={value}, not 1. "
             "Conclusion: wrong [END]"} for one, value in said
        ]  # fmt: skip
    return []


def arguments(name: str, workdir: pathlib.Path) -> list[str]:
    """Returns the command line of a recipe's miniature."""
    changes = SMALL | {"model.init": tiny_run.start()}
    if name == "one_problem_cft":  # which says itself how many
        del changes["collect.num_questions"]
    if rows := rows_given(name):
        path = workdir.parent / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes["finetune.rows"] = str(path)
    given = f":{ARGUMENTS[name]}" if name in ARGUMENTS else ""
    return [f"--recipe={CONFIGS / 'recipes' / name}.py{given}", *tiny_run.arguments(workdir, changes)]


def run(name: str, workdir: pathlib.Path) -> dict[str, list[dict]]:
    """Runs a recipe; returns the rows that it learns: of each step the context, the target and the weight."""
    shown: list[list[dict]] = []
    load = load_rows.load_rows

    def watched(config, prompts, **keywords):
        found = load(config, prompts, **keywords)
        spell = prompts.tokenizer.spell
        shown.append(
            [
                {
                    "context": spell(row.context_ids),
                    "target": spell(row.target_ids),
                    "weight": round(float(row.advantage), 4),
                    "pair": row.pair,
                }
                for unit in found.training
                for row in unit.rows
            ]
        )
        return found

    with mock.patch.object(load_rows, "load_rows", watched):
        cli.run(
            recipe.main,
            require=("config", "workdir", "recipe"),
            flags=recipe.FLAGS,
            trains=False,
            argv=arguments(name, workdir),
        )
    return dict(zip(learning(workdir), shown, strict=False))


def learning(workdir: pathlib.Path) -> list[str]:
    """Returns the names of a recipe's steps that learn rows."""
    steps = json.loads((workdir / "recipe.json").read_text())["steps"]
    return [one["name"] for one in steps if one["command"] == "finetune"]


class Killed(BaseException):
    pass


class Writes:
    """Counts what a run writes, and acts before the write of that number: a kill there is one at any moment since.

    What is on disk changes by writes alone. A checkpoint is one, files of rollouts and of results are others.
    """

    def __init__(self, at: int = 0, action: Callable[[], None] = lambda: None):
        self.number, self._at, self._action = 0, at, action

    def __enter__(self) -> "Writes":
        tiny_run.start()  # what it writes is no recipe's
        self._patches = [
            mock.patch.object(files, name, self._counted(getattr(files, name)))
            for name in ("write_atomically", "append", "whole_file")
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_) -> None:
        for patch in self._patches:
            patch.stop()

    def _counted(self, function):
        def write(*args, **keywords):
            self.number += 1
            if self.number == self._at:
                self._action()
            return function(*args, **keywords)

        return write


def moment(name: str, number: int, seed: str) -> int:
    """Returns before which of so many writes a run is killed."""
    return random.Random(f"{seed} {name}").randrange(2, number + 1)


def numbers(workdir: pathlib.Path) -> list[dict]:
    """Returns the numbers of a recipe's steps, what clocks say aside."""
    found = json.loads((workdir / "results.json").read_text())
    return [{key: value for key, value in one.items() if key not in CLOCKS} for one in found]


def differences(folder: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns in what two runs of a recipe differ: results, texts, metrics, the last weights of what trains."""
    found = [] if numbers(folder) == numbers(other) else ["results.json"]
    for one in json.loads((folder / "recipe.json").read_text())["steps"]:
        if one["command"] in ("train", "finetune"):
            ours, theirs = (weights(root / one["name"]) for root in (folder, other))
            if not all(np.array_equal(array, theirs[name]) for name, array in ours.items()):
                found.append(f"{one['name']}: weights")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        there = other / name
        if path.suffix in (".parquet", ".safetensors") or path.name in ("samples.jsonl", "greedy.jsonl"):
            if not there.exists() or path.read_bytes() != there.read_bytes():
                found.append(name)
        elif path.name == "metrics.jsonl":
            if not there.exists() or tiny_run.repeatable(path.parent) != tiny_run.repeatable(there.parent):
                found.append(name)
    return found


def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a run's newest checkpoint, by name."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with SavedWeights(folder) as saved:
        return {name: np.asarray(saved.read(name, here)) for name in saved.shapes}
