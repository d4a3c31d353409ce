"""The engine with real weights: the same text on any schedule, and as decoding of one text alone.

Runs where CGRPO_SMOLLM2 names a SmolLM2-135M-Instruct folder, for some minutes: the texts of 26 word problems, with 8,
16 and 64 slots, two chunk sizes, and on two processes.
"""

import functools
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
from near_ties import Reference
from smollm2 import INDICES, LENGTH, model, sample

from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.models import transformer

pytestmark = pytest.mark.skipif("CGRPO_SMOLLM2" not in os.environ, reason="CGRPO_SMOLLM2 names no folder")

LOCAL_POD = paths.LOCAL_POD
PROCESS = """
    import json, pathlib, sys
    from cgrpo_jax import sharding
    from cgrpo_jax.runtime import processes
    processes.start_distributed()
    import jax
    import smollm2
    assert jax.process_count() == 2 and len(jax.devices()) == 2
    groups = smollm2.sample(num_slots=8, chunk=16, mesh=sharding.make_mesh())
    rows = [[(row.token_ids.tolist(), row.logp.tolist(), row.truncated) for row in group] for group in groups]
    pathlib.Path(sys.argv[1], f"{jax.process_index()}.json").write_text(json.dumps(rows))
"""


@functools.cache
def reference():
    config, params, _, _ = model()
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def logits(params, tokens_S, segments_S):
        hidden_BSD = transformer.hidden_states(
            params, config, tokens_S[None], jnp.arange(LENGTH)[None], segments_S[None]
        )
        return transformer.logits(params, config, hidden_BSD[0])

    def of_text(tokens):
        padded, segments = np.zeros(LENGTH, np.int32), np.zeros(LENGTH, np.int32)
        padded[: len(tokens)], segments[: len(tokens)] = tokens, 1
        return np.asarray(logits(params, padded, segments))[: len(tokens)]

    return Reference(of_text, seed=1, iteration=2)


@functools.cache
def alone():
    """What all schedules below must give; each token is the draw after those before it, in a pass of its own text."""
    groups = sample(num_slots=8, chunk=64)
    reference().hold(model()[2], INDICES, groups)
    ended = [not row.truncated for group in groups for row in group]
    assert 0 < sum(ended) < len(ended)
    return groups


def hold(groups):
    reference().hold_alike(model()[2], INDICES, groups, alone())


@pytest.mark.parametrize("num_slots, chunk", [(8, 16), (16, 64), (64, 16)])
def test_slots_and_chunk_do_not_matter(num_slots, chunk):
    hold(sample(num_slots=num_slots, chunk=chunk))


def test_two_processes_sample_what_one_does(tmp_path):
    python_path = paths.python_path()
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": python_path, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path)]
    ended = subprocess.run(
        ["bash", str(LOCAL_POD), "2", "--devices=1", "--", *command],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert first == second
    hold([
        [Sampled(np.array(ids, np.int32), np.array(logp, np.float32), truncated) for ids, logp, truncated in group]
        for group in first
    ])  # fmt: skip
