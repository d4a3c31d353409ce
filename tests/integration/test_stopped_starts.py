"""Runs that are stopped before their first iteration: in the warm start, after it, while the engine is compiled."""

import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import tiny_run
from interrupted_runs import Crash, crash

from cgrpo_jax import train
from cgrpo_jax.evaluation.held_out import HeldOut
from cgrpo_jax.inference.running_slots import RunningSlots
from cgrpo_jax.runtime import console
from cgrpo_jax.training import train_step

# From random weights; nothing is evaluated, and GRPO has the fewest programs.
FEW = {"data.num_eval": 0, "refine.kind": "none", "eval.k": (1,), "warm_start.rows_per_update": 4}


def run(folder, changes, **more) -> pathlib.Path:
    train.main(tiny_run.config(FEW | changes, **more), str(folder))
    return pathlib.Path(folder)


def assert_same(folder, other, changes, **more):
    cfg = tiny_run.config(FEW | changes, **more)
    (step, ours), (other_step, theirs) = tiny_run.state(folder, cfg), tiny_run.state(other, cfg)
    assert step == other_step
    for one, another in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, another)
    assert tiny_run.repeatable(folder) == tiny_run.repeatable(other)


def test_sigterm_within_a_warm_start(tmp_path, monkeypatch, capsys):
    updates = []

    def asked_to_stop(numbers, **kw):
        for number in numbers:
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            updates.append(number)
            yield number

    changes, stopped = {"warm_start.num_updates": 14}, tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(console, "progress_bar", asked_to_stop)
        patch.setenv("CGRPO_STOPPED_STATUS", "75")
        with pytest.raises(SystemExit) as caught:
            run(stopped, changes, num_iterations=1)
    assert caught.value.code == 75
    assert updates == list(range(10 + 1))  # it asks at every tenth
    said = capsys.readouterr().err
    assert "the warm start is kept as it is after 10 of 14 updates" in said
    assert "stopped by SIGTERM before the first iteration; the same command starts it again" in said
    assert not (stopped / "summary.json").exists() and not (stopped / "metrics.jsonl").exists()
    assert [path.name for path in (stopped / "warm_start").iterdir()] == ["10"]
    run(stopped, changes, num_iterations=1)
    assert "the warm start goes on after 10 updates" in capsys.readouterr().err
    whole = run(tmp_path / "whole", changes, num_iterations=1)
    assert_same(stopped, whole, changes, num_iterations=1)
    assert not (stopped / "warm_start").exists() and not (whole / "warm_start").exists()


def test_a_run_that_dies_after_its_warm_start_goes_on_from_there(tmp_path, monkeypatch):
    """With another configuration it begins again: what it has learned so far was of the first one."""
    changes = {"warm_start.num_updates": 3}
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(HeldOut, "start", lambda *_: crash())
        run(tmp_path / "run", changes, num_iterations=0)
    assert [path.name for path in (tmp_path / "run" / "warm_start").iterdir()] == ["3"]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    taught, update = [], train_step.update
    monkeypatch.setattr(train_step, "update", lambda *args, **kw: taught.append(1) or update(*args, **kw))
    run(tmp_path / "run", changes, num_iterations=0)
    assert not taught and not (tmp_path / "run" / "warm_start").exists()
    run(tmp_path / "other", changes | {"warm_start.learning_rate": 1e-4}, num_iterations=0)
    assert len(taught) == 3


def test_sigterm_while_the_engine_is_compiled(tmp_path, monkeypatch, capsys):
    """It takes effect before the next program; the run that resumes is the one that was not stopped."""
    run_idle, ran = RunningSlots.run_idle, []

    def asked_to_stop(self, program):
        ran.append(program.name)
        if len(ran) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_idle(self, program)

    with monkeypatch.context() as patch:
        patch.setattr(RunningSlots, "run_idle", asked_to_stop)
        run(tmp_path / "run", {}, num_iterations=1)
    assert len(ran) == 2 and "stopped by SIGTERM after iteration 0;" in capsys.readouterr().err
    run(tmp_path / "run", {}, num_iterations=1)
    assert_same(tmp_path / "run", run(tmp_path / "whole", {}, num_iterations=1), {}, num_iterations=1)
