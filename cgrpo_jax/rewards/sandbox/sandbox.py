"""Runs programs that a model wrote, in processes that can do no harm. Linux only.

Two degrees, `isolated()` says which; `check()`, called once a run, logs where only the second can be had.

With namespaces (root, or a user who may make user namespaces; Linux 5.12 or newer):

  - files: the program sees Python and the system's libraries, read-only, and one directory, empty, in memory, of
    `Limits.disk` bytes and `Limits.files` files, which vanishes with it; no home, no data, no `/proc`;
  - network: a namespace of its own, without even a loopback that is up;
  - processes: a namespace of its own; when its first process ends, is killed or loses the process that started it,
    the kernel kills all others, whatever they did to get away.

With limits alone:

  - files: the program may read and write what its user may. Under root it runs as a user of its own, who owns nothing;
    under any other user it runs as that user, who may also kill the user's other processes and, where the kernel lets
    it (`ptrace_scope`), look into those that did not `hide`. `Limits.disk` bounds each file, nothing their number;
  - network: open;
  - processes: under root as many as `Limits.processes`, under another user none besides the first, threads included.
    They end with the first; if the process that started them is killed, only the first surely does, and the
    directory stays.

With either: CPU seconds and memory (address space) of each process, so `processes` times that in all; open files; no
environment, no descriptors but those given, no privileges and no way to gain them; on x86_64 and aarch64, where the
kernel has seccomp, no system calls that make memory of no process (System V's, memfd), new namespaces or mounts,
that look into other processes, or that no program needs and attackers do. What it writes is read up to a limit, beyond
which it is killed. Root that is denied both namespaces and a change of user has no limit of processes.
Not contained by anything: a fault of the kernel itself; the CPU's caches; what pipes and sockets hold, some hundred KiB
each; on other machines than x86_64 and aarch64, System V's shared memory, which counts for no process, and namespaces.
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.sandbox import environment, probe

_HERE = pathlib.Path(__file__).resolve().parent
_LAUNCHER = _HERE / "launcher.py"
_SIGNALLED = 128  # as in the launcher
_MAX_SAID = 10_000  # bytes
_FORK_SECONDS = 30.0  # that a launcher may take for a sandbox: at its first it starts Python
_SET_DUMPABLE = 4
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      cpu: seconds of CPU of each process.
      memory: bytes of address space of each process.
      processes: processes and threads at a time.
      disk: bytes of all files together where there are namespaces, else of each.
      files: files in its directory where there are namespaces.
      open_files: descriptors of each process.
    """

    cpu: int = 10
    memory: int = 512 << 20
    processes: int = 8
    disk: int = 8 << 20
    files: int = 256
    open_files: int = 32


class SandboxError(RuntimeError):
    """The sandbox could not be set up; no program has run."""


class _HangsError(SandboxError):
    """The process that starts sandboxes gives no answer."""


