"""Coroutines that ask a scripted engine for texts, stage after stage."""

import numpy as np

from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.records import RowIndex, Stage

PROMPT = np.array([1, 2], np.int32)


def ask(engine, question, stage=Stage.RESPONSE, number=1, **more):
    indices = [RowIndex(question, response=i, stage=stage, **more) for i in range(number)]
    return orchestrator.write(engine, Request(PROMPT, indices, 8))


async def texts(awaitable):
    return [int(sampled.token_ids[0]) for sampled in await awaitable]


def run(*coroutines, grader=None, **options):
    return Orchestrator(grader).run(coroutines, **options)


async def solve(engine, q, stages=tuple(Stage), number=1, between=None):
    """A question's stages, one after the other."""
    said = []
    for stage in stages:
        said += await texts(ask(engine, q, stage, number))
        if between:
            await between()
    return said
