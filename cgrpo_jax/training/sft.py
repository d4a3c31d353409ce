"""The warm start of a made-up task: supervised lessons in solving, critiquing and refining, before any reward.

It is supervised fine-tuning through the same packer and the same update as reinforcement learning: rows whose loss is
`nll`. The lessons are in `datasets/tasks`. The model that it yields is where the paper starts: one that can solve,
critique and refine, but has gaps.
"""

from collections.abc import Iterator

import numpy as np
import optax

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import LossKind, TrainRow, TrainState
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import packing
from cgrpo_jax.training import train_step as train_step_lib


def make_optimizer(*, num_updates: int, learning_rate: float) -> optax.GradientTransformation:
    """Returns Muon, whose rate rises to `learning_rate` over a tenth of the updates and falls to 0 along a cosine.

    Reading a value out of a critique is learned late and from few tokens of a lesson. With AdamW it had hardly begun
    when the lessons ended, in one of eight draws not at all; with Muon it has after a quarter of them.
    """
    rate = optimizer_lib.make_schedule(
        "cosine", peak=learning_rate, warmup_steps=num_updates // 10, num_steps=num_updates
    )
    return optimizer_lib.make_optimizer("muon", learning_rate=rate)


def updates(
    state: TrainState,
    config: ModelConfig,
    rows: Iterator[TrainRow],
    *,
    optimizer: optax.GradientTransformation,
    rows_per_update: int,
    shape: packing.PackShape,
    max_length: int,
    **kw,
) -> Iterator[TrainState]:
    """Yields the state after each update of supervised fine-tuning on lessons, for as long as it is asked.

    Args:
      state, config: the model; the buffers of a state are not used once the next one is asked for.
      rows: the lessons, such as those of `datasets/tasks/arithmetic_lessons.py`.
      optimizer: from `make_optimizer`.
      rows_per_update: lessons of an update.
      shape, max_length: of packed batches.
      **kw: `remat`, `dtype`, `mesh`, as in `train_step.accumulate_gradients`.
    """
    settings = train_step_lib.LossSettings(max_length=max_length)
    while True:
        state, _ = train_step_lib.update(
            state,
            [next(rows) for _ in range(rows_per_update)],
            optimizer=optimizer,
            config=config,
            settings=settings,
            shape=shape,
            **kw,
        )
        yield state


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
