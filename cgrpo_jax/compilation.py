"""The compilation cache on disk, and how many programs have been compiled."""

import os
import pathlib

import jax

_count = 0


def _on_duration(event: str, seconds: float, **_) -> None:
    global _count
    if event == "/jax/core/compile/backend_compile_duration":
        _count += 1


def start() -> None:
    """Keeps compiled programs on disk between runs and begins to count compilations; called once by an entry point.

    The cache is `JAX_COMPILATION_CACHE_DIR`, by default `~/.cache/cgrpo_jax`.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "cgrpo_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.monitoring.register_event_duration_secs_listener(_on_duration)


def count() -> int:
    """Returns the number of programs compiled (or read from the cache) since `start`."""
    return _count
