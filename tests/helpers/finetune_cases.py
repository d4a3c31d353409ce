"""Rows that the miniature learns from, and runs of `finetune` on them."""

import json
import pathlib

import numpy as np
import tiny_run

from cgrpo_jax import finetune
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.runs import cli

SMALL = {
    "finetune.rows_per_update": 4,
    "finetune.epochs": 2,
    "optimizer.learning_rate": 3e-3,
    "data.num_eval": 0,
    "checkpoints.every": 2,
    "packing.slots": 8,
}


def questions(number, *, first=0):
    """Returns different chains of one step."""
    return [f"{a}{op}{b}" for a in range(2, 10) for b in range(2, 10) for op in "+*"][first : first + number]


def rows(loss, number=10, *, first=0):
    """Returns rows of a loss, two thirds of a batch of which are of one question where that is compared."""
    asked = questions(number, first=first)
    if loss == "nll":
        return [{"prompt": one, "completion": arithmetic.solution(one)} for one in asked]
    if loss == "dpo":
        return [{"prompt": one, "chosen": arithmetic.solution(one), "rejected": "Answer: 1"} for one in asked]
    said = (("Answer: 1", 0.0), ("Answer: 2", 0.25))
    some = [(one, text, u) for one in asked[: number // 2] for text, u in ((arithmetic.solution(one), 1.0), *said)]
    return [{"prompt": one, "completion": text, "utility": utility} for one, text, utility in some]


def write(path, some):
    pathlib.Path(path).write_text("".join(json.dumps(one) + "\n" for one in some))
    return str(path)


def changes(folder, loss="nll", /, **more):
    """Returns the changes of the miniature's configuration that let it learn rows of a loss, which are written.

    Its weights are drawn at random.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    files = {
        "finetune.loss": loss,
        "finetune.rows": write(folder / f"{loss}.jsonl", rows(loss)),
        "finetune.eval_rows": write(folder / f"{loss}_held_out.jsonl", rows(loss, 4, first=20)),
    }
    return SMALL | files | more


def run(workdir, given, /, **more):
    """Fine-tunes, and returns the run's folder."""
    finetune.main(tiny_run.config(given, **more), str(workdir))
    return pathlib.Path(workdir)


def call(*argv):
    """Calls `cgrpo finetune` with a command line."""
    cli.run(
        finetune.main, require=("config", "workdir"), flags=finetune.FLAGS, finetunes=True, argv=list(map(str, argv))
    )


def assert_same(folder, other, given):
    """Weights, optimiser state, metrics and summaries of two runs are the same, what clocks say aside."""
    config = tiny_run.config(given)
    (step, arrays), (other_step, other_arrays) = tiny_run.state(folder, config), tiny_run.state(other, config)
    assert step == other_step
    for ours, theirs in zip(arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tiny_run.repeatable(folder) == tiny_run.repeatable(other)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, other)]
    clocks = ("seconds", "num_compilations")
    ours, theirs = ({name: one[name] for name in one if name not in clocks} for one in summaries)
    assert ours == theirs
