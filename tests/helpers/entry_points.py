"""`evaluate`, `diagnose` and `sample` as a command line calls them."""

import json
import re

import pytest
import start_lines
import tiny_run

from cgrpo_jax import diagnose, evaluate, sample
from cgrpo_jax.runs import cli


def call(main, flags, *argv, trains=False):
    """Calls a program with a command line."""
    cli.run(main, require=("config", "workdir"), flags=flags, trains=trains, argv=[str(one) for one in argv])


def run_evaluate(workdir, changes=None, /, *flags, **more):
    argv = [*tiny_run.arguments(workdir, changes, **more), *flags]
    cli.run(evaluate.main, require=("config", "workdir"), flags=evaluate.FLAGS, trains=False, argv=argv)


def run_diagnose(workdir, changes=None, /, *flags, **more):
    argv = [*tiny_run.arguments(workdir, changes, **more), *flags]
    cli.run(diagnose.main, require=("config", "workdir"), flags=diagnose.FLAGS, trains=False, argv=argv)


# Training answers all of its held-out questions at once. In one part, an evaluation so samples every text beside the
# same others, which makes it the same to the last bit, near ties included; and the tests' four or eight questions with
# eight samples make every number a fraction that floats hold exactly. So training's numbers must be met exactly.
ONE_PART = {"eval.texts_per_slot": 64}


def evaluated(folder):
    """Returns what an evaluation came to in the names of training's own, and the whole summary."""
    summary = json.loads((folder / "summary.json").read_text())
    numbers = {name: n["value"] if isinstance(n, dict) else n for name, n in summary["mean"].items()}
    of_training = ("pass@", "mean@", "mean_length", "truncated", "ungraded")
    return {name: value for name, value in numbers.items() if name.startswith(of_training)}, summary


def run_sample(workdir, *flags, changes=None):
    argv = [*tiny_run.arguments(workdir, changes), *flags]
    cli.run(sample.main, require=("config", "workdir"), flags=sample.FLAGS, trains=False, argv=argv)


def refused(capsys, call, *args, **kw):
    """Returns what was printed before a mistake, and the one line that names it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(*args, **kw)
    out, err = capsys.readouterr()
    err = start_lines.without(err)
    assert caught.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    return out, err


STAGES = re.compile(
    r"response \(reward ([01])\):\n(.*?)\n\n"
    r"critique \(rule\):\n(.*?Conclusion: (?:right|wrong) \[END\])\n\n"
    r"(?:refinement \(reward ([01])\):\n(.*?)|no refinement: it passes)\n\n",
    re.DOTALL,  # a text may go over several lines
)
