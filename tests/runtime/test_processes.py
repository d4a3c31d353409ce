"""Where compiled programs are kept, and whether they are."""

import pathlib
import threading
from concurrent import futures

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from cgrpo_jax.errors import UserError
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


@pytest.mark.parametrize(
    "values, lengths",
    [((["a"], {"b": 1.5}), [4104]), (("", "x" * 4094), [4104]), (("short", "y" * 9000), [4104, 8192])],
)
def test_what_is_shared_takes_one_collective_where_it_is_short(values, lengths, monkeypatch):
    """Two threads in the place of processes: 9,002 bytes of JSON are 4,096 and 4,906 more."""
    rows, both, here, seen = {}, threading.Barrier(2, timeout=60), threading.local(), []

    def gather(row):
        rows[here.number] = row
        both.wait()
        found = np.stack([rows[0], rows[1]])
        both.wait()
        seen.extend([len(row)] * (here.number == 0))
        return found

    def share(number):
        here.number = number
        return processes.share(values[number])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    with futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(share, range(2))) == [list(values)] * 2
    assert seen == lengths


def test_one_process_alone_hears_at_once():
    late = processes.LateLargest()
    assert [late(0), late(15), late(0)] == [0, 15, 0]


def test_a_process_that_is_gone_while_values_are_shared_is_a_line(monkeypatch):
    def gone(row):
        raise jax.errors.JaxRuntimeError("NCCL: remote process exited\nstack")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gone)
    with pytest.raises(UserError, match=r"^another process has ended \(NCCL: remote process exited\); its own"):
        processes.share("x")
