"""A run whose folder is in a bucket is the run that it would be on a disk, bitwise, also where it is killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import interrupted_runs
import paths
import pod
import pytest
import share
import tiny_run
from bucket_fixtures import bucket  # noqa: F401 - a fixture

from cgrpo_jax import convert, evaluate, train

CHANGES = interrupted_runs.WARM | {"checkpoints.every": 1, "num_iterations": interrupted_runs.LENGTH}
# Another program's model and data, in the place of those that the miniature makes up.
OWN = {f"model.{key}": 0 for key in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "max_context")}
OWN |= {"model.tokenizer": "", "data.kind": "jsonl", "critique.step_checker": "equations", "num_iterations": 1}
OWN |= {"eval.num_samples": 1, "eval.k": (1,), "data.num_train": 0, "data.num_eval": 4}
TRAIN = """
import small_mesh
from cgrpo_jax import train
from cgrpo_jax.runs import cli

small_mesh.install()
cli.run(train.main, require=("config", "workdir"))
"""
# What the program is killed at, one start after the other: parts of requests to the bucket.
MOMENTS = (
    " writes run/reference/0/commit_success.txt",  # the weights that the KL term compares with
    " writes run/checkpoints/1/params",  # within a checkpoint
    " writes run/checkpoints/2/commit_success.txt",  # at its last word
    "metrics.jsonl/compose",
    " writes run/rollouts/step_00000003",
)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    return tiny_run.run(tmp_path_factory.mktemp("disk") / "run", CHANGES)


def start(changes, moment, server):
    """Runs until the program asks the bucket for what a moment says, and kills it there; returns how it ended."""
    argv = tiny_run.arguments("gs://mine/run", {"model.init": tiny_run.start()} | changes)
    running = subprocess.Popen(
        [sys.executable, "-c", TRAIN, *argv],
        env=os.environ | {"PYTHONPATH": paths.python_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def kill(method, path, number):
        if moment and moment in path:
            running.send_signal(signal.SIGKILL)
            return 503  # whatever the request was, it comes to nothing
        return None

    server.faults = kill
    said, _ = running.communicate()
    server.faults = lambda method, path, number: None
    return running.returncode, said


def test_killed_at_requests_it_ends_as_on_a_disk(bucket, on_disk, tmp_path):  # noqa: F811
    for moment in share.of(MOMENTS):
        status, said = start(CHANGES, moment, bucket)
        assert status == -signal.SIGKILL, (moment, said)
    status, said = start(CHANGES, "", bucket)
    assert status == 0, said
    bucket.save("mine", "run", tmp_path / "copy")  # a checkpoint is one on a disk, too
    interrupted_runs.assert_same_run(tmp_path / "copy", on_disk, changes=CHANGES)


def test_model_and_data_in_a_bucket_are_those_of_a_disk(bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    convert.export_hf(pathlib.Path(tiny_run.start()), tmp_path / "disk" / "model")
    rows = [{"question": f"{a}+{b}*2", "answer": str(a + 2 * b)} for a in range(2, 5) for b in range(2, 5)]
    (tmp_path / "disk" / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bucket.load("mine", "given", tmp_path / "disk")
    for place in (str(tmp_path / "disk"), "gs://mine/given"):
        changes = OWN | {"model.folder": f"{place}/model", "data.train": f"{place}/data.jsonl"}
        changes |= {"data.eval": f"{place}/data.jsonl"}
        train.main(tiny_run.config(changes), f"{place}/run")
        evaluate.main(tiny_run.config(changes), f"{place}/run")
    said = capsys.readouterr().err
    assert "copying gs://mine/given/model (" in said and "copying gs://mine/given/data.jsonl (1 files" in said
    bucket.save("mine", "given/run", tmp_path / "copy")
    for name in ("rollouts/step_00000000.parquet", "evaluation/samples.jsonl", "evaluation/summary.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "disk" / "run" / name).read_bytes(), name
    assert tiny_run.repeatable(tmp_path / "copy") == tiny_run.repeatable(tmp_path / "disk" / "run")


def test_two_processes_write_and_resume_in_a_bucket(bucket, tmp_path):  # noqa: F811
    disk = pod.run(tmp_path / "disk", 2, 1, num_iterations=2)
    pod.run("gs://mine/run", 2, 1, num_iterations=1)
    pod.run("gs://mine/run", 2, 1, num_iterations=2)
    bucket.save("mine", "run", tmp_path / "copy")
    assert tiny_run.repeatable(tmp_path / "copy") == tiny_run.repeatable(disk)
    files = sorted(path.relative_to(disk) for path in (disk / "rollouts").iterdir())
    assert [(tmp_path / "copy" / name).read_bytes() for name in files] == [(disk / name).read_bytes() for name in files]
    processes = {name.rpartition("_")[2] for name in bucket.names("mine") if "/2/params/array_metadatas/" in name}
    assert processes == {"0", "1"}  # each has written its part
