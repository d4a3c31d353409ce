"""What the tests of training/test_sft share with those that take longer."""

import functools
import itertools

from chain_prompts import CHAINS, arithmetic_tokenizer, make

from cgrpo_jax.datasets.tasks import arithmetic, arithmetic_lessons

HELD_OUT = arithmetic.held_out_facts(16)
TOKENIZER = arithmetic_tokenizer()
PROMPTS = make(TOKENIZER, 160, **CHAINS)


@functools.cache
def rows(count, *, seed=0, rare_rate=0.0):
    stream = arithmetic_lessons.lessons(
        PROMPTS, seed=seed, lengths=(1, 2, 3, 4), held_out=HELD_OUT, rare_rate=rare_rate
    )
    return list(itertools.islice(stream, count))
