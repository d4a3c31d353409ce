"""What takes longer than a unit test may, of tests/models/hf/test_export.py."""

import concurrent.futures
import socket

import export_cases
import pytest
from export_cases import file_contents, run_python
from hf_folders import (
    QWEN2,
    random_params,
    stored_tensors,
    write_folder,
)

from cgrpo_jax.models.hf import config as hf_config

folder = export_cases.folder  # the fixture


TWO_PROCESSES = """
    import functools, operator, resource, sys
    import jax
    import numpy as np

    address, rank, folder, out, limit = sys.argv[1:]
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from cgrpo_jax.models import params as params_lib
    from cgrpo_jax.models.hf import config as hf_config, export, load
    from cgrpo_jax.errors import UserError

    config = hf_config.read_config(folder)
    mesh = Mesh(np.array(jax.devices()), ("a",))
    over_both = lambda leaf: PartitionSpec(*(["a"] if len(leaf.shape) == 1 else [None, "a"]))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, over_both(leaf)), params_lib.param_shapes(config))
    params = load.load_params(folder, config, shardings=shardings)
    assert not params["embed"].is_fully_addressable
    if rank == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        read = lambda path: functools.reduce(operator.getitem, path, params)
        export.save_params(out, config, read, dtype="float32")
    except UserError as error:
        sys.stdout.write(str(error))
"""


@pytest.mark.parametrize("limit", [1_000_000, 2000])
def test_two_processes(tmp_path, limit):
    """Each holds half of every array. Process 0 writes; where it can't, both say so and neither waits."""
    settings = QWEN2 | {"num_key_value_heads": 6}  # of which two processes can hold half each
    write_folder(tmp_path / "config", settings, {})
    config = hf_config.read_config(tmp_path / "config")
    tensors = stored_tensors(random_params(config), config)
    path, out = write_folder(tmp_path / "model", settings, tensors), tmp_path / "out"
    out.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        written = [*pool.map(lambda rank: run_python(TWO_PROCESSES, address, rank, path, out, limit), range(2))]
    said = ["".join(line for line in text.splitlines() if not line.startswith("[Gloo]")) for text in written]
    if limit > 2000:
        assert said == ["", ""]
        assert file_contents(out) == {name: ("float32", t.shape, t.tobytes()) for name, t in tensors.items()}
    else:
        assert "model.safetensors can't be written: a file would be larger" in said[0]
        assert "failed on process 0; its own message says why" in said[1]
        assert not [*out.iterdir()]
