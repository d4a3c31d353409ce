import datetime
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs.run_dir import RunDir

CONFIG = {"lr": 1e-6, "num_iterations": 10, "optimizer": {"b1": 0.9}}


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "runs" / "a")
    assert run.open(CONFIG) is False
    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_open_writes_the_config_once(run):
    assert json.loads(run.config.read_text()) == CONFIG
    assert RunDir(run.path).open(CONFIG) is True
    assert {path.name for path in run.path.iterdir()} == {"config.json", "date"}


def test_a_run_keeps_the_time_of_its_start(tmp_path):
    run = RunDir(tmp_path / "a")
    started = run.started()
    assert abs(datetime.datetime.now() - started) < datetime.timedelta(minutes=1)
    assert not run.path.exists()
    run.open(CONFIG)
    assert datetime.datetime.fromisoformat(run.date.read_text().strip()) == started == RunDir(run.path).started()
    run.date.write_text("1999-12-31T23:59:59\n")
    later = RunDir(run.path)
    later.open(CONFIG)
    assert later.started().year == 1999
    run.date.write_text("yesterday")
    with pytest.raises(UserError, match="date can't be read .*; write the run's start in it"):
        RunDir(run.path).started()


def test_open_rejects_another_config_and_names_the_keys(run):
    (run.checkpoints / "0").mkdir(parents=True)
    before = run.config.read_text()
    with pytest.raises(UserError, match=r"another config \(lr: 1e-06 -> 3e-06; optimizer.b1: 0.9 -> 0.8\); give anoth"):
        RunDir(run.path).open({"lr": 3e-6, "num_iterations": 20, "optimizer": {"b1": 0.8}})
    assert run.config.read_text() == before


def test_open_takes_another_config_where_nothing_was_saved(run):
    other = {"lr": 3e-6, "num_iterations": 20, "optimizer": {"b1": 0.8}}
    run.checkpoints.mkdir()
    assert RunDir(run.path).open(other) is True
    assert json.loads(run.config.read_text()) == other


def test_open_takes_new_values_of_ignored_keys(run):
    (run.checkpoints / "0").mkdir(parents=True)
    longer = CONFIG | {"num_iterations": 20}
    assert RunDir(run.path).open(longer) is True
    assert json.loads(run.config.read_text()) == longer
    with pytest.raises(UserError, match="num_iterations: 20 -> 30"):
        RunDir(run.path).open(CONFIG | {"num_iterations": 30}, ignore=())


