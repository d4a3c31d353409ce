"""Where compiled programs are kept, and whether they are."""

import pathlib

import jax
import pytest

from cgrpo_jax.runtime import processes


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"JAX_COMPILATION_CACHE_DIR": "/a"}, "/a"),
        ({"JAX_COMPILATION_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/cgrpo_jax/compiled"),
        ({"HOME": "/h"}, "/h/.cache/cgrpo_jax/compiled"),
    ],
)
def test_the_folder_of_programs(environment, folder, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.programs_folder() == pathlib.Path(folder)


def test_programs_are_kept_read_and_counted(tmp_path, monkeypatch):
    """A program that is read counts as one that is compiled: a run's number of programs is the same either way."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    processes.start()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def counted(wanted):
        processes.keep_programs(wanted)
        jax.clear_caches()
        number, read = processes.compilations(), processes.programs_read()
        jax.jit(lambda x: x * 3.0 + 41.0)(1.0)
        return processes.compilations() - number, processes.programs_read() - read

    try:
        assert counted(False) == (1, 0) and not list(tmp_path.iterdir())
        assert counted(True) == (1, 0) and list(tmp_path.iterdir())
        assert counted(True) == (1, 1)
        monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
        assert counted(True) == (1, 0)
    finally:
        monkeypatch.undo()
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        jax.config.update("jax_enable_compilation_cache", False)
        processes.keep_programs(True)
