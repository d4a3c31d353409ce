"""Do refinements use the message that a private library raises? Asked before anything is trained on it.

    python tests/benchmarks/private_gate.py --model=FOLDER --workdir=DIR [--json=configs/results/private_gate.json]
        [--tasks=40] [--responses=1] [--note=TEXT] [-- --config.KEY=VALUE ...]

The model answers the first tasks over the two libraries that are for this alone (configs/studies/private_libraries.py),
each answer is run, and refined after what that says; then the same answers are refined after what another attempt at
the other library said. Both by `cgrpo collect` with configs/private_api.py and the keys behind `--`.

The gate is passed where at least 10 % of the refinements pass with their own message, and at most half as large a share
with the other one. It then ends with 0, else with 1. Each call is one more trial: `--json` keeps all of them, with the
note that says what was changed. The same command again resumes what was interrupted.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence

import pyarrow as pa
from pyarrow import parquet

from cgrpo_jax import collect
from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.estimators import wilson
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import console

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "private_api.py"
MADE = runpy.run_path(str(ROOT / "configs" / "studies" / "private_libraries.py"))
LEAST, MOST_SHUFFLED = 0.1, 0.5  # share that passes with the own message; with another one, of that share
_SEED = 26


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a trial is of; `more` are flags."""

    model: str
    workdir: pathlib.Path
    tasks: int
    responses: int
    more: tuple[str, ...] = ()

    def config(self, **changes: object) -> config_lib.Config:
        """Returns the configuration, which trains nothing."""
        data = self.workdir / "data"
        config = config_lib.load(CONFIG)
        names = [one.name for one in MADE["LIBRARIES"] if one.part == "tune"]
        tuning = {
            "model.folder": self.model,
            "data.train": str(data / "tune.jsonl"),
            "data.eval": "",
            "code.modules": tuple(str(data / "lib" / f"{name}.py") for name in names),
            "lora.rank": 0,
            "collect.num_questions": self.tasks,
            "collect.num_responses": self.responses,
            "collect.which": "failed",  # as in training
            "collect.questions_per_file": 8,
        }
        config.update_from_flattened_dict(tuning | changes)
        config_lib.override(config, list(self.more))
        return config_lib.freeze(config)


def shuffle(source: pathlib.Path, target: pathlib.Path, *, seed: int = _SEED) -> None:
    """Copies rows; each critique is shown as what was said of a failed attempt at another library.

    Args:
      source, target: folders of rows.
      seed: of the choice.

    Raises:
      UserError: a critique has no critique of a failed attempt at another library beside it.
    """
    paths = rollout_questions.files(source)
    tables = [parquet.read_table(path) for path in paths]
    rows = [
        row for table in tables for row in table.select(["stage", "text", "verdict", "problem_columns"]).to_pylist()
    ]
    said = [(_library(row), row["text"]) for row in rows if row["stage"] == "critique" and row["verdict"] is False]
    rng, target = random.Random(seed), pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    for path, table in zip(paths, tables, strict=True):
        shown = []
        for row in table.select(["stage", "problem_columns"]).to_pylist():
            if row["stage"] != "critique":
                shown.append(None)
                continue
            others = [text for library, text in said if library != _library(row)]
            if not others:
                raise UserError(f"{source}: no attempt at another library failed; give more --tasks.")
            shown.append(rng.choice(others))
        at = table.schema.get_field_index("shown")
        table = table.set_column(at, table.schema.field(at), pa.array(shown, pa.string()))  # noqa: PLW2901
        parquet.write_table(table, target / path.name)


def _library(row: dict) -> str:
    return json.loads(row["problem_columns"])["library"]


def counts(folder: pathlib.Path, stage: str) -> dict:
    """Returns of the texts of a stage how many there are, how many pass, and Wilson's 95 % interval of the share."""
    rows = []
    for path in rollout_questions.files(folder):
        rows += rollouts.read_columns(path, ("stage", "reward", "parent")).to_pylist()
    rewards = [row["reward"] for row in rows if row["stage"] == stage]
    passed = sum(reward == 1.0 for reward in rewards)
    low, high = wilson(passed, len(rewards))
    return {"texts": len(rewards), "pass": passed, "share": passed / len(rewards), "low": low, "high": high}


def _whole(folder: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a folder beside its place, and moves it there once it is whole; what a call left undone is removed."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    part.rename(folder)


def run(trial: Trial) -> dict:
    """Collects what is left to collect, and returns the numbers."""
    data, first = trial.workdir / "data", trial.workdir / "first"
    if not data.exists():
        _whole(data, lambda part: MADE["main"](str(part)))
    collect.main(trial.config(), str(trial.workdir), out=str(first))
    rows = trial.workdir / "shuffled_rows"
    if not rows.exists():
        _whole(rows, lambda part: shuffle(first, part))
    again = {"collect.rows": str(rows), "collect.num_critiques": 0, "collect.num_responses": 0}
    collect.main(trial.config(**again), str(trial.workdir), out=str(trial.workdir / "second"))
    return {
        "first_answers": counts(first, "response"),
        "true_message": counts(first, "refinement"),
        "shuffled_message": counts(trial.workdir / "second", "refinement"),
    }


def passes(result: dict) -> bool:
    """Is the gate passed?"""
    true, shuffled = (result[name]["share"] for name in ("true_message", "shuffled_message"))
    return true >= LEAST and shuffled <= MOST_SHUFFLED * true


def main(arguments: Sequence[str]) -> int:
    """Runs a trial; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the trial")
    parser.add_argument("--json", type=pathlib.Path, help="file that all trials are kept in")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--responses", type=int, default=1, help="to a task")
    parser.add_argument("--note", default="", help="what was changed since the last trial")
    parser.add_argument("more", nargs="*", help="keys of the configuration, behind --")
    given = parser.parse_args(arguments)
    trial = Trial(given.model, given.workdir.resolve(), given.tasks, given.responses, tuple(given.more))
    result = run(trial)
    found = {"note": given.note, "keys": list(given.more), "passed": passes(result), **result}
    console.say(json.dumps(found, indent=2))
    if given.json:
        kept = json.loads(given.json.read_text()) if given.json.exists() else {"trials": []}
        kept["trials"].append({"model": pathlib.Path(given.model).name} | found)
        kept["changed_before_the_last"] = len(kept["trials"]) - 1
        given.json.write_text(json.dumps(kept, indent=2) + "\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
