"""What a process sets up before it computes: memory, compilation cache, the processes it works with.

Several processes run the same program on the same numbers. They must also fail together (`agree`), take from one what
only one may know or do (`decide`), exchange what they have divided (`share`), and stop together (`signals.catch_stop`).
"""

import ctypes
import functools
import json
import os
import pathlib
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import accelerators, agreement, key_values, watchdog

_SHUTDOWN_SECONDS = 20  # that a process waits at its end for the others
# After which JAX ends the processes where one is silent; where process 0 is, between half of it and all.
# `watchdog.SILENT_SECONDS` is below that half: its one line comes first.
HEARTBEAT_SECONDS = 100
_JOIN_SECONDS = 300  # that processes may start one after the other
_SIZE, _BLOCK = 8, 4096  # bytes that say how many are shared, and those that go with them
_TELL_SECONDS = 20  # that a process which ends with a mistake waits for the others, to say so
_GONE = re.compile(r"\bGloo \w+ failed: ")  # how a program ends whose other processes don't take part any more
_PLATFORMS, _KEEPS = "jax_platforms", "jax_enable_compilation_cache"  # of JAX's configuration
_compilations = 0
_read = 0  # of the compilations, from the cache
_listening = False


def start(*, distributed: bool = False, command: Mapping[str, Any] | None = None) -> None:
    """Sets the process up; called once, first thing, by an entry point.

    Compiled programs are kept in `programs_folder`. On a machine without any accelerator JAX does not look for one.

    Args:
      distributed: also join the processes that work together, as `start_distributed` does.
      command: what is run, and the flags that must be the same on all of them, as for `agreement.check_programs`.

    Raises:
      UserError: from `start_distributed`; the process is one of several and not to join them; or they run other
        commands, code or devices.
    """
    global _listening
    _keep_freed_memory()
    if not getattr(jax.config, _PLATFORMS) and accelerators.is_none():
        jax.config.update(_PLATFORMS, "cpu")
    jax.config.update("jax_compilation_cache_dir", str(programs_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if not _listening:  # a second call in one process, as a notebook makes it, must not count twice
        _listening = True
        jax.monitoring.register_event_duration_secs_listener(_on_duration)
        jax.monitoring.register_event_listener(_on_event)
    if distributed:
        start_distributed()
        watchdog.start()
        agreement.check_programs(command or {})
    elif _one_of_several():
        raise UserError(
            f"JAX_NUM_PROCESSES is {os.environ['JAX_NUM_PROCESSES']}, so this is one of several processes; give each "
            "--distributed, or unset the variable."
        )


def programs_folder() -> pathlib.Path:
    """Returns where compiled programs are kept: `JAX_COMPILATION_CACHE_DIR`, or a folder of the user's cache."""
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(folder)
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "cgrpo_jax" / "compiled"


def keep_programs(wanted: bool) -> None:
    """Says whether programs are kept, and read where they are; `JAX_ENABLE_COMPILATION_CACHE=false` says so too."""
    given = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower()
    kept = wanted and given not in ("0", "false", "n", "no", "f", "off")
    if kept != getattr(jax.config, _KEEPS):
        jax.config.update(_KEEPS, kept)
        compilation_cache.reset_cache()  # JAX looks at it once a process


def _one_of_several() -> bool:
    """Whether the environment says that this is one of several processes."""
    return os.environ.get("JAX_NUM_PROCESSES", "1") not in ("", "1")


def start_distributed() -> None:
    """Joins the processes that work together; called before anything touches a device.

    On Cloud TPU, and under schedulers that JAX knows, nothing needs to be said. Elsewhere `JAX_COORDINATOR_ADDRESS`
    (HOST:PORT of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` do.

    Where the processes don't find each other in time, this one ends with one line, and status 2.

    Raises:
      UserError: a variable is missing or no number, the port is taken, or the processes can't find each other.
    """
    lost = f"the processes did not find each other in {_JOIN_SECONDS} s; see that all of them were started"
    _join(_JOIN_SECONDS, lambda: watchdog.end(lost, 2))


def _join(seconds: int, give_up: Callable[[], None]) -> None:
    """Joins the others as `start_distributed` does; calls `give_up`, which must end the process, if they don't come."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address and not re.fullmatch(r"\S+:\d+", address):
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be HOST:PORT, of process 0.")
    numbers = {}
    for name, variable in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
        value = os.environ.get(variable, "")
        if value and not re.fullmatch("[0-9]{1,6}", value):
            raise UserError(f"{variable} is {value!r}; it must be a number.")
        numbers[name] = int(value) if value else None
    if address and numbers["process_id"] == 0:
        _check_free(address)
    # Otherwise JAX keeps SIGTERM from ending the process, and reports it only on request.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        # At its end a process waits for the others, but not for long: they end together, or one has failed.
        jax.distributed.initialize(
            **numbers,
            initialization_timeout=2 * seconds,  # at which JAX aborts
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not find each other ({str(error).strip().splitlines()[0]}); outside Cloud TPU set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or leave --distributed out."
        ) from error
    finally:
        timer.cancel()


def _check_free(address: str) -> None:
    """Checks that process 0 can listen: JAX ends the process with a segmentation fault where it can't."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"JAX_COORDINATOR_ADDRESS {address} can't be used ({why}); give another port.") from error


def tell_others(mistake: str, *, joins: bool | None = None) -> None:
    """Says to the processes that work with this one why it ends; they end too, and need not wait for it.

    One that has not joined them yet, because its command line is wrong or without --distributed, does so for this, and
    ends here with status 2 if nobody comes.

    Args:
      mistake: one line.
      joins: whether it joins them for this; by default where the environment says that it is one of several.
    """
    if not key_values.joined():
        known = _one_of_several() and os.environ.get("JAX_COORDINATOR_ADDRESS")
        if not (known if joins is None else joins):
            return
        try:
            _join(_TELL_SECONDS, lambda: os._exit(2))
        except UserError:  # why it can't has been said, or is no matter
            return
    if key_values.place()[1] > 1:
        # Process 0, which holds what is said, may be gone or hang.
        saying = threading.Thread(target=_say_ended, args=(mistake,), daemon=True)
        saying.start()
        saying.join(timeout=5)


def _say_ended(mistake: str) -> None:
    with suppress(jax.errors.JaxRuntimeError, ValueError):
        key_values.put(key_values.ENDED, mistake)


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
        raise _ended(error) from error
    return np.flatnonzero(flags.reshape(-1)).tolist()


def _ended(error: BaseException) -> UserError:
    first = str(error).strip().partition("\n")[0]
    return UserError(f"another process has ended ({first[:160]}); its own message says why.")


@contextmanager
def noticed() -> Iterator[None]:
    """Makes a `UserError` of what fails within the block because another process is gone, as where it was killed.

    JAX raises a `JaxRuntimeError` of a program whose processes don't all take part, or a `ValueError`, and libraries
    errors of their own after it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if _GONE.search(str(cause)):
                raise _ended(cause) from error
            cause = cause.__cause__ or cause.__context__
        raise


def is_first() -> bool:
    """Returns whether this process is the one that writes text: process 0."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """Returns the largest of the numbers that the processes give; all must call this together."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array([number], np.int32)).max())


class LateLargest:
    """The largest of the numbers that the processes gave when they asked before; 0 at first.

    All must ask together. Nothing waits for what the devices have been given since: `largest` would, so that the host
    could not give them more meanwhile. One process alone has its answer at once.
    """

    def __init__(self):
        self._sent: jax.Array | None = None

    def __call__(self, number: int) -> int:
        if jax.process_count() == 1:
            return number
        devices = np.array(jax.devices()).reshape(jax.process_count(), jax.local_device_count())
        mesh = jax.sharding.Mesh(devices, ("processes", "local"))
        own = np.array([number], np.int32)
        each = multihost_utils.host_local_array_to_global_array(own, mesh, PartitionSpec("processes"))
        before, self._sent = self._sent, _replicated(NamedSharding(mesh, PartitionSpec()))(each)
        return 0 if before is None else int(np.asarray(before.addressable_data(0)).max())


@functools.cache  # else it would be compiled at every call
def _replicated(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


def share(value: Any) -> list:
    """Returns what every process gives, a JSON value, in the order of the processes; all must call this together.

    Takes one collective operation where all give up to `_BLOCK` bytes, and another for what is more.
    """
    if jax.process_count() == 1:
        return [value]
    data = json.dumps(value).encode()
    rows = _gathered(len(data).to_bytes(_SIZE, "little") + data[:_BLOCK], _SIZE + _BLOCK)
    sizes = [int.from_bytes(row[:_SIZE], "little") for row in rows]
    if (more := max(sizes) - _BLOCK) > 0:
        length = 1 << (more - 1).bit_length()  # powers of two: few programs, whatever is shared
        rows = [one + other for one, other in zip(rows, _gathered(data[_BLOCK:], length), strict=True)]
    return [json.loads(row[_SIZE : _SIZE + size]) for row, size in zip(rows, sizes, strict=True)]


def _gathered(data: bytes, length: int) -> list[bytes]:
    """Returns what every process gives, filled up to a length with zeros."""
    row = np.frombuffer(data.ljust(length, b"\0"), np.uint8)
    try:
        return [one.tobytes() for one in multihost_utils.process_allgather(row).reshape(-1, length)]
    except jax.errors.JaxRuntimeError as error:
        raise _ended(error) from error


def decide(make: Callable[[], Any], what: str) -> Any:
    """Returns on every process what `make`, called on process 0 alone, returns: a JSON value.

    Args:
      make: may read and write files; where it raises, all processes fail.
      what: what it does, for the message.
    """
    value = None
    with agree(what):
        if is_first():
            value = make()
    return share(value)[0]


def compilations() -> int:
    """Returns the number of programs compiled (or read from the cache) since `start`."""
    return _compilations


def programs_read() -> int:
    """Returns how many of `compilations` were read, not compiled."""
    return _read


def _on_event(event: str, **_: str | int) -> None:
    global _read
    if event == "/jax/compilation_cache/cache_hits":
        _read += 1


def _on_duration(event: str, duration_secs: float, **_: str | int) -> None:
    global _compilations
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations += 1


def _keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next program instead of handing it back to the system.

    On a CPU every call of a program allocates its temporaries again. With glibc's defaults their pages are given back
    and faulted in again each time: a third of an update's processor time on a small model.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt(m_trim_threshold, -1)
    mallopt(m_mmap_threshold, 2**31 - 1)
    mallopt(m_arena_max, 1)