class Sandbox:
    """A program in its sandbox, running from the start; leaving the context kills it and everything it started.

    It must be started by a thread that lives as long as it is to live: the kernel kills it when that thread ends. The
    first one of a thread starts a process that all others are forked from.

    Args:
      runner: a module, or one of a package, whose function `main(job)` is called in the sandbox. It is ours, and runs
        the program that is not. It may import, as it is loaded, from its package and the standard library only.
      job: what it is called with: JSON values.
      limits: of the program.
      stdin: bytes that it can read.
      stdout: a descriptor; by default what it prints is lost.
      fds: descriptors that it is to have, as 3, 4, ... in this order.
      shown: paths that it may read beside those that Python needs.
      deadline: a time of `time.monotonic` by which it must have been started; `_FORK_SECONDS` from now at the latest.
      isolate: use namespaces; by default if `isolated()`.

    Example:
      with Sandbox(RUNNER, {"code": code}, stdout=write_end) as box:
          os.close(write_end)
          text, why = read_capped(read_end, limit=1 << 20, deadline=time.monotonic() + 5)
          status = box.stop()

    Raises:
      UserError: this machine does not run Linux.
      SandboxError: nothing could be started. A launcher that hangs is killed, and all sandboxes of its thread with it.
    """

    def __init__(
        self,
        runner: pathlib.Path,
        job: dict,
        *,
        limits: Limits | None = None,
        stdin: bytes = b"",
        stdout: int = subprocess.DEVNULL,
        fds: Sequence[int] = (),
        shown: Sequence[str] = (),
        deadline: float = math.inf,
        isolate: bool | None = None,
    ):
        if sys.platform != "linux":
            raise UserError(f"programs are run in a sandbox that needs Linux, not {sys.platform}; grade them there.")
        isolate = isolated() if isolate is None else isolate
        self._directory = None if isolate else tempfile.mkdtemp(prefix="sandbox-")
        module = _module(runner)
        setup = dict(job=job, directory=self._directory, shown=[*environment.paths(), *shown])
        setup |= dict(limits=dataclasses.asdict(limits or Limits()))
        self._status, status = os.pipe()  # what went wrong, then how the program ended
        self._said, self._ended, self._killed = b"", False, False
        try:
            with (
                os.fdopen(status, "wb"),
                _file(json.dumps(module | setup).encode()) as description,
                _file(stdin) as typed,
                open(os.devnull, "wb") as nowhere,
            ):
                output = nowhere.fileno() if stdout == subprocess.DEVNULL else stdout
                given = [description.fileno(), typed.fileno(), output, status, *fds]
                self._launcher, self._pid = _fork(isolate, module, given, deadline)
        except BaseException:
            os.close(self._status)
            self._remove()
            raise

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, kind, *_) -> None:
        self._end()
        if kind is None:
            self.stop()

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; returns whether the program has ended."""
        if not self._ended:
            assert self._status is not None, "it is open until the end was read"
            said, why = read_capped(self._status, limit=_MAX_SAID, deadline=time.monotonic() + timeout)
            self._said += said
            self._ended = why == "end"
        return self._ended

    def stop(self) -> int:
        """Kills the program and all that it started, unless they have ended, and removes its directory.

        Returns:
          The first process's exit status: 0, a positive number, or the negative of the signal that ended it.

        Raises:
          SandboxError: it could not be set up, or was killed with its launcher, which says nothing of the program.
        """
        self._end()
        said, _, status = self._said.decode(errors="replace").partition("\0")
        if said.strip():
            raise SandboxError(f"the sandbox could not be set up: {said.strip()}")
        if not status and not self._killed:
            raise SandboxError("the sandbox was killed from outside, before its program had ended")
        status = int(status or _SIGNALLED + signal.SIGKILL)
        return _SIGNALLED - status if status > _SIGNALLED else status

    def _end(self) -> None:
        if self._status is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):  # at the first, it kills the rest and then ends
            if not self.wait(0):
                with contextlib.suppress(ProcessLookupError):  # its launcher has just ended, and it, too
                    os.kill(self._pid, number)
                    self._killed = True
                self.wait(5)
        os.close(self._status)
        self._status = None
        self._launcher.ended.append(self._pid)
        self._remove()

    def _remove(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class _Launcher:
    """The process that the sandboxes of a thread are forked from; it ends with the thread.

    Attributes:
      ended: ids of its children that get no more signals.
    """

    def __init__(self, isolate: bool):
        self.ended: list[int] = []
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # That of a virtual environment is a link to it, and needs files that are not shown.
        python = sys._base_executable  # pyright: ignore[reportAttributeAccessIssue]
        command = [python, "-s", "-P", "-S", "-X", "utf8", str(_LAUNCHER)]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(int(isolate)), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={"PYTHONHASHSEED": "0"},  # the order of a set must not differ from run to run
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _end, self._channel, self._process)

    def runs(self) -> bool:
        """Is it still running?"""
        return self._process.poll() is None

    def fork(self, module: dict[str, str], fds: Sequence[int], deadline: float) -> int:
        """Starts a sandbox; returns its id.

        Raises:
          SandboxError: the launcher could not be started, hangs (a `_HangsError`), or was killed; it is no more.
        """
        ended, self.ended = self.ended, []
        seconds = max(min(_FORK_SECONDS, deadline - time.monotonic()), 0.01)  # 0 would mean not to wait at all
        self._channel.settimeout(seconds)
        try:
            socket.send_fds(self._channel, [json.dumps(module | {"ended": ended}).encode()], fds)
            answer = self._channel.recv(100)
        except TimeoutError as error:
            self._process.kill()
            raise _HangsError(f"the sandbox could not be set up: Python gave no answer within {seconds:g} s") from error
        except OSError:
            answer = b""
        if answer:
            return int(answer)
        self._process.kill()
        assert self._process.stderr is not None, "it is a pipe"
        said = self._process.stderr.read().decode(errors="replace").strip()
        raise SandboxError(f"the sandbox could not be set up: {said or 'Python did not start'}")


def _end(channel: socket.socket, process: subprocess.Popen) -> None:
    channel.close()
    with process:  # it ends when it finds the other end closed
        pass


_threads = threading.local()


def _fork(isolate: bool, module: dict[str, str], fds: Sequence[int], deadline: float) -> tuple[_Launcher, int]:
    """Starts a sandbox; returns the launcher of this thread that it was forked from, and its id.

    A launcher that was killed says nothing of the program: it is replaced, once. After one that hangs the time is over;
    the next sandbox gets another.
    """
    try:
        launcher = _launcher(isolate)
        return launcher, launcher.fork(module, fds, deadline)
    except _HangsError:
        raise
    except SandboxError:
        for read in fds[:2]:  # the description and the standard input: a sandbox may have begun to read them
            os.lseek(read, 0, os.SEEK_SET)
        launcher = _launcher(isolate, replace=True)
        return launcher, launcher.fork(module, fds, deadline)


def _launcher(isolate: bool, *, replace: bool = False) -> _Launcher:
    """Returns the launcher of this thread."""
    known = _threads.__dict__.setdefault("launchers", {})
    key = os.getpid(), isolate  # a process that was forked from this one needs its own
    if replace or key not in known or not known[key].runs():
        known[key] = _Launcher(isolate)
    return known[key]


def read_capped(fd: int, *, limit: int, deadline: float) -> tuple[bytes, str]:
    """Reads from a pipe until its end, but no more than `limit` bytes and no longer than to `deadline`.

    Args:
      fd: the descriptor.
      limit: bytes.
      deadline: a time of `time.monotonic`.

    Returns:
      (what was read; "end", "limit" or "deadline", whichever came first)
    """
    parts, size = [], 0
    while size <= limit:
        if not select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0]:
            return b"".join(parts), "deadline"
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts), "end"
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:limit], "limit"


@functools.cache
def check() -> None:
    """Checks that programs can be run here, and says in the log if that is without namespaces.

    Without namespaces it hides this process, which holds the answers, from the programs of its user.

    Raises:
      UserError: this machine does not run Linux, or Python can't be started in a sandbox at all.
    """
    if isolated():
        return
    hide()
    if (refused := _refusal(isolate=False)) is not None:
        raise UserError(f"programs can't be run in a sandbox on this machine: {refused}; use a grader that runs none.")
    _log.warning(
        "Programs run WITHOUT namespaces, because this machine does not allow them (%s): limits of CPU, memory and "
        "processes hold, but programs can reach the network and the files of their user. See "
        "cgrpo_jax/rewards/sandbox/sandbox.py.",
        _why_not(),
    )


def hide() -> None:
    """Keeps the programs of this process's user from looking into it: it may hold the answers."""
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0)