def test_open_rejects_a_folder_of_something_else(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="metrics.jsonl but no config.json"):
        RunDir(tmp_path).open(CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file can't be written"):
        RunDir(tmp_path / "file").open(CONFIG)
    (tmp_path / "config.json").write_text('{"lr": ')
    with pytest.raises(UserError, match="config.json can't be read"):
        RunDir(tmp_path).open(CONFIG)


def test_nothing_is_written_before_open(tmp_path):
    RunDir(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_metrics_take_arrays_and_write_null_for_what_json_has_no_number_for(run):
    run.append_metrics({"step": np.int64(1), "loss": jnp.float32(0.5), "nan": float("nan"), "inf": np.float32("-inf")})
    run.append_metrics({"step": 2, "list": (np.array([1.0, np.nan]),), "text": "a\nb", "flag": np.bool_(True)})
    assert lines(run.metrics) == [
        {"step": 1, "loss": 0.5, "nan": None, "inf": None},
        {"step": 2, "list": [[1.0, None]], "text": "a\nb", "flag": True},
    ]


def test_a_line_without_a_step_is_rejected_and_nothing_is_written(run):
    for step in (None, 1.5):
        with pytest.raises(ValueError, match=f"metrics.jsonl needs an integer step, got {step}"):
            run.append_metrics({"step": step})
    assert not run.metrics.exists()


def test_truncate_drops_later_steps_and_an_unfinished_line(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "text": "π = 3\u2028"})
    with run.metrics.open("a") as file:
        file.write('{"step": 1, "los')
    run.drop_after(2)
    kept = [json.loads(line) for line in run.metrics.read_text().split("\n")[:-1]]
    assert kept == [{"step": step, "text": "π = 3\u2028"} for step in (1, 2)]
    run.drop_after(-1)
    assert run.metrics.read_text() == ""


def rollouts_of(run, *iterations):
    """Makes the files of these iterations, and returns what holds the names of those that are there."""
    run.rollouts.mkdir(exist_ok=True)
    for number in iterations:
        (run.rollouts / f"step_{number:08d}.parquet").write_text(str(number))
    return lambda folder=run.rollouts: sorted(path.name for path in folder.iterdir())


def test_rollouts_after_a_checkpoint_go_with_what_a_killed_run_has_left(run):
    assert run.drop_after(-1) == []  # of a run that has none
    names = rollouts_of(run, 0, 9, 10, 11)
    (run.rollouts / ".step_00000012.parquet.tmp").write_text("half")
    (run.rollouts / "mine.txt").write_text("a user's")
    assert run.drop_after(9, expected=2) == []
    assert names() == ["mine.txt", "step_00000000.parquet", "step_00000009.parquet"]


def test_rollouts_that_no_checkpoint_accounts_for_are_moved_aside(run):
    names = rollouts_of(run, 0, 1, 2)
    (aside,) = run.drop_after(0, expected=1)
    assert names() == ["step_00000000.parquet"] and aside.startswith("rollouts.before-")
    assert names(run.path / aside) == ["step_00000001.parquet", "step_00000002.parquet"]
    (again,) = run.drop_after(-1)
    assert names() == [] and names(run.path / again) == ["step_00000000.parquet"] and again != aside


def test_truncate_drops_a_character_cut_in_two(run):
    run.append_metrics({"step": 1})
    with run.metrics.open("ab") as file:
        file.write('{"step": 1, "x": "π'.encode()[:-1])
    run.drop_after(1)
    assert run.metrics.read_bytes() == b'{"step": 1}\n'


def test_truncate_leaves_a_log_alone_that_needs_no_cut(run):
    run.append_metrics({"step": 1})
    inode = run.metrics.stat().st_ino
    run.drop_after(1)
    assert run.metrics.stat().st_ino == inode


def test_truncate_names_a_damaged_line_and_changes_nothing(run):
    text = '{"step": 1}\n{"st\n{"step": 3}\n'
    run.metrics.write_text(text)
    with pytest.raises(UserError, match="metrics.jsonl, line 2 is not JSON"):
        run.drop_after(1)
    assert run.metrics.read_text() == text


def test_what_is_dropped_beyond_what_is_expected_stays_aside(run):
    for step in range(4):
        run.append_metrics({"step": step})
    names, before = rollouts_of(run, *range(4)), run.metrics.read_bytes()
    assert run.drop_after(2, expected=1) == []
    assert run.drop_after(2, expected=0) == []  # nothing more to drop
    copy, folder = run.drop_after(0, expected=1)
    assert copy.startswith("metrics.jsonl.before-") and folder.startswith("rollouts.before-")
    assert (run.path / copy).read_bytes() == before.replace(b'{"step": 3}\n', b"")
    assert lines(run.metrics) == [{"step": 0}] and names() == ["step_00000000.parquet"]
    assert names(run.path / folder) == ["step_00000001.parquet", "step_00000002.parquet"]
    assert len(run.drop_after(-1)) == 2 and run.metrics.read_text() == "" and names() == []
    assert len({path.name for path in run.path.glob("*.before-*")}) == 4  # the first two stay


def test_a_damaged_line_leaves_the_rollouts_too(run):
    names = rollouts_of(run, 0, 1)
    run.metrics.write_text('{"step": 0}\n{"st\n{"step": 1}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        run.drop_after(-1)
    assert len(names()) == 2


def test_open_refuses_rows_whose_checkpoints_are_gone(run):
    for step in range(3):
        run.append_metrics({"step": step})
    with pytest.raises(
        UserError, match="has metrics of 3 iterations but no folder checkpoints; restore it from a copy"
    ):
        RunDir(run.path).open(CONFIG)
    assert len(lines(run.metrics)) == 3
    run.checkpoints.mkdir()
    assert RunDir(run.path).open(CONFIG) is True


def test_a_crash_while_writing_the_summary_leaves_the_old_one(run, monkeypatch):
    run.write_summary({"updates": 1, "eval_before": {"pass@1": np.float32(0.5)}})

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        run.write_summary({"updates": 2})
    assert json.loads(run.summary.read_text()) == {"updates": 1, "eval_before": {"pass@1": 0.5}}
