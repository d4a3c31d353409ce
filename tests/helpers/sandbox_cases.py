"""What the tests of rewards/sandbox/test_sandbox share with those that take longer."""

import os
import textwrap
import time

import pytest

from cgrpo_jax.rewards.sandbox import sandbox

SMALL = sandbox.Limits(cpu=2, memory=200 << 20, processes=4, disk=1 << 20, files=10, open_files=16)
LIMIT = 100_000  # bytes that are read of what a program prints


@pytest.fixture(params=[True, False], ids=["namespaces", "limits"])
def isolate(request):
    if request.param and not sandbox.isolated():
        pytest.skip("this machine allows no namespaces")
    return request.param


@pytest.fixture
def runner(tmp_path):
    file = tmp_path / "runs_text.py"
    file.write_text("def main(job):\n    exec(job['code'], {'job': job})\n")
    return file


def run(runner, isolate, code, *, seconds=20.0, limits=SMALL, **job):
    """Returns (what the program printed, how its output ended, its status); every process of it must be gone."""
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb") as end:
        job = {"code": "import os, sys\n" + textwrap.dedent(code)} | job
        with sandbox.Sandbox(runner, job, limits=limits, stdout=write, isolate=isolate) as box:
            end.close()
            text, how = sandbox.read_capped(read, limit=LIMIT, deadline=time.monotonic() + seconds)
            status = box.stop() if how != "end" or box.wait(seconds) else None
        # Whatever the program has started has its standard output: the pipe ends when the last of them has.
        while how != "end":
            _, how = sandbox.read_capped(read, limit=LIMIT, deadline=time.monotonic() + 20)
            assert how != "deadline"
    return text.decode(), status


def printed(*args, **kwargs):
    text, status = run(*args, **kwargs)
    assert status == 0
    return text.split()
