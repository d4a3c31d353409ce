"""The best checkpoint of a run: found while it trains, kept, found again after every way of stopping, and exported."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import paths
import pytest
import tiny_run
from converted import same_bits, weights
from entry_points import evaluated, refused, run_evaluate
from interrupted_runs import Crash, assert_same_run, crash, interrupt

from cgrpo_jax import convert
from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import benchmark
from cgrpo_jax.evaluation.held_out import HeldOut
from cgrpo_jax.runs import log
from cgrpo_jax.training.checkpoint import SavedWeights

LENGTH = 6
CHANGES = {"eval.every": 2, "eval.keep_best": "pass@1", "checkpoints.every": 1, "checkpoints.keep": 1}
CHANGES |= {"eval.k": (1,), "data.num_eval": 4}
# What each evaluation is made to find: the best is neither the first nor the last, and is found twice.
PASSED = {0: 0.25, 2: 0.5, 4: 0.5, 6: float("nan")}


def scripted(patch, passed):
    """Lets evaluations after so many iterations find what a script says."""
    evaluate, evaluate_after, now = benchmark.evaluate, HeldOut._evaluate, [0]

    def scripted_evaluate(*args, **kw):
        result, groups = evaluate(*args, **kw)
        return result | {"pass@1": passed[now[0]]}, groups

    def noted(self, *args, step):
        now[0] = step
        return evaluate_after(self, *args, step=step)

    patch.setattr(benchmark, "evaluate", scripted_evaluate)
    patch.setattr(HeldOut, "_evaluate", noted)


def best_of(folder):
    return json.loads((folder / "summary.json").read_text())["best"]


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, PASSED)
        tiny_run.run(folder, CHANGES, num_iterations=LENGTH)
    return folder


def test_the_earlier_of_two_equal_ones_stays_beside_the_newest(whole):
    assert best_of(whole) == {"step": 2, "metric": "pass@1", "value": 0.5}
    assert steps(whole) == [2, LENGTH]
    rows = tiny_run.metrics(whole)
    assert [row.get("eval/pass@1") for row in rows] == [None, 0.5, None, 0.5, None, None]  # nan is null


@pytest.mark.parametrize("when", [2, 3, 4, 5, 7])
def test_a_crash_changes_nothing_of_it(tmp_path, whole, monkeypatch, when):
    """Between an evaluation and the save of what it found, and after later ones."""
    scripted(monkeypatch, PASSED)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "_keep", when, crash)
        tiny_run.run(tmp_path, CHANGES, num_iterations=LENGTH)
    tiny_run.run(tmp_path, CHANGES, num_iterations=LENGTH)
    assert_same_run(tmp_path, whole, LENGTH, CHANGES)
    assert steps(tmp_path) == steps(whole)


@pytest.mark.parametrize("evaluation", [2, 4], ids=["which is the best", "of the last iteration"])
def test_an_evaluation_that_a_signal_cuts_short_is_made_when_the_run_resumes(
    tmp_path, whole, monkeypatch, capsys, evaluation
):
    evaluations, show = [], log.show
    scripted(monkeypatch, PASSED)

    def shown(bar, progress):
        if bar.desc == "evaluating" and not any(bar is one for one in evaluations):
            evaluations.append(bar)
            if len(evaluations) == evaluation:
                os.kill(os.getpid(), signal.SIGTERM)
        show(bar, progress)

    with monkeypatch.context() as patch:
        patch.setattr(log, "show", shown)
        tiny_run.run(tmp_path, CHANGES, num_iterations=LENGTH)
    assert "stopped by SIGTERM" in capsys.readouterr().err and not (tmp_path / "summary.json").exists()
    tiny_run.run(tmp_path, CHANGES, num_iterations=LENGTH)
    assert best_of(tmp_path) == best_of(whole) and steps(tmp_path) == steps(whole)
    with SavedWeights(tmp_path, step="best") as saved:  # what the newest checkpoint says, also where it was amended
        assert saved.step == 2


KILLED = """
import os, signal
import small_mesh
from cgrpo_jax import train
from cgrpo_jax.runs import cli

small_mesh.install()
keep = train.Run._keep

def killed(self, iteration, **kw):
    keep(self, iteration, **kw)
    if iteration == 4:
        os.kill(os.getpid(), signal.SIGKILL)

train.Run._keep = killed
cli.run(train.main, require=("config", "workdir"))
"""


def test_a_run_that_is_killed_exports_the_same_best_weights(tmp_path, capsys):
    """Killed while a checkpoint is on its way to the disk. Nothing is scripted: the numbers are of the weights."""
    changes = CHANGES | {"eval.keep_best": "-mean_length", "model.init": tiny_run.start(), "num_iterations": LENGTH}
    killed, other = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(paths.ROOT), str(paths.ROOT / "tests" / "helpers")])}
    command = [sys.executable, "-c", KILLED, *tiny_run.arguments(killed, changes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for folder in (killed, other):
        tiny_run.run(folder, changes)
        convert.export_hf(folder, tmp_path / f"out_{folder.name}", step="best")
    assert best_of(killed) == best_of(other)
    same_bits(weights(tmp_path / "out_killed"), weights(tmp_path / "out_whole"))
    lengths = {row["step"] + 1: row["eval/mean_length"] for row in tiny_run.metrics(other) if "eval/mean_length" in row}
    summary = json.loads((other / "summary.json").read_text())
    lengths[0] = summary["eval_before"]["mean_length"]
    best = min(sorted(lengths), key=lengths.__getitem__)
    assert summary["best"] == {"step": best, "metric": "-mean_length", "value": lengths[best]}
    assert summary["eval_after"]["mean_length"] == lengths[LENGTH]  # the last evaluation is of the final weights
    assert f"after iteration {best} " in (tmp_path / "out_whole" / "README.md").read_text()

    run_evaluate(other, changes, "--step=best", f"--out={tmp_path / 'best'}")
    numbers, found = evaluated(tmp_path / "best")
    assert found["weights"].endswith(f"checkpoints, step {best}")
    assert numbers["mean_length"] == pytest.approx(lengths[best])
    _, error = refused(capsys, run_evaluate, other, changes, "--step=newest", f"--out={tmp_path / 'none'}")
    assert "--step 'newest' is no step; give the number of a checkpoint, or best." in error


def test_a_run_that_kept_none_has_no_best_checkpoint(tmp_path):
    with pytest.raises(UserError, match="has no best checkpoint: its run kept none .eval.keep_best.; give the number"):
        convert.export_hf(pathlib.Path(tiny_run.start()), tmp_path / "out", step="best")
