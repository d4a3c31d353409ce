"""What two processes say to each other through their devices: a value each, and a number, heard of a call later."""

import os
import subprocess
import sys
import textwrap

import paths
import patience
import xla_flags

PROCESS = """
    from cgrpo_jax.runtime import processes
    processes.start_distributed()
    import jax
    here, late = jax.process_index(), processes.LateLargest()
    heard = [late(number) for number in ([0, 0, 15, 0, 0] if here else [0, 0, 0, 0, 2])]
    assert heard == [0, 0, 0, 15, 0], heard
    assert processes.share(here) == [0, 1]
    long = processes.share("x" * (10 if here else 9000))
    assert [len(one) for one in long] == [9000, 10]
"""


def test_two_processes_hear_of_each_other(tmp_path):
    environment = os.environ | {
        "PYTHON": sys.executable, "PYTHONPATH": paths.python_path(), "XLA_FLAGS": xla_flags.flags(),
    }  # fmt: skip
    command = [sys.executable, "-c", textwrap.dedent(PROCESS)]
    ended = subprocess.run(
        ["bash", str(paths.LOCAL_POD), "2", "--devices=2", "--", *command],
        env=environment, capture_output=True, text=True, timeout=patience.seconds(120), check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
