"""The warm start of a made-up task: supervised lessons in solving, critiquing and refining, before any reward.

It is supervised fine-tuning through the same packer and the same update as reinforcement learning: rows whose loss is
`nll`. The lessons are in `datasets/tasks`. The model that it yields is where the paper starts: one that can solve,
critique and refine, but has gaps.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import packing
from cgrpo_jax.training import train_step as train_step_lib


def warm_start(
    params: dict,
    config: ModelConfig,
    rows: Iterator[TrainRow],
    *,
    num_updates: int,
    rows_per_update: int,
    learning_rate: float,
    shape: packing.PackShape,
    max_length: int,
    progress: Callable[[Iterable], Iterable] = iter,
    **kw,
) -> dict:
    """Returns the weights after supervised fine-tuning on lessons.

    Args:
      params, config: the model; `params` is not used afterwards.
      rows: the lessons, such as those of `datasets/tasks/arithmetic_lessons.py`.
      num_updates, rows_per_update: how much is learned.
      learning_rate: peak; it rises over a tenth of the updates and falls to 0 along a cosine.
      shape, max_length: of packed batches.
      progress: wraps the range of updates, to show how far it is.
      **kw: `remat`, `dtype`, `mesh`, as in `train_step.accumulate_gradients`.
    """
    rate = optimizer_lib.make_schedule(
        "cosine", peak=learning_rate, warmup_steps=num_updates // 10, num_steps=num_updates
    )
    optimizer = optimizer_lib.make_optimizer(learning_rate=rate, weight_decay=0.01)
    state = optimizer_lib.init_state(params, optimizer)
    settings = train_step_lib.LossSettings(max_length=max_length)
    for _ in progress(range(num_updates)):
        state, _ = train_step_lib.update(
            state,
            [next(rows) for _ in range(rows_per_update)],
            optimizer=optimizer,
            config=config,
            settings=settings,
            shape=shape,
            **kw,
        )
    return state.params


def lesson(prompts: Prompts, context: np.ndarray, target: str) -> TrainRow:
    """Returns the supervised row that teaches to answer a prompt with a text, and to end the turn there."""
    ids = [*prompts.tokenizer.encode(target), prompts.tokenizer.end_of_turn_id]
    return TrainRow(
        context_ids=context,
        target_ids=np.asarray(ids, np.int32),
        old_logp=np.zeros(len(ids), np.float32),
        advantage=1.0,
        loss=LossKind.NLL,
    )
