"""What a process sets up before it computes: memory, compilation cache, the processes it works with.

Several processes that compute together must also fail together: `agree` is how one tells the others.
"""

import ctypes
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from cgrpo_jax.errors import UserError

_SHUTDOWN_SECONDS = 20
_compilations = 0
_listening = False


def start() -> None:
    """Sets the process up; called once, first thing, by an entry point.

    Compiled programs are kept in `JAX_COMPILATION_CACHE_DIR`, by default `~/.cache/cgrpo_jax`.
    """
    global _listening
    _keep_freed_memory()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "cgrpo_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if not _listening:  # a second call in one process, as a notebook makes it, must not count twice
        _listening = True
        jax.monitoring.register_event_duration_secs_listener(_on_duration)


def start_distributed() -> None:
    """Joins the processes that work together; called before anything touches a device.

    On Cloud TPU, and under schedulers that JAX knows, nothing needs to be said. Elsewhere `JAX_COORDINATOR_ADDRESS`
    (HOST:PORT of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` do.

    Raises:
      UserError: a variable is missing or no number, or the processes don't find each other.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address and not re.fullmatch(r"\S+:\d+", address):
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be HOST:PORT, of process 0.")
    numbers = {}
    for name, variable in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
        value = os.environ.get(variable, "")
        if value and not re.fullmatch("[0-9]+", value):
            raise UserError(f"{variable} is {value!r}; it must be a number.")
        numbers[name] = int(value) if value else None
    # Otherwise JAX keeps SIGTERM from ending the process, and tells only who asks for it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # At its end a process waits for the others, but not for long: they end together, or one has failed.
        jax.distributed.initialize(**numbers, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not find each other ({str(error).strip().splitlines()[0]}); outside Cloud TPU set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or leave --distributed out."
        ) from error


@contextmanager
def agree(what: str) -> Iterator[None]:
    """Lets no process leave the block before all have come to its end, and makes all fail where one does.

    A process that fails here raises its own error, the others a `UserError` that names it. The block may hold no
    collective operation that a failing process would skip.

    Args:
      what: what the block does, for the message.
    """
    try:
        yield
    except Exception:
        _failed_processes(True)
        raise
    if failed := _failed_processes(False):
        raise UserError(f"{what} failed on process {', '.join(map(str, failed))}; its own message says why.")


def _failed_processes(failed: bool) -> list[int]:
    if jax.process_count() == 1:
        return []
    try:
        flags = multihost_utils.process_allgather(np.array([failed], np.int32))
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"another process has ended ({first[:160]}); its own message says why.") from error
    return np.flatnonzero(flags.reshape(-1)).tolist()


def compilations() -> int:
    """Returns the number of programs compiled (or read from the cache) since `start`."""
    return _compilations


def _on_duration(event: str, seconds: float, **_) -> None:
    global _compilations
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations += 1


def _keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next program instead of handing it back to the system.

    On a CPU every call of a program allocates its temporaries anew. With glibc's defaults their pages are given back
    and faulted in again each time: a third of an update's processor time on a small model.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_mmap_threshold, 2**30)
    mallopt(m_arena_max, 1)
