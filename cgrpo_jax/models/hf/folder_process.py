"""The process in which a folder's template and the first reading of its tokenizer run, under limits; see folder_worker.

One for all folders of this process, started when it is first needed. A request that runs into a limit ends it, and the
next starts another.
"""

import atexit
import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import folder_worker

_WALL_FACTOR, _WALL_SECONDS = 20.0, 30.0  # beyond its processor time, where others have the processors
_LONGEST_REPLY = 1 << 28  # bytes
_PROGRAM = "from cgrpo_jax.models.hf import folder_worker; folder_worker.main()"
_KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "SYSTEMROOT")  # of the environment, which may hold keys
_SET = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2", "RUST_BACKTRACE": "0"}


class FaultError(Exception):
    """What ran in the process raised; the message is what it said, in one line."""


class LimitError(Exception):
    """What ran in the process came to a limit; the message says to which, as in "takes more than 1 s"."""


class FolderProcess:
    """Asks the process.

    Example:
      FolderProcess().ask("render", "{{ messages }}", "2026-01-01", {}, [], True, 100, seconds=1.0)    # "[]"
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a fork must not speak with its parent's
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """Of the process, None where there is none."""
        return self._process.pid if self._process else None

    def ask(self, kind: str, *arguments: Any, seconds: float) -> Any:
        """Returns what a function of `folder_worker.KINDS` returns.

        Args:
          kind: which.
          arguments: its own.
          seconds: of processor time that it may take.

        Raises:
          FaultError: it raised.
          LimitError: it takes too long or too much memory, makes too much, or has ended the process.
          UserError: the process can't be started.
        """
        request = pickle.dumps((kind, seconds, arguments))
        with self._lock:
            process = self._running()
            try:
                outcome, value = self._exchange(process, request, _WALL_FACTOR * seconds + _WALL_SECONDS)
            except (EOFError, OSError, ValueError, TimeoutError):
                self._end(process)
                ended_by = process.returncode
                late = ended_by in (-signal.SIGPROF, -signal.SIGKILL)
                why = f"takes more than {seconds:g} s" if late else f"ends its process (exit code {ended_by})"
                raise LimitError(why) from None
            except BaseException:  # Ctrl-C: its reply would be taken for the next request's
                self._end(process)
                raise
        if outcome == "limit":
            raise LimitError(value)
        if outcome == "fault":
            raise FaultError(value)
        return value

    def close(self) -> None:
        """Ends the process, if it runs."""
        if self._process is not None and self._owner == os.getpid():
            self._end(self._process)

    def _running(self) -> subprocess.Popen:
        process = self._process
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        if process is not None and self._owner == os.getpid():
            self._end(process)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SET
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for whoever asks it
            )
        except OSError as error:
            raise UserError(f"the process that reads templates and tokenizers can't be started ({error}).") from None
        self._process, self._owner = process, os.getpid()
        return process

    def _exchange(self, process: subprocess.Popen, request: bytes, seconds: float) -> list[Any]:
        assert process.stdin and process.stdout
        process.stdin.write(folder_worker.LENGTH.pack(len(request)) + request)
        process.stdin.flush()
        deadline, replies = time.monotonic() + seconds, process.stdout.fileno()
        (length,) = folder_worker.LENGTH.unpack(_read(replies, folder_worker.LENGTH.size, deadline))
        if length > _LONGEST_REPLY:
            raise ValueError("no reply has so many bytes")
        return json.loads(_read(replies, length, deadline))

    def _end(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        self._process = None


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content = bytearray()
    while len(content) < count:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        piece = os.read(descriptor, min(count - len(content), 1 << 20))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)


PROCESS = FolderProcess()
