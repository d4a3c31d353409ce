"""Runs that crash or are killed, and what makes two runs the same."""

import json

import numpy as np
import tiny_run
from tiny_run import repeatable

from cgrpo_jax import train

# The reference is not the model's file but the warm start's result, so it must come back from the run's own folder.
WARM = {"warm_start.num_updates": 2, "data.num_eval": 4, "objective.kl_coef": 0.05, "checkpoints.every": 2}
WARM |= {"objective.scale_by_std": True, "objective.aggregate": "sequence_mean"}
LENGTH = 4


def assert_same_run(folder, other, length=LENGTH, changes=WARM):
    cfg = tiny_run.config({"model.init": tiny_run.start()} | changes)
    (step, arrays), (other_step, other_arrays) = tiny_run.state(folder, cfg), tiny_run.state(other, cfg)
    assert step == other_step == length
    for ours, theirs in zip(arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert repeatable(folder) == repeatable(other)
    ours, theirs = (sorted((path / "rollouts").iterdir()) for path in (folder, other))
    assert [path.name for path in ours] == [f"step_{number:08d}.parquet" for number in range(length)]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder, other))
    for clock in ("seconds", "num_compilations"):
        ours.pop(clock), theirs.pop(clock)
    assert ours == theirs


class Crash(Exception):
    pass


def interrupt(monkeypatch, name, when, action):
    """Calls `action` as the loop enters its method `name` for the `when`th time, or whenever that is None."""
    method, calls = getattr(train.Run, name), []

    def interrupted(self, *args, **kw):
        calls.append(name)
        if when in (None, len(calls)):
            action()
        return method(self, *args, **kw)

    monkeypatch.setattr(train.Run, name, interrupted)


def crash():
    raise Crash


KILLED = """
import os, signal, time
import small_mesh
from cgrpo_jax import train
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.runs import cli, run_dir

small_mesh.install()

def killed(table, path, **keywords):
    if "step_00000002" in path.name:
        path.write_bytes(b"PAR1 half of a fi")
        while len((path.parent.parent / "metrics.jsonl").read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, path, **keywords)

write, rollouts.parquet.write_table = rollouts.parquet.write_table, killed
cli.run(train.main, require=("config", "workdir"))
"""
