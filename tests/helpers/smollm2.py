"""SmolLM2 from the folder that CGRPO_SMOLLM2 names, and word problems for it."""

import functools
import os
import pathlib

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.inference import weights
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import RowIndex

SAMPLES, NEW, LENGTH = 4, 48, 160
PEOPLE = ("Ann", "Ben", "Carla", "Dmitri", "Eun-ji", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena", "Marco")
PROBLEMS = [
    f"{name} has {3 + i} boxes of {2 + i % 5} {thing} and gives away {1 + i % 7}. How many {thing} are left?{hint}"
    for i, name in enumerate(PEOPLE)
    for thing, hint in (("pears", ""), ("stamps", " Think step by step, and write the answer after ####."))
]
INDICES = [[RowIndex(question=q, response=n) for n in range(SAMPLES)] for q in range(len(PROBLEMS))]


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
