"""Each method of configs/methods in miniature: does its loss move as its equation says?

    PYTHONPATH=.:tests/helpers python tests/benchmarks/methods.py --workdir=DIR [--methods=dapo,gspo] [--iterations=10]
        [--json=configs/results/methods.json]

One seed, ten iterations of chains of one step, a transformer of one layer. NuRL's hints and the rulings on rubrics come
from scripted endpoints, weak to strong's refinements from the weights that the run begins with, frozen.
Of each update the program's loss is compared with the equation in the docstring of the method's file, in float64 and
with a transformer of its own (`method_equations`, `method_miniature`), and the equation's slope along the program's
gradient with that gradient's norm: so the loss moves as the equation says.

Each method is written to --json when it ends, under the version of the task and a hash of its keys, and not run again.
Exits with 1 where a loss is not the equation's to 2 parts in 10,000, or a slope to 1 in 1,000. A method takes about 15
seconds of processor time.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence

import method_miniature
import numpy as np
import tiny_run
from method_equations import DISTILLED, EQUATIONS

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.runtime import console

# Relative, and absolute where the number is about 0.
LOSS, SLOPE, FLOOR = 2e-4, 1e-3, 1e-6
# Metrics that a result has where the run has them.
MORE = ("batch/extra_questions", "verdicts/reward", "distil/divergence", "distil/loss")


def settings_of(name: str, iterations: int) -> dict:
    """Returns what a result depends on: the version of the task, and a hash of the keys."""
    text = json.dumps([tiny_run.SMALL, method_miniature.changes_of(name), iterations], sort_keys=True, default=list)
    return {"task": task_of("chains"), "settings": hashlib.sha256(text.encode()).hexdigest()[:16]}


def measure(name: str, workdir: pathlib.Path, iterations: int) -> dict:
    """Trains a method's miniature and returns its numbers."""
    folder, config, updates = method_miniature.train(name, workdir, num_iterations=iterations)
    found = np.array(list(method_miniature.compared(name, folder, config, updates)))
    value, loss, slope, norm = found.T
    rows = tiny_run.metrics(folder)
    return {
        "updates": len(found),
        # Of what is allowed: 1 is the most.
        "loss_apart": float(np.max(np.abs(-loss - value) / (LOSS * np.abs(value) + FLOOR))),
        "slope_apart": float(np.max(np.abs(slope - norm) / (SLOPE * norm + FLOOR))),
        "grad_norm": [float(one) for one in norm],
        "trained": [row["rows_trained"] for row in rows],
        "reward": [row["reward"] for row in rows],
        "loss": [row["loss"] for row in rows],
        **{key: [row.get(key) for row in rows] for key in MORE if any(key in row for row in rows)},
    }


def faults(name: str, result: dict) -> list[str]:
    """Returns what is wrong with a result, in words."""
    what = {"loss_apart": "a loss is not its equation's", "slope_apart": "a gradient is not its equation's"}
    return [
        f"{name}: {said}, by {result[key]:.3g} times what is allowed" for key, said in what.items() if result[key] > 1
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--methods", default=",".join(EQUATIONS | DISTILLED))
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args(arguments)
    done = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for name in given.methods.split(","):
        settings = settings_of(name, given.iterations)
        if {key: done.get(name, {}).get(key) for key in settings} != settings:
            done[name] = settings | measure(name, given.workdir / name, given.iterations)
            if given.json:
                given.json.write_text(json.dumps(done, indent=1) + "\n")
        one = done[name]
        said = f"loss apart {one['loss_apart']:.2f}, slope apart {one['slope_apart']:.2f} of what is allowed"
        console.say(f"{name}: {one['updates']} updates, {said}", sys.stdout)
    wrong = [fault for name in given.methods.split(",") for fault in faults(name, done[name])]
    for fault in wrong:
        console.say(fault, sys.stdout)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
