"""A run whose folder is in a bucket is the run that it would be on a disk, bitwise, also where it is killed."""

import os
import signal
import subprocess
import sys

import interrupted_runs
import paths
import pytest
import tiny_run
from bucket_fixtures import bucket  # noqa: F401 - a fixture

CHANGES = interrupted_runs.WARM | {"checkpoints.every": 1, "num_iterations": interrupted_runs.LENGTH}
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
    for moment in MOMENTS:
        status, said = start(CHANGES, moment, bucket)
        assert status == -signal.SIGKILL, (moment, said)
    status, said = start(CHANGES, "", bucket)
    assert status == 0, said
    bucket.save("mine", "run", tmp_path / "copy")  # a checkpoint is one on a disk, too
    interrupted_runs.assert_same_run(tmp_path / "copy", on_disk, changes=CHANGES)
