"""The same storage, as somebody else has written it: the emulator `gcp-storage-emulator`, which knows no conditions."""

import os
import subprocess
import sys

import paths
import pytest
import xla_flags

pytest.importorskip("gcsfs", reason="buckets need the extra [gcs]")
pytest.importorskip("gcp_storage_emulator", reason="it comes with the extra [test]")

PROGRAM = """
import os, socket
import bucket_server
from gcp_storage_emulator.server import create_server

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = create_server("127.0.0.1", port, in_memory=True, default_bucket="mine")
server.start()
os.environ.update(bucket_server.environment(f"http://127.0.0.1:{port}"))

from checkpoint_cases import assert_bitwise, make_state
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.training.checkpoint import Checkpoints

run = RunDir("gs://mine/run")
with run.locked():
    run.open({"seed": 1})
    for step in range(3):
        run.append_metrics({"step": step})
    run.drop_after(1)
assert run.metrics.read_text() == '{"step": 0}\\n{"step": 1}\\n'
with Checkpoints(run.checkpoints) as checkpoints:
    for step in (2, 4, 6):
        checkpoints.save(step, make_state(step), {"position": step})
with Checkpoints(run.checkpoints) as checkpoints:
    step, state, extra = checkpoints.restore_latest(make_state(0))
assert (step, extra) == (6, {"position": 6})
assert_bitwise(state, make_state(6))
assert sorted(path.name for path in run.checkpoints.iterdir()) == ["4", "6"]
server.stop()
print("all of it")
"""


def test_a_run_s_folder_on_another_implementation():
    environment = os.environ | {"PYTHONPATH": paths.python_path(), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = xla_flags.flags()
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("all of it\n"), done.stderr[-3000:]
