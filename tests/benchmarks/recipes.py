"""Each recipe of configs/recipes in miniature: what it learns and comes to; killed at a random moment, it is the same.

    PYTHONPATH=.:tests/helpers python tests/benchmarks/recipes.py --workdir=DIR [--recipes=raft,rco] [--seed=0]
        [--kills=1] [--json=configs/results/recipes.json]

One seed, chains of one step, a transformer of one layer: the numbers say that all of it works, not which recipe is
best. Each recipe runs whole; another process runs it again and kills itself (SIGKILL) before a random one of its
writes; the same command resumes that, as often as --kills says. Results, texts, metrics and last weights must be equal.
The first two rows that each step learns are shown with their weight.

Each recipe is written to --json when it ends, under the version of the task and a hash of its keys, and not run again
unless more kills are asked for.
Exits with 1 where a resumed recipe differs, or a step learns no rows. A recipe takes about a minute of processor time.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

import recipe_miniature
import tiny_run
from recipe_miniature import CONFIGS, NAMES, Writes, differences, moment, numbers

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.runtime import console

SHOWN = 2  # rows of each step that learns


def settings_of(name: str, seed: int) -> dict:
    """Returns what a result depends on: the version of the task, and a hash of the recipe and the keys."""
    given = [tiny_run.SMALL, recipe_miniature.SMALL, recipe_miniature.ARGUMENTS.get(name, ""), seed]
    text = json.dumps(given, sort_keys=True, default=list) + (CONFIGS / "recipes" / f"{name}.py").read_text()
    return {"task": task_of("chains"), "settings": hashlib.sha256(text.encode()).hexdigest()[:16]}


def measure(name: str, workdir: pathlib.Path, seed: int, kills: int = 1) -> dict:
    """Runs a recipe whole, and killed and resumed so many times; returns its numbers."""
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(workdir / "whole", ignore_errors=True)  # one that has ended would write and learn nothing now
    with Writes() as whole:
        learnt = recipe_miniature.run(name, workdir / "whole")
    found = []
    for number in range(kills):
        at = moment(name, whole.number, f"{seed} {number}" if number else str(seed))
        killed = [sys.executable, __file__, f"--workdir={workdir}", f"--recipes={name}", f"--kill_at={at}"]
        shutil.rmtree(workdir / "killed", ignore_errors=True)
        status = subprocess.run(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        recipe_miniature.run(name, workdir / "killed")
        differ = differences(workdir / "whole", workdir / "killed")
        found.append({"before_write": at, "of": whole.number, "status": status, "differences": differ})
    return {
        "steps": [
            {key: one[key] for key in one if key not in ("inputs", "task")} for one in numbers(workdir / "whole")
        ],
        "rows": {step: {"number": len(rows), "first": rows[:SHOWN]} for step, rows in learnt.items()},
        "kills": found,
    }


def kill(name: str, workdir: pathlib.Path, at: int) -> None:
    """Runs a recipe up to before a write, and kills this process there."""
    with Writes(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        recipe_miniature.run(name, workdir / "killed")


def faults(name: str, result: dict) -> list[str]:
    """Returns what is wrong with a result, in words."""
    found = [] if result["rows"] else [f"{name}: no step learnt any rows"]
    found += [f"{name}: {step} learnt no rows" for step, rows in result["rows"].items() if not rows["number"]]
    for one in result["kills"]:
        found += [f"{name}: killed and resumed it differs in {what}" for what in one["differences"]]
        if one["status"] != -signal.SIGKILL:
            found.append(f"{name}: it was not killed (status {one['status']})")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--recipes", default=",".join(NAMES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which they are killed")
    parser.add_argument("--kills", type=int, default=1, help="times that each is killed and resumed")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--kill_at", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    os.environ.setdefault("CGRPO_TEST_SHARED", str(given.workdir / "shared"))  # the weights that all start from
    names = given.recipes.split(",")
    pathlib.Path(os.environ["CGRPO_TEST_SHARED"]).mkdir(parents=True, exist_ok=True)
    if given.kill_at:
        kill(names[0], given.workdir, given.kill_at)
        return 0
    done = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for name in names:
        settings = settings_of(name, given.seed)
        before = done.get(name, {})
        if {key: before.get(key) for key in settings} != settings or len(before.get("kills", ())) < given.kills:
            done[name] = settings | measure(name, given.workdir / name, given.seed, given.kills)
            if given.json:
                given.json.write_text(json.dumps(done, indent=1) + "\n")
        rows = ", ".join(f"{one['number']} rows in {step}" for step, one in done[name]["rows"].items())
        at = ", ".join(f"{one['before_write']} of {one['of']}" for one in done[name]["kills"])
        console.say(f"{name}: {rows}; killed before write {at}", sys.stdout)
    wrong = [fault for name in names for fault in faults(name, done[name])]
    for fault in wrong:
        console.say(fault, sys.stdout)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
