"""Runs whose checkpoints, or whose disk, are not what they were: nothing is lost, and what happens is said."""

import errno
import os
import shutil

import pytest
import tiny_run
from interrupted_runs import assert_same_run
from refusals import refused

from cgrpo_jax import train
from cgrpo_jax.runs import cli, run_dir
from cgrpo_jax.training import checkpoint_seal

LENGTH = 3
CHANGES = {"data.num_eval": 0, "checkpoints.keep": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_run.run(tmp_path_factory.mktemp("whole"), CHANGES, num_iterations=LENGTH)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def logs(folder):
    return {path.name.partition(".before")[0]: path for path in folder.glob("*.before-*")}


def test_a_damaged_checkpoint_and_the_logs_after_the_one_before(folder, whole, capsys):
    path = max((folder / "checkpoints/3/params").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    tiny_run.run(folder, CHANGES, num_iterations=LENGTH)
    said = capsys.readouterr().err
    assert "checkpoint 3 can't be read (params/" in said and "is not what was written); using the one before" in said
    assert "iterations after 2 will be written again; what was written of them: metrics.jsonl.before-" in said
    assert logs(folder)["metrics.jsonl"].read_bytes() == (whole / "metrics.jsonl").read_bytes()
    (moved,) = logs(folder)["rollouts"].iterdir()
    assert moved.read_bytes() == (whole / "rollouts" / moved.name).read_bytes()
    assert logs(folder).keys() == {"metrics.jsonl", "rollouts"}
    assert_same_run(folder, whole, LENGTH, CHANGES)


def test_checkpoints_that_are_gone(folder, whole, capsys):
    shutil.rmtree(folder / "checkpoints")
    argv = {"model.init": tiny_run.start()} | CHANGES
    assert "has metrics of 3 iterations but no folder checkpoints" in refused(
        capsys, folder, argv, num_iterations=LENGTH
    )
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    (folder / "checkpoints").mkdir()
    tiny_run.run(folder, CHANGES, num_iterations=1)
    assert "will be written again; what was written of them: metrics.jsonl.before-" in capsys.readouterr().err
    assert logs(folder)["metrics.jsonl"].read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert tiny_run.repeatable(folder) == tiny_run.repeatable(whole)[:1]


@pytest.mark.parametrize("what", ["append_metrics", "seal"])
def test_a_full_disk_is_one_line_and_the_run_resumes(tmp_path, whole, monkeypatch, capsys, what):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def on_the_second(function):
        calls = []

        def call(*args, **kw):
            calls.append(args)
            return full() if len(calls) >= 2 else function(*args, **kw)

        return call

    argv = {"model.init": tiny_run.start()} | CHANGES
    with monkeypatch.context() as patch:
        if what == "seal":
            patch.setattr(checkpoint_seal, "write", on_the_second(checkpoint_seal.write))
        else:
            patch.setattr(run_dir.RunDir, what, on_the_second(run_dir.RunDir.append_metrics))
        with pytest.raises(SystemExit) as caught:
            arguments = tiny_run.arguments(tmp_path / "run", argv, num_iterations=LENGTH)
            cli.run(train.main, require=("config", "workdir"), argv=arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "can't be written: the disk is full; free space there" in said and "Traceback" not in said
    tiny_run.run(tmp_path / "run", CHANGES, num_iterations=LENGTH)
    assert_same_run(tmp_path / "run", whole, LENGTH, CHANGES)
