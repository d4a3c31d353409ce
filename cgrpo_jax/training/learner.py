"""What an iteration learns from its rows: the log-probabilities that the loss needs, and the updates.

Steps 7 and 8 of the algorithm; `train` calls it, between the engine and the journal.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.models import lora
from cgrpo_jax.records import TrainRow, TrainState
from cgrpo_jax.runs import build_model, initial_state, log
from cgrpo_jax.training import train_step as train_step_lib


class Learner:
    """Trains the policy.

    Attributes:
      optimizer: what trains it.
      base, reference, progress: as in `initial_state.Beginning`, once a run has begun.
      skipped: the rows of the newest update whose gradient was not finite; None without one since the run was started.
    """

    def __init__(self, config, model: build_model.Model, *, clock: log.Clock):
        self.config = config
        self.model = model
        self.clock = clock
        self.optimizer = build_model.optimizer(config)
        self.shape = build_model.pack_shape(config)
        self.computing = dict(mesh=model.mesh, dtype=model.dtype)  # where, and in what
        self.base: lora.Base | None = None
        self.reference: dict | None = None
        self.progress = initial_state.Progress()
        self.skipped: list[TrainRow] | None = None
        self._rate = build_model.learning_rate(config)

    def update(self, state: TrainState, groups: Sequence[Sequence[TrainRow]]) -> tuple[TrainState, list[dict]]:
        """Applies `updates_per_batch` updates, each to an equal share of the questions; pi_old stays fixed.

        One whose gradient is not finite changes nothing, and is counted; too many in a row end it.
        """
        c = self.config
        with self.clock("update"):
            groups = self._with_logps(state.params, groups)
            stats = []
            per_update = len(groups) // c.updates_per_batch
            for first in range(0, len(groups), per_update):
                minibatch = groups[first : first + per_update]
                rows = [row for group in minibatch for row in group]
                state, one = train_step_lib.update(
                    state,
                    rows,
                    optimizer=self.optimizer,
                    base=self.base,
                    num_questions=len(minibatch),
                    config=self.model.config,
                    settings=build_model.loss_settings(c),
                    shape=self.shape,
                    remat=c.remat,
                    **self.computing,
                )
                stats.append(one)
                if math.isfinite(one["grad_norm"]):
                    self.progress.skipped_in_a_row = 0
                    continue
                self.progress.skipped_in_a_row += 1
                self.skipped = rows
                if self.has_given_up():
                    break
        return state, stats

    def has_given_up(self) -> bool:
        """Returns whether more updates in a row were skipped than may be, so that the run is to stop."""
        return self.progress.skipped_in_a_row > self.config.max_nonfinite_updates

    def learning_rate(self, num_updates: int) -> float:
        """Returns the rate of the last of `num_updates` updates: the first of a warm-up has rate 0."""
        return float(self._rate(max(0, num_updates - 1)))

    def _with_logps(self, params, groups):
        """Adds what the loss needs beside the sampler's log-probabilities: the trainer's own, the reference's."""
        c = self.config
        rows = [row for group in groups for row in group]
        if not rows:
            return groups
        score = functools.partial(
            train_step_lib.score_rows,
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
