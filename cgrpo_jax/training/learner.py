"""What an iteration learns from its rows: the log-probabilities that the loss needs, and the updates.

Steps 7 and 8 of the algorithm; `train` calls it, between the engine and the journal.
"""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
import optax

from cgrpo_jax import sharding
from cgrpo_jax.models import lora
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import TrainRow, TrainState
from cgrpo_jax.runtime import console
from cgrpo_jax.training import packing, scoring
from cgrpo_jax.training import train_step as train_step_lib


class Learner:
    """Trains the policy.

    Args:
      config: the policy's shape.
      mesh, dtype: where it is computed, and in what.
      optimizer: what trains it.
      learning_rate: its rate, as a function of the number of updates before.
      loss: the arguments of the loss.
      shape: of packed batches.
      updates_per_batch: updates an iteration.
      rescore: whether the ratio's denominator is the trainer's own log-probability, computed before the updates, and
        not the sampler's.
      remat: what the backward pass computes again.
      max_nonfinite_updates: updates in a row that may be skipped because their gradient is not finite.
      clock: times the updates.

    Attributes:
      base: what the adapters belong to, where these are trained.
      reference: what the KL term compares with; None without that term.
      skipped_in_a_row: updates, up to the last one, whose gradient was not finite.
      skipped: the rows of the newest of these; None without one since the run was started.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        mesh: jax.sharding.Mesh,
        dtype: str,
        optimizer: optax.GradientTransformation,
        learning_rate: optax.Schedule,
        loss: train_step_lib.LossSettings,
        shape: packing.PackShape,
        updates_per_batch: int,
        rescore: bool,
        remat: str,
        max_nonfinite_updates: int,
        clock: console.Clock,
    ):
        self.config = config
        self.optimizer = optimizer
        self.computing = dict(mesh=mesh, dtype=dtype)
        self.loss = loss
        self.shape = shape
        self.updates_per_batch = updates_per_batch
        self.rescore = rescore
        self.remat = remat
        self.max_nonfinite_updates = max_nonfinite_updates
        self.clock = clock
        self.base: lora.Base | None = None
        self.reference: dict | None = None
        self.skipped_in_a_row = 0
        self.skipped: list[TrainRow] | None = None
        self._rate = learning_rate

    def update(self, state: TrainState, groups: Sequence[Sequence[TrainRow]]) -> tuple[TrainState, list[dict]]:
        """Applies `updates_per_batch` updates, each to an equal share of the questions; pi_old stays fixed.

        One whose gradient is not finite changes nothing, and is counted; too many in a row end it.
        """
        with self.clock("update"):
            groups = self._with_logps(state.params, groups)
            stats = []
            per_update = len(groups) // self.updates_per_batch
            for first in range(0, len(groups), per_update):
                minibatch = groups[first : first + per_update]
                rows = [row for group in minibatch for row in group]
                state, one = train_step_lib.update(
                    state,
                    rows,
                    optimizer=self.optimizer,
                    base=self.base,
                    num_questions=len(minibatch),
                    config=self.config,
                    settings=self.loss,
                    shape=self.shape,
                    remat=self.remat,
                    **self.computing,
                )
                stats.append(one)
                if math.isfinite(one["grad_norm"]):
                    self.skipped_in_a_row = 0
                    continue
                self.skipped_in_a_row += 1
                self.skipped = rows
                if self.has_given_up():
                    break
        return state, stats

    def has_given_up(self) -> bool:
        """Returns whether more updates in a row were skipped than may be, so that the run is to stop."""
        return self.skipped_in_a_row > self.max_nonfinite_updates

    def learning_rate(self, num_updates: int) -> float:
        """Returns the rate of the last of `num_updates` updates: the first of a warm-up has rate 0."""
        return float(self._rate(max(0, num_updates - 1)))

    def _with_logps(self, params, groups):
        """Adds what the loss needs beside the sampler's log-probabilities: the trainer's own, the reference's."""
        rows = [row for group in groups for row in group]
        if not rows:
            return groups
        score = functools.partial(
            scoring.score_rows,
            rows=rows,
            config=self.config,
            shape=self.shape,
            max_length=self.loss.max_length,
            temperature=self.loss.temperature,
            **self.computing,
        )
        if self.rescore:
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
