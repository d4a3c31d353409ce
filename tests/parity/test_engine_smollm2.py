"""The engine with real weights: the same text on any schedule, and as decoding of one text alone.

Runs where CGRPO_SMOLLM2 names a SmolLM2-135M-Instruct folder, for some minutes: the texts of 26 word problems, with 8,
16 and 64 slots, two chunk sizes, and on two processes.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
from near_ties import Reference

from cgrpo_jax import sharding
from cgrpo_jax.inference import weights
from cgrpo_jax.inference.engine import Engine, Sampled
from cgrpo_jax.models import transformer
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import RowIndex

pytestmark = pytest.mark.skipif("CGRPO_SMOLLM2" not in os.environ, reason="CGRPO_SMOLLM2 names no folder")

LOCAL_POD = paths.LOCAL_POD
SAMPLES, NEW, LENGTH = 4, 48, 160
PEOPLE = ("Ann", "Ben", "Carla", "Dmitri", "Eun-ji", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena", "Marco")
PROBLEMS = [
    f"{name} has {3 + i} boxes of {2 + i % 5} {thing} and gives away {1 + i % 7}. How many {thing} are left?{hint}"
    for i, name in enumerate(PEOPLE)
    for thing, hint in (("pears", ""), ("stamps", " Think step by step, and write the answer after ####."))
]
INDICES = [[RowIndex(question=q, response=n) for n in range(SAMPLES)] for q in range(len(PROBLEMS))]
PROCESS = """
    import json, pathlib, sys
    from cgrpo_jax import sharding
    from cgrpo_jax.runtime import processes
    processes.start_distributed()
    import jax
    import test_engine_smollm2 as test
    assert jax.process_count() == 2 and len(jax.devices()) == 2
    groups = test.sample(num_slots=8, chunk=16, mesh=sharding.make_mesh())
    rows = [[(row.token_ids.tolist(), row.logp.tolist(), row.truncated) for row in group] for group in groups]
    pathlib.Path(sys.argv[1], f"{jax.process_index()}.json").write_text(json.dumps(rows))
"""


@functools.cache
def model():
    """Returns its shape, its float32 weights, and the prompts."""
    folder = pathlib.Path(os.environ["CGRPO_SMOLLM2"])
    config, tokenizer = hf_config.read_config(folder), load_tokenizer(folder)
    prompts = [np.asarray(tokenizer.chat_ids([{"role": "user", "content": problem}]), np.int32) for problem in PROBLEMS]
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), load.load_params(folder, config))
    return config, params, prompts, tokenizer.eos_ids


def sample(*, num_slots, chunk, mesh=None):
    config, params, prompts, eos_ids = model()
    mesh = mesh or sharding.one_device()
    whole = jax.sharding.NamedSharding(mesh, sharding.WHOLE)
    params = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, whole, lambda at: x[at]), params)
    params = weights.split_if_needed(params, config=config, mesh=mesh)
    engine = Engine(
        config, eos_ids=eos_ids, num_slots=num_slots, length=LENGTH, longest_prompt=LENGTH - NEW, chunk=chunk, mesh=mesh
    )
    return engine.generate(params, prompts, INDICES, seed=1, iteration=2, max_length=NEW)


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
    python_path = paths.python_path(pathlib.Path(__file__).parent)
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
