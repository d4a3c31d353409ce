"""What takes longer than a unit test may, of tests/training/test_sft.py."""

import dataclasses

import jax
import numpy as np
from sft_cases import HELD_OUT, PROMPTS, TOKENIZER, rows
from tiny import FAMILIES, random_params

from cgrpo_jax.datasets.tasks import arithmetic_lessons
from cgrpo_jax.training import sft
from cgrpo_jax.training.optimizer import init_state
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows


def test_the_warm_start_learns_the_lessons():
    config = dataclasses.replace(FAMILIES["smollm2"], vocab_size=TOKENIZER.vocab_size, num_layers=1, max_context=128)
    shape = PackShape(num_token_rows=2, pack_length=128, num_slots=16)
    settings = dict(config=config, shape=shape, max_length=64)
    unseen = rows(20, seed=1)
    score = lambda params: np.mean(np.concatenate(score_rows(params, unseen, **settings)))  # noqa: E731
    params = random_params(config)
    before = score(params)
    optimizer = sft.make_optimizer(num_updates=20, learning_rate=1e-2)
    lessons = arithmetic_lessons.lessons(PROMPTS, seed=0, lengths=(1, 2), held_out=HELD_OUT)
    state = init_state(params, optimizer)
    states = sft.updates(state, rows=lessons, optimizer=optimizer, rows_per_update=8, **settings)
    for number in range(1, 21):
        state = next(states)
        assert int(state.step) == number
    learned = state.params
    assert score(learned) > before + 1
    assert jax.tree.structure(learned) == jax.tree.structure(random_params(config))
