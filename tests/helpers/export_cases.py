"""What the tests of models/hf/test_export share with those that take longer."""

import os
import subprocess
import sys
import textwrap

import patience
import pytest
import safetensors.numpy
import xla_flags
from hf_folders import (
    LLAMA,
    random_params,
    stored_tensors,
    write_folder,
)

from cgrpo_jax.models.hf import config as hf_config


@pytest.fixture
def folder(tmp_path):
    """A small untied Llama in one file, and what is in it."""
    write_folder(tmp_path / "config", LLAMA, {})
    config = hf_config.read_config(tmp_path / "config")
    tensors = stored_tensors(random_params(config), config)
    return write_folder(tmp_path / "model", LLAMA, tensors), config, tensors


def file_contents(folder):
    """Every tensor of a folder, as bytes, with its dtype and shape."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        assert not found.keys() & tensors.keys()
        found |= {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}
    return found


def run_python(code, *arguments):
    """Runs a program with one device and returns what it wrote."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": xla_flags.flags()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience.seconds(120),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
