"""What a process sets up before it computes: memory, the compilation cache on disk, the count of compilations."""

import ctypes
import os
import pathlib
import sys

import jax

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
