"""Processes that are not alike are refused with one line each, within a minute; one that hangs ends itself.

All differences, and processes that are stopped for minutes: `python tests/benchmarks/hosts.py`.
"""

import subprocess
import sys
import textwrap

import paths
import patience
import pytest
from unlike_hosts import Host, Hosts

from cgrpo_jax.runtime import watchdog

HANGS = """
    import threading
    from cgrpo_jax.runtime import watchdog

    watchdog._LOOK_SECONDS = 0.05
    watchdog.iteration(3)
    with watchdog.limits(stall=0.3, compile=0.0), watchdog.stage("rollout"):
        threading.Event().wait()
"""


@pytest.mark.parametrize(
    "other, lines",
    [
        (
            Host(changes={"sampling.temperature": 0.5}),
            ["error: the processes differ: sampling.temperature is 0.5 on process 1, 1.0 on process 0; give all"] * 2,
        ),
        (
            Host(distributed=False),
            ["error: process 1 ended: JAX_NUM_PROCESSES is 2", "error: JAX_NUM_PROCESSES is 2, so this is one of sev"],
        ),
    ],
    ids=["a key", "--distributed forgotten"],
)
def test_hosts_that_are_not_alike_are_refused(tmp_path, other, lines):
    with Hosts(tmp_path / "run", [Host(), other]) as hosts:
        ended = hosts.wait(120)
    assert [one.status for one in ended] == [2, 2], ended
    for one, line in zip(ended, lines, strict=True):
        assert len(one.errors) == 1 and one.errors[0].startswith(line), one.out
    assert not list(tmp_path.iterdir())


def test_a_process_that_hangs_ends_with_one_line():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGS)],
        env={"PYTHONPATH": paths.python_path(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=patience.seconds(60),
    )
    assert done.returncode == watchdog.STATUS
    assert done.stderr.strip().count("\n") == 0
    assert done.stderr.strip().startswith("error: nothing has ended for 0 s in rollout of iteration 3 (compute.stall")
