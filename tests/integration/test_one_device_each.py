"""Two processes with one device each, as where every GPU has a process: arrays that each holds whole, or reads so."""

import os
import socket
import subprocess
import sys

import paths
import patience
import pytest

START = """
import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.runtime import processes

jax.config.update("jax_cpu_collectives_implementation", "gloo")
processes.start_distributed()
"""
ADAPTERS = """
import types

import tiny

from cgrpo_jax.models import lora, params
from cgrpo_jax.runs import start_weights

config = tiny.FAMILIES["llama"]
mesh = sharding.make_mesh(replica=1, fsdp=2, tensor=1)
placed = lambda shapes: sharding.placed(params.axes_like(config, shapes), shapes, mesh)
settings = lora.LoraSettings(rank=2, alpha=4.0, targets=("q", "down"))
whole = lora.init_adapters(config, settings, seed=3)
found = start_weights.initial_adapters(settings, types.SimpleNamespace(config=config, placed=placed), seed=3)
kinds = set()
for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
    (shard,) = ours.addressable_shards
    np.testing.assert_array_equal(shard.data, np.asarray(theirs)[shard.index])
    kinds.add(ours.is_fully_replicated)
assert kinds == {True, False}, kinds
"""
READ = """
mesh = sharding.make_mesh(replica=1, fsdp=2, tensor=1)
for dtype in (np.int32, np.float32):
    whole = np.arange(4 * 3 * 5).astype(dtype).reshape(4, 3, 5)
    dealt = sharding.deal(whole, mesh)
    assert not dealt.is_fully_addressable
    read = sharding.read(dealt, mesh)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, whole)
"""


@pytest.mark.parametrize("does", [ADAPTERS, READ], ids=["adapters", "read"])
def test_arrays_of_two_processes(does):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": paths.python_path(), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", START + does],
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=patience.seconds(60))[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
    finally:
        for process in started:
            process.kill()
            process.communicate()
