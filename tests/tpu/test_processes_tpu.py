"""With libtpu installed a machine without a TPU starts in silence."""

import os
import subprocess
import sys

import paths
import pytest

from cgrpo_jax.runtime import accelerators

START = """
from cgrpo_jax.runtime import processes
processes.start()
import jax
print(jax.devices()[0].platform)
"""


def test_nothing_is_said_of_a_tpu_that_is_not_there(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("TPU_", "JAX_", "XLA_"))]:
        monkeypatch.delenv(name)
    if not accelerators.is_none():
        pytest.skip("this machine may have an accelerator")
    environment = os.environ | {"PYTHONPATH": paths.python_path()}
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")
