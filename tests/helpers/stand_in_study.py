"""A stand-in for the training of a study's runs, which writes a run's files at once."""

import json

from cgrpo_jax.datasets.problems import task_of

CONFIG = """
from configs import base

def get_config():
    c = base.get_config()
    c.num_iterations = 60
    c.data.kind = "chains"
    c.warm_start.num_updates = 5
    c.warm_start.rows_per_update = 64
    return c
"""

# Does what `train` does to a folder, and fails, or takes long, where a file says so.
STAND_IN = """
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
folder = next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2]
with (here / "started").open("a") as file:
    file.write(folder + chr(10))
if (here / "bad").exists() and (here / "bad").read_text() in folder:
    sys.exit("error: no luck" + chr(13) + "training: 0%")
if (here / "slow").exists() and (here / "slow").read_text() in folder:
    time.sleep(600)
expected = json.loads((here / "expected.json").read_text())
if folder.startswith("gs://mine/"):
    import urllib.request
    print("log of", folder)
    url = os.environ["STORAGE_EMULATOR_HOST"] + "/upload/storage/v1/b/mine/o?uploadType=media&name="
    for name, content in expected[folder].items():
        to = url + folder.removeprefix("gs://mine/") + "/" + name
        urllib.request.urlopen(urllib.request.Request(to, content.encode(), method="POST")).read()
    sys.exit()
os.makedirs(folder, exist_ok=True)
for name, content in expected[folder].items():
    pathlib.Path(folder, name).write_text(content)
"""


def summary(before=0.25, after=0.5, solved=0.125, tokens=2000):
    both = [None if value is None else {"pass@1": value, "pass@8": value + 0.25} for value in (before, after)]
    return {
        "eval_before": both[0],
        "eval_after": both[1],
        "unsolved_before_solved_after": solved,
        "num_tokens": tokens,
        "iterations": 60 if before else 0,
        "task": task_of("chains"),
    }


def files_of(run, result):
    metrics = [
        {"step": 0, "rows_trained": 4, "entropy": 0.5 + run.seed, "refined/entropy": 1.0},
        {"step": 1, "rows_trained": 0, "entropy": 0.0},
    ]
    return {
        "config.json": json.dumps(run.config),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metrics),
        "summary.json": json.dumps(result),
    }
