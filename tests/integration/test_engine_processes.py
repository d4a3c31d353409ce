"""The engine on two processes of two devices each gives the texts that one process gives."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import paths
import patience
import pytest
import xla_flags
from small_engine import MANY, many, reference, responses

from cgrpo_jax.inference.engine import Sampled

LOCAL_POD = paths.LOCAL_POD
PROCESS = """
    import json, pathlib, sys
    from cgrpo_jax import sharding
    from cgrpo_jax.inference import weights
    from cgrpo_jax.models import params as params_lib
    from cgrpo_jax.runtime import processes
    processes.start_distributed()
    import jax
    import small_engine
    tensor, out = sys.argv[1:]
    assert jax.process_count() == 2 and len(jax.devices()) == 4
    mesh, config = sharding.make_mesh(tensor=int(tensor)), small_engine.EVERYTHING
    where = sharding.param_shardings(params_lib.axes_like(config, small_engine.PARAMS), small_engine.PARAMS, mesh)
    params = jax.tree.map(
        lambda x, where: jax.make_array_from_callback(x.shape, where, lambda at: jax.device_get(x)[at]),
        small_engine.PARAMS, where,
    )
    params = weights.to_generation(params, config=config, mesh=mesh, dtype="float32", split=True)
    made = small_engine.engine(num_slots=3, mesh=mesh)
    groups = small_engine.sample(small_engine.MANY, make=made, params=params)
    rows = [[(row.token_ids.tolist(), row.logp.tolist(), row.truncated) for row in group] for group in groups]
    pathlib.Path(out, f"{jax.process_index()}.json").write_text(json.dumps(rows))
"""


@pytest.mark.parametrize("tensor", [1, 4], ids=["four data groups", "tensor across processes"])
def test_two_processes_sample_what_one_does(tmp_path, tensor):
    python_path = paths.python_path()
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": python_path, "XLA_FLAGS": xla_flags.flags()}
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tensor), str(tmp_path)]
    ended = subprocess.run(
        ["bash", str(LOCAL_POD), "2", "--devices=2", "--", *command],
        env=environment, capture_output=True, text=True, timeout=patience.seconds(240), check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert first == second
    groups = [
        [Sampled(np.array(ids, np.int32), np.array(logp, np.float32), truncated) for ids, logp, truncated in group]
        for group in first
    ]
    indices = responses(len(MANY), 3)
    reference().hold(MANY, indices, groups)
    reference().hold_alike(MANY, indices, groups, many())
