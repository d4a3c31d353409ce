"""What TensorBoard reads of whole runs, stopped, resumed, or beside a disk that fills, is what their metrics say."""

import os
import subprocess
import sys

import iteration_cases
import pytest
import tiny_run

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.runs import trackers

_CHILD = """
import pathlib, resource, sys, types
import numpy as np
from cgrpo_jax.runs import trackers

trackers.histograms, trackers.sample = lambda done: {"lengths": np.arange(99.0)}, lambda done: "x" * 2000
made = trackers.make(("tensorboard",), pathlib.Path(sys.argv[1]), config={"seed": 0}, project="", group="")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a disk that is full then
with trackers.Trackers(made) as tracked:
    for step in range(12):
        tracked.log(types.SimpleNamespace(number=step), {"step": step, "reward": 1.0})
print(tracked.faults["tensorboard"], "torch" in sys.modules)
"""


@pytest.fixture
def read():
    """Reads event files as TensorBoard does."""
    found = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def events(folder):
        accumulator = found.EventAccumulator(str(folder), purge_orphaned_data=True)
        accumulator.Reload()
        return accumulator

    return events


def test_tensorboard_has_each_step_of_a_resumed_run_once_as_the_metrics_have_it(tmp_path, read):
    tiny_run.run(tmp_path, {"trackers": ("tensorboard",)}, num_iterations=2)
    # The second iteration is lost, as where a run is killed before its checkpoint.
    (newest,) = [path for path in (tmp_path / "checkpoints").iterdir() if path.name == "2"]
    newest.rename(tmp_path / "lost")
    tiny_run.run(tmp_path, {"trackers": ("tensorboard",)}, num_iterations=3)
    found = read(tmp_path / "tensorboard")
    rows = tiny_run.metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    names = {name for row in rows for name, value in row.items() if value is not None} - {"step"}
    assert set(found.Tags()["scalars"]) == names
    for name in ("reward", "loss", "entropy", "num_tokens"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert [(event.step, event.value) for event in found.Scalars(name)] == expected
    assert len(list((tmp_path / "rollouts").glob(rollouts.NAMES))) == 3


def test_a_full_disk_neither_ends_nor_blocks_a_run_and_torch_is_not_imported(tmp_path, read):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "1 False\n"), ended.stderr
    assert ended.stderr.count("tracker tensorboard failed (OSError: ") == 1 and not (tmp_path / "imported").exists()
    folder = tmp_path / "run" / "tensorboard"
    steps = [event.step for event in read(folder).Scalars("reward")]
    assert steps == list(range(len(steps))) and 3 < len(steps) < 12
    # Resumed, with space: what was cut off hides nothing.
    with trackers.Trackers({"tensorboard": trackers.TensorBoard(folder, config={})}) as tracked:
        for step in range(2, 5):
            tracked.log(iteration_cases.make(step), {"step": step, "reward": step / 4})
    assert [event.step for event in read(folder).Scalars("reward")] == list(range(5))
