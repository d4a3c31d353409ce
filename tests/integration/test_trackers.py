"""What TensorBoard reads of whole runs, stopped, resumed, or beside a disk that fills, is what their metrics say."""

import json
import os
import sqlite3
import struct
import subprocess
import sys

import iteration_cases
import paths
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

_HOSTED = """
import os, pathlib, sys, time, types
import numpy as np
from cgrpo_jax.runs import trackers

trackers.histograms, trackers.sample = lambda done: {"lengths": np.arange(9.0)}, lambda done: "<script>a text</script>"
name, folder, first, last = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
made = trackers.make((name,), folder, config={"seed": 7}, project="p", group="study")
with trackers.Trackers(made) as tracked:
    for step in range(first, last):
        tracked.log(types.SimpleNamespace(number=step), {"step": step, "reward": step / 4, "eval/pass@1": 0.5})
    if sys.argv[5:] == ["killed"]:
        time.sleep(3)  # as an iteration takes: what is logged is sent in the background
        os._exit(9)
print(tracked.faults[name])
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


def records(path):
    """Yields the records of a W&B file: a log as LevelDB writes it, parts of records in blocks of 32 KiB."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, held = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # what is left of a block holds no part
            at += 2**15 - at % 2**15
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        held, at = held + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = protocol.Record()
            record.ParseFromString(held)
            held = b""
            yield record


def test_files_of_wandb_offline_hold_each_step_of_a_resumed_run_once_under_one_name(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
    environment = os.environ | {"PYTHONPATH": paths.python_path(), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment |= {f"WANDB_{one}_DIR": str(tmp_path / "home") for one in ("CACHE", "CONFIG", "DATA")}
    for first, last in ((0, 3), (1, 5)):  # its newest checkpoint was of step 1
        command = [sys.executable, "-c", _HOSTED, "wandb", str(tmp_path / "run"), str(first), str(last)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["0"]), ended.stderr
    rows, names = {}, set()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    for record in (record for path in files for record in records(path)):
        if record.HasField("run"):
            names.add((record.run.run_id, record.run.project, record.run.run_group))
        if record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            step = items.get("_step", record.history.step.num)
            assert step not in rows
            rows[step] = items
    assert len(files) == 2 and len(names) == 1 and {name[1:] for name in names} == {("p", "study")}
    assert sorted(rows) == list(range(5))
    assert all(rows[step]["reward"] == step / 4 and rows[step]["eval/pass@1"] == 0.5 for step in rows)
    assert all(any(key.startswith("lengths") for key in items) for items in rows.values())


def test_the_store_of_trackio_holds_each_step_of_a_killed_and_resumed_run_once_under_one_name(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed (extra trackio)")
    store = {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    environment = os.environ | store | {"PYTHONPATH": paths.python_path()}
    for first, last, *killed in ((0, 3, "killed"), (1, 5)):  # its newest checkpoint was of step 1
        command = [sys.executable, "-c", _HOSTED, "trackio", str(tmp_path / "run"), str(first), str(last), *killed]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == (9 if killed else 0), ended.stderr
    assert ended.stdout.splitlines()[-1] == "0"
    with sqlite3.connect(tmp_path / "store" / "p.db") as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        ((config,),) = opened.execute("SELECT config FROM configs").fetchall()
    name = json.loads((tmp_path / "run" / "trackio_run").read_text())["name"]
    expected = [(name, step, {"reward": step / 4, "eval/pass@1": 0.5}) for step in range(5)]
    assert [(run, step, json.loads(values)) for run, step, values in rows] == expected
    assert json.loads(config)["seed"] == 7 and json.loads(config)["_Group"] == "study"
