"""A run of several processes on this machine, started by launch/local_pod.sh."""

import os
import pathlib
import subprocess
import sys
import time

import paths
import patience
import tiny_run
import xla_flags

LOCAL_POD = paths.LOCAL_POD
CUT = {"mesh.tensor": 2, "eval.num_samples": 1, "eval.k": (1,), "engine.num_slots": 2}


class Pod:
    """A run of `processes` processes of `devices` fake devices each, which begins from the miniature's weights."""

    def __init__(self, workdir, processes, devices, changes=None, /, **more):
        self.workdir = workdir
        arguments = tiny_run.arguments(workdir, {"model.init": tiny_run.start()} | CUT | (changes or {}), **more)
        command = [sys.executable, "-m", "cgrpo_jax.train", *arguments, "--distributed"]
        self.pod = subprocess.Popen(
            ["bash", str(LOCAL_POD), str(processes), f"--devices={devices}", "--", *command],
            env=os.environ
            | {"PYTHON": sys.executable, "PYTHONPATH": str(LOCAL_POD.parent.parent), "XLA_FLAGS": xla_flags.flags()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pod.terminate()
        try:
            self.pod.communicate(timeout=patience.seconds(60))
        finally:
            self.pod.kill()

    def wait(self, usual=240) -> tuple[int, str]:
        """Returns the exit status and all that was printed."""
        out = self.pod.communicate(timeout=patience.seconds(usual))[0]
        return self.pod.returncode, out

    def at_iteration(self, count):
        """Waits until so many iterations have been logged."""
        metrics, deadline = pathlib.Path(self.workdir) / "metrics.jsonl", time.monotonic() + patience.seconds(240)
        while not metrics.exists() or metrics.read_text().count("\n") < count:
            assert self.pod.poll() is None and time.monotonic() < deadline, self.wait(1)
            time.sleep(0.05)

    def process(self, number) -> int:
        """Returns the pid of one of the processes."""
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = f"--workdir={self.workdir}".encode() in command and b"cgrpo_jax.train" in command
            if ours and b"bash" not in command[0] and f"JAX_PROCESS_ID={number}".encode() in environment:
                return int(entry.name)
        raise AssertionError(f"no process {number}")


def run(*args, **more):
    with Pod(*args, **more) as pod:
        status, out = pod.wait()
    assert status == 0, out
    return pod.workdir
