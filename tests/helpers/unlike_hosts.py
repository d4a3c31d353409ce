"""Processes on this machine that are not alike: what each of several hosts was started with, and how each ended."""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import paths
import tiny_run
import xla_flags

DEVICES = 2  # of each process


@dataclasses.dataclass
class Host:
    """What one process is started with, where it is not as the others are.

    Attributes:
      command: of the package.
      changes: keys of the configuration.
      flags: more flags.
      workdir: in the place of the one that all have.
      folder: current directory.
      devices: fake ones.
      environment: more variables; None takes one away.
      distributed: whether it is told that it is one of several.
      package: folder that holds the package.
    """

    command: str = "train"
    changes: dict = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    workdir: str = ""
    folder: str | None = None
    devices: int = DEVICES
    environment: dict = dataclasses.field(default_factory=dict)
    distributed: bool = True
    package: str = ""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its status, None for one that was still there; what it said last; seconds that it took."""

    status: int | None
    out: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines with which it was refused."""
        return [line for line in self.out.splitlines() if line.startswith("error: ")]


class Hosts:
    """Processes that work together, started as `hosts` says; those that are left are killed at the block's end.

    Args:
      workdir: of the run.
      hosts: what each is started with.
      changes: keys of the configuration, of all.
    """

    def __init__(self, workdir, hosts, changes=None, /, **more):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self._began = time.monotonic()
        self._outputs = [tempfile.TemporaryFile("w+") for _ in hosts]  # a pipe would fill up
        self.processes = []
        for number, (host, out) in enumerate(zip(hosts, self._outputs, strict=True)):
            arguments = tiny_run.arguments(host.workdir or workdir, (changes or {}) | more | host.changes)
            environment = os.environ | {
                "XLA_FLAGS": xla_flags.flags(host.devices),
                "JAX_PLATFORMS": "cpu",
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(len(hosts)),
                "JAX_PROCESS_ID": str(number),
                "PYTHONPATH": host.package or str(paths.ROOT),
                **host.environment,
            }
            self.processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        f"cgrpo_jax.{host.command}",
                        *arguments,
                        *host.flags,
                        *(["--distributed"] if host.distributed else []),
                    ],
                    env={name: value for name, value in environment.items() if value is not None},
                    cwd=host.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for out in self._outputs:
            out.close()

    def wait(self, limit: float, *, among: tuple[int, ...] = ()) -> list[Ended]:
        """Waits until all, or some, have ended, and returns how; those that have not in `limit` seconds are left."""
        waited = among or range(len(self.processes))
        ended = dict.fromkeys(waited)
        deadline = time.monotonic() + limit
        while None in ended.values() and time.monotonic() < deadline:
            for number in waited:
                if ended[number] is None and self.processes[number].poll() is not None:
                    ended[number] = time.monotonic() - self._began
            time.sleep(0.05)
        return [
            Ended(
                self.processes[number].poll(),
                self.said(number),
                ended[number] or time.monotonic() - self._began,
            )
            for number in waited
        ]

    def said(self, number: int) -> str:
        """Returns what a process has printed."""
        file = self._outputs[number]
        return os.pread(file.fileno(), 2**24, 0).decode(errors="replace")

    def signal(self, number: int, which: signal.Signals) -> None:
        os.kill(self.processes[number].pid, which)


def at_iteration(workdir, count: int, hosts: Hosts, limit: float = 240) -> None:
    """Waits until so many iterations have been logged."""
    metrics, deadline = pathlib.Path(workdir) / "metrics.jsonl", time.monotonic() + limit
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert time.monotonic() < deadline and all(one.poll() is None for one in hosts.processes), hosts.said(0)
        time.sleep(0.05)