def isolated() -> bool:
    """Returns whether programs run in namespaces of their own.

    Raises:
      UserError: this machine does not run Linux.
    """
    return _why_not() is None


@functools.cache
def _why_not() -> str | None:
    return _refusal(isolate=True)


def _refusal(isolate: bool) -> str | None:
    """Starts an empty program; returns why that failed, None if it did not."""
    try:
        with Sandbox(_HERE / "probe.py", {}, isolate=isolate) as box:
            ended = box.wait(30)
            status = box.stop()
    except SandboxError as error:
        return str(error)
    finally:
        _threads.__dict__.pop("launchers", None)  # this process may never run a program itself
    if ended and status == probe.NO_LIBRARY:
        return f"the user that programs run as can't read Python's library in {sys.base_prefix}"
    return None if ended and status == 0 else f"Python ended with status {status}"


def _module(runner: pathlib.Path) -> dict[str, str]:
    """Where the module is found, and its name there."""
    folder, name = runner.parent, runner.stem
    while (folder / "__init__.py").exists():
        folder, name = folder.parent, f"{folder.name}.{name}"
    return {"folder": str(folder), "module": name}


def _file(data: bytes):
    """An open file without a name that holds `data`, at its beginning."""
    file = tempfile.TemporaryFile()
    file.write(data)
    file.seek(0)
    return file
