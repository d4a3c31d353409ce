"""What an iteration learns from its rows: the log-probabilities that the loss needs, and the updates.

Steps 7 and 8 of the algorithm; `train` calls it, between the engine and the journal.
"""

import functools
from collections.abc import Sequence

import numpy as np

from cgrpo_jax import assemble, journal, lora, sharding
from cgrpo_jax import update as update_lib
from cgrpo_jax.records import TrainRow, TrainState


class Learner:
    """Trains the policy.

    Attributes:
      optimizer: what trains it.
      base, reference: as in `beginning.Beginning`, once a run has begun.
    """

    def __init__(self, config, model: assemble.Model, *, clock: journal.Clock):
        self.config = config
        self.model = model
        self.clock = clock
        self.optimizer = assemble.optimizer(config)
        self.shape = assemble.pack_shape(config)
        self.computing = dict(mesh=model.mesh, dtype=model.dtype)  # where, and in what
        self.base: lora.Base | None = None
        self.reference: dict | None = None

    def update(self, state: TrainState, groups: Sequence[Sequence[TrainRow]]) -> tuple[TrainState, list[dict]]:
        """Applies `updates_per_batch` updates, each to an equal share of the questions; pi_old stays fixed."""
        c = self.config
        with self.clock("update"):
            groups = self._with_logps(state.params, groups)
            stats = []
            per_update = len(groups) // c.updates_per_batch
            for first in range(0, len(groups), per_update):
                minibatch = groups[first : first + per_update]
                rows = [row for group in minibatch for row in group]
                state, one = update_lib.update(
                    state,
                    rows,
                    optimizer=self.optimizer,
                    base=self.base,
                    num_questions=len(minibatch),
                    config=self.model.config,
                    settings=assemble.loss_settings(c),
                    shape=self.shape,
                    remat=c.remat,
                    **self.computing,
                )
                stats.append(one)
        return state, stats

    def learning_rate(self, num_updates: int) -> float:
        """Returns the rate of the last of `num_updates` updates: the first of a warm-up has rate 0."""
        c = self.config
        return c.learning_rate * min(1.0, (num_updates - 1) / c.warmup_updates if c.warmup_updates else 1.0)

    def _with_logps(self, params, groups):
        """Adds what the loss needs beside the sampler's log-probabilities: the trainer's own, the reference's."""
        c = self.config
        rows = [row for group in groups for row in group]
        score = functools.partial(
            update_lib.score_rows,
            rows=rows,
            config=self.model.config,
            shape=self.shape,
            max_length=c.max_response_length,
            temperature=c.temperature,
            **self.computing,
        )
        if c.old_logp == "trainer":
            logps = score(params, base=self.base)
            differences = [abs(logp - row.old_logp) for row, logp in zip(rows, logps, strict=True)]
            self.clock.count("sampling/sampling_logp_difference/mean", float(np.concatenate(differences).mean()))
            rows = [row.replace(old_logp=logp) for row, logp in zip(rows, logps, strict=True)]
        if self.reference is not None:
            layout = sharding.GENERATION if self.base is None else sharding.TRAINING
            logps = score(self.reference, layout=layout)
            rows = [row.replace(ref_logp=logp) for row, logp in zip(rows, logps, strict=True)]
        it = iter(rows)
        return [[next(it) for _ in group] for group in groups]
