"""Pages on a mesh of data and tensor groups, stacked weights, several ways to draw: the contiguous cache's texts."""

import dataclasses

import jax
import numpy as np
from compilations import compilations
from small_engine import EOS, LENGTH, MANY, groups_of, responses, run
from tiny import EVERYTHING, random_params

from cgrpo_jax import sharding
from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models import params as params_lib

WIDE = dataclasses.replace(EVERYTHING, vocab_size=64, embed_dim=16, num_heads=8, num_kv_heads=2, mlp_dim=32)
WAYS = (Sampling(), Sampling(0.0), Sampling(0.5, top_p=0.8))
SIZES = dict(eos_ids=EOS, prompt_bucket=12, longest_prompt=24, length=34, chunk=4)


def texts(engine, params):
    requests = [
        Request(prompt, own, LENGTH, (None, *WAYS[1:])[i % len(WAYS)])
        for i, (prompt, own) in enumerate(zip(MANY, responses(len(MANY), 9), strict=True))
    ]
    engine.begin(params, seed=17, iteration=5, others=WAYS[1:])
    found = groups_of(requests, run(engine, requests))
    engine.end()
    return sum(found, [])


def test_texts_are_those_of_a_contiguous_cache_and_nothing_is_compiled_after_the_start():
    """32 slots of each of two groups: calls of 32 and of 16, and pages for less than all texts.

    One of 108 texts may differ: sums in another order tip a token that is nearly undecided.
    """
    params = random_params(WIDE)
    expected = texts(Engine(WIDE, num_slots=5, **SIZES), kv_cache.split_layers(params))
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    axes = params_lib.axes_like(WIDE, params)
    stacked = jax.device_put(params, sharding.param_shardings(axes, params, mesh, layout=sharding.GENERATION))
    pages = Pages(49, 8, tokens=4, prompts=2, kernel=False)
    engine, said = Engine(WIDE, num_slots=32, mesh=mesh, pages=pages, **SIZES), []
    engine.compile(stacked, [WAYS], on_program=lambda *program: said.append(program[2]))
    assert len(said) == 3 * 2 and sum("decoding 16 texts" in name for name in said) == 3
    with compilations() as compiled:
        found = texts(engine, stacked)
    assert not compiled
    both = list(zip(found, expected, strict=True))
    alike = [(row, one) for row, one in both if row.token_ids.tolist() == one.token_ids.tolist()]
    assert len(alike) >= 0.99 * len(both)
    for row, one in alike:
        assert row.truncated == one.truncated
        np.testing.assert_allclose(row.logp, one.logp, rtol=1e-4, atol=1e-4)
