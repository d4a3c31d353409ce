"""An engine with a small model, its prompts, and what every schedule must give."""

import functools

import numpy as np
import pytest
from near_ties import Reference
from tiny import EVERYTHING, plain_logits, random_params

from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.records import RowIndex

V = EVERYTHING.vocab_size
EOS = (0, 7, 19, 31)  # 0 is also what prompts are padded with
LENGTH = 10
# Prompts of 1 to 16 tokens. They hold end-of-turn tokens, as those of chat templates do.
PROMPTS = [np.random.default_rng(i).integers(0, V, n).astype(np.int32) for i, n in enumerate((1, 5, 16, 9))]
PROMPTS[1][[0, 2, 4]] = 0
# Prompts of 1 to 24 tokens, some of which begin alike; with these, slots are prefilled, copied and continued.
COMMON = np.random.default_rng(9).integers(0, V, 18).astype(np.int32)
MANY = [
    *PROMPTS,
    *(
        np.append(COMMON[:n], np.random.default_rng(i).integers(0, V, 1 + i % 6)).astype(np.int32)
        for i, n in enumerate((18, 17, 18, 1, 12, 16, 18))
    ),
    PROMPTS[2],
]
PARAMS = random_params(EVERYTHING)
SPLIT = kv_cache.split_layers(PARAMS)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """The programs that most tests of a module share: those of texts that end, and of texts that do not."""
    many()
    sample(make=engine(eos_ids=()))


def engine(*, config=EVERYTHING, **keywords):
    """Unless a test says otherwise, widths of 12 and 24, and slots of 34."""
    defaults = dict(eos_ids=EOS, num_slots=5, prompt_bucket=12, longest_prompt=24, length=34, chunk=4)
    return Engine(config, **defaults | keywords)


def responses(num_questions, num_responses):
    return [[RowIndex(question=q, response=n) for n in range(num_responses)] for q in range(num_questions)]


def sample(prompts=PROMPTS, indices=None, *, make=None, params=SPLIT, **keywords):
    keywords = {"seed": 17, "iteration": 5, "max_length": LENGTH} | keywords
    indices = indices or responses(len(prompts), 3)
    return (make or engine()).generate(params, prompts, indices, **keywords)


def reference(config=EVERYTHING, params=PARAMS, **keywords):
    """Decoding of one text alone, by whole forward passes written out plainly."""
    logits = functools.partial(plain_logits, params, config)
    return Reference(logits, **{"seed": 17, "iteration": 5} | keywords)


def texts(groups):
    return [[tuple(row.token_ids) for row in group] for group in groups]


def run(made, requests=()):
    """Adds requests, steps until all have ended, and returns them by request."""
    out = {}
    for one in requests:
        made.add(one)
    while made.busy:
        for one, number, sampled in made.step():
            assert (one, number) not in out
            out[one, number] = sampled
    return out


def groups_of(requests, out):
    return [[out[one, number] for number in range(len(one.indices))] for one in requests]


def assert_well_formed(row, max_length=LENGTH, eos_ids=EOS):
    """An end-of-turn token, if any, is the last; a row without one has the full length and is truncated."""
    assert len(row.token_ids) == len(row.logp) and row.token_ids.dtype == np.int32 and row.logp.dtype == np.float32
    assert not np.isin(row.token_ids[:-1], eos_ids).any()
    assert row.truncated is (row.token_ids[-1] not in eos_ids)
    assert len(row.token_ids) == max_length if row.truncated else 1 <= len(row.token_ids) <= max_length


@functools.cache
def many():
    """Twelve prompts, three texts each, held to the reference; what all schedules below must give."""
    groups = sample(MANY)
    reference().hold(MANY, responses(len(MANY), 3), groups)
    for row in sum(groups, []):
        assert_well_formed(row)
    return groups


def hold_to_many(groups, order=None):
    order = range(len(MANY)) if order is None else order
    indices = responses(len(MANY), 3)
    reference().hold_alike([MANY[i] for i in order], [indices[i] for i in order], groups, [many()[i] for i in order])
