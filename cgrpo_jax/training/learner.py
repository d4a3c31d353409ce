"""What an iteration learns from its rows: the log-probabilities that the loss needs, and the updates.

Steps 7 and 8 of the algorithm.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from cgrpo_jax import sharding
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import TrainRow, TrainState
from cgrpo_jax.runtime import console, watchdog
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training import distillation as distillation_lib
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import packing, row_losses, sampler_gap, scoring
from cgrpo_jax.training import train_step as train_step_lib


@dataclasses.dataclass(frozen=True)
class LearnerSettings:
    """How the policy is trained.

    Attributes:
      optimizer: what trains it.
      learning_rate: its rate, as a function of the number of updates before.
      loss: the arguments of the loss.
      shape: of packed batches.
      updates_per_batch: updates an iteration.
      rescore: whether the ratio's denominator is the trainer's own log-probability, computed before the updates, and
        not the sampler's.
      remat: what the backward pass computes again.
      max_nonfinite_updates: updates in a row that may be skipped because their gradient is not finite.
      adapters: that are trained; None where all weights are.
      offload_optimizer: whether the optimiser's state lies in the hosts' memory between updates.
      compares: whether rows (of rco, of dpo) are compared with the weights that training began with.
      proximal: whether rows are compared with the weights as they are before the iteration's updates, each of which
        then takes all of its rows, and not a share.
      distillation: how responses are scored by a teacher that has seen feedback; None where none is.
    """

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    loss: train_step_lib.LossSettings
    shape: packing.PackShape
    updates_per_batch: int
    rescore: bool
    remat: str
    max_nonfinite_updates: int
    adapters: lora.LoraSettings | None = None
    offload_optimizer: bool = False
    compares: bool = False
    proximal: bool = False
    distillation: distillation_lib.Distillation | None = None

    @property
    def has_reference(self) -> bool:
        """Whether the KL term, or a row's loss, compares with a reference of other weights."""
        return not self.proximal and (self.loss.kl_coef != 0 or self.compares)

    @property
    def average_rate(self) -> float:
        """Of the exponential mean of the weights that the state holds; 0 where it holds none."""
        return self.distillation.average_rate if self.distillation else 0.0


@dataclasses.dataclass(frozen=True)
class Updates:
    """What the updates of an iteration counted.

    Attributes:
      stats: of each, as `train_step.update` returns them.
      trained: of each row of each group, whether it moved the weights.
      trainer_logps: of each row of each group, `[T]` float32, the trainer's own log-probabilities (nats) before the
        updates; None where rows were not rescored.
      sampling: how far sampler and trainer are apart (`sampler_gap.measure`); empty likewise.
      capped: of each row of each group, whether it is `train_step.beyond_cap`; empty likewise.
    """

    stats: list[dict[str, float]]
    trained: list[list[bool]]
    trainer_logps: list[list[np.ndarray]] | None = None
    sampling: dict[str, float] = dataclasses.field(default_factory=dict)
    capped: list[list[bool]] = dataclasses.field(default_factory=list)


def state_shapes(config: ModelConfig, mesh: jax.sharding.Mesh, settings: LearnerSettings) -> TrainState:
    """Returns the shapes of what is trained, and of the optimiser's state, that say where each array lies."""
    shapes = lora.adapter_shapes(config, settings.adapters) if settings.adapters else params_lib.param_shapes(config)
    trained = sharding.placed(params_lib.axes_like(config, shapes), shapes, mesh)
    shapes = optimizer_lib.state_shapes(trained, settings.optimizer, offload=settings.offload_optimizer)
    return dataclasses.replace(shapes, average=shapes.params if settings.average_rate else None)


def init_state(params: dict, settings: LearnerSettings) -> TrainState:
    """Returns the state of what is trained before the first update; `params` is part of it."""
    state = optimizer_lib.init_state(params, settings.optimizer, offload=settings.offload_optimizer)
    # A copy: updates take the buffers of the state.
    average = jax.tree.map(jax.numpy.copy, params) if settings.average_rate else None
    return dataclasses.replace(state, average=average)


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rows with all that their loss needs: log-probabilities under weights that may be others by their update.

    Attributes:
      groups: the rows.
      sampling: how far sampler and trainer differ on them; empty where one is not known.
    """

    groups: Sequence[Sequence[TrainRow]]
    sampling: dict[str, float] = dataclasses.field(default_factory=dict)


class Learner:
    """Trains the policy, or a critic.

    Args:
      config: the model's shape.
      mesh, dtype: where it is computed, and in what.
      settings: how.
      clock: times the updates.
      stage: what it times them as.

    Attributes:
      base: what the adapters belong to, where these are trained.
      reference: what the KL term, or a row's loss, compares with; None without these.
      skipped_in_a_row: updates, up to the last one, whose gradient was not finite.
      skipped: the rows of the newest of these; None without one since the run was started.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        mesh: jax.sharding.Mesh,
        dtype: str,
        settings: LearnerSettings,
        clock: console.Clock,
        stage: str = "update",
    ):
        self.config = config
        self.mesh, self.dtype = mesh, dtype
        self.settings = settings
        self.clock, self.stage = clock, stage
        self.base: lora.Base | None = None
        self.reference: dict | None = None
        self.skipped_in_a_row = 0
        self.skipped: list[TrainRow] | None = None

    def update(self, state: TrainState, groups: Sequence[Sequence[TrainRow]]) -> tuple[TrainState, Updates]:
        """Applies `updates_per_batch` updates of `objective.policy_loss`, each to an equal share of the questions.

        The old log-probabilities stay fixed meanwhile.

        One whose gradient is not finite changes nothing, and is counted; too many in a row end it.
        """
        return self.learn(state, self.score(state, groups))

    def learn(self, state: TrainState, scored: Scored) -> tuple[TrainState, Updates]:
        """Applies the updates of `update` to rows that have been scored before."""
        groups = scored.groups
        with self.clock(self.stage):
            stats, trained = [], [[False] * len(group) for group in groups]
            for first, minibatch in self._minibatches(groups):
                rows = [row for group in minibatch for row in group]
                state, one = train_step_lib.update(
                    state,
                    rows,
                    optimizer=self.settings.optimizer,
                    base=self.base,
                    num_questions=len(minibatch),
                    **self._updating(),
                )
                watchdog.tick()
                stats.append(one)
                if math.isfinite(one["grad_norm"]):
                    self.skipped_in_a_row = 0
                    state = self._averaged(state)
                    for number, group in enumerate(minibatch, first):
                        trained[number] = [train_step_lib.has_gradient(row, self.settings.loss) for row in group]
                    continue
                self.skipped_in_a_row += 1
                self.skipped = rows
                if self.has_given_up():
                    break
        if not self.settings.rescore:
            return state, Updates(stats, trained)
        logps = [[row.old_logp for row in group] for group in groups]
        capped = [[train_step_lib.beyond_cap(row, self.settings.loss) for row in group] for group in groups]
        return state, Updates(stats, trained, logps, scored.sampling, capped)

    def _minibatches(self, groups: Sequence[Sequence[TrainRow]]) -> Iterator[tuple[int, Sequence[Sequence[TrainRow]]]]:
        """Yields the groups of each update, and the number of the first: an equal share, or all of them each time."""
        if not groups:
            return
        if self.settings.proximal:
            yield from [(0, groups)] * self.settings.updates_per_batch
            return
        per_update = len(groups) // self.settings.updates_per_batch
        for first in range(0, len(groups), per_update):
            yield first, groups[first : first + per_update]

    def losses(self, params: dict, rows: Sequence[TrainRow]) -> dict[str, float]:
        """Returns `row_losses.measured` of rows under weights that are trained, or adapters; nothing is updated."""
        with self.clock("evaluate"):
            logps = scoring.score_rows(params, rows, base=self.base, **self._scoring())
            references = None
            if self.reference is not None:
                references = scoring.score_rows(self.reference, rows, layout=self._reference_layout, **self._scoring())
        return row_losses.measured(rows, logps, references, beta=self.settings.loss.beta)

    def has_given_up(self) -> bool:
        """Returns whether more updates in a row were skipped than may be, so that the run is to stop."""
        return self.skipped_in_a_row > self.settings.max_nonfinite_updates

    def learning_rate(self, num_updates: int) -> float:
        """Returns the rate of the last of `num_updates` updates: the first of a warm-up has rate 0."""
        return float(np.asarray(self.settings.learning_rate(max(0, num_updates - 1))))

    def _averaged(self, state: TrainState) -> TrainState:
        """Returns the state with the mean of its weights, where it has one, a step on."""
        if state.average is None:
            return state
        average = optimizer_lib.toward(state.average, state.params, rate=self.settings.average_rate)
        return dataclasses.replace(state, average=average)

    def score(self, state: TrainState, groups: Sequence[Sequence[TrainRow]]) -> Scored:
        """Returns rows with what their loss needs: log-probabilities under trainer, reference and teacher."""
        rows = [row for group in groups for row in group]
        if not rows:
            return Scored(groups)
        sampling, loss = {}, self.settings.loss
        with self.clock(self.stage):
            if self.settings.rescore:
                logps = scoring.score_rows(state.params, rows, base=self.base, **self._scoring())
                sampling = sampler_gap.measure(rows, logps, cap=loss.tis_cap, level=loss.tis_level)
                rows = [
                    dataclasses.replace(row, old_logp=logp, sampler_logp=row.old_logp if loss.tis_cap else None)
                    for row, logp in zip(rows, logps, strict=True)
                ]
            if self.settings.proximal:
                rows = [dataclasses.replace(row, ref_logp=row.old_logp) for row in rows]
            if self.reference is not None:
                logps = scoring.score_rows(self.reference, rows, layout=self._reference_layout, **self._scoring())
                rows = [dataclasses.replace(row, ref_logp=logp) for row, logp in zip(rows, logps, strict=True)]
            if self.settings.distillation is not None:
                teacher = state.params if state.average is None else state.average
                keywords = {"settings": self.settings.distillation, "base": self.base, **self._scoring()}
                rows = distillation_lib.add_teacher(rows, state.params, teacher, **keywords)
        it = iter(rows)
        return Scored([[next(it) for _ in group] for group in groups], sampling)

    # --- its programs -----------------------------------------------------------------------------------------------

    def score_program(self) -> Program:
        """Returns what scores rows with the weights that are trained; called with (params, base, batch)."""
        return scoring.score_program(layout=sharding.TRAINING, **self._scoring())

    def reference_program(self) -> Program:
        """Returns what scores rows with the reference; called with (reference, None, batch)."""
        return scoring.score_program(layout=self._reference_layout, **self._scoring())

    def distillation_programs(self) -> tuple[Program, Program]:
        """Returns what chooses the tokens that are compared, and what the teacher scores; of a learner that distils.

        Called with (params, base, batch), the latter with the teacher's weights.
        """
        assert self.settings.distillation
        scoring_of = self._scoring()
        temperature, shape = scoring_of.pop("temperature"), scoring_of.pop("shape")
        d = self.settings.distillation
        return (
            distillation_lib.choose_program(shape, num_tokens=d.num_tokens, **scoring_of),
            distillation_lib.teach_program(d.teacher_shape, temperature=temperature, **scoring_of),
        )

    def update_programs(self) -> tuple[Program, Program]:
        """Returns `train_step.accumulate` and `optimizer.apply`, which make an update."""
        return (
            train_step_lib.accumulate_program(**self._updating()),
            optimizer_lib.apply_program(self.settings.optimizer),
        )

    @property
    def _reference_layout(self) -> Sequence[str]:
        """What adapters belong to is in the layout of training, and is the reference too; else it only scores."""
        return sharding.GENERATION if self.base is None else sharding.TRAINING

    def _scoring(self) -> dict[str, Any]:
        """Returns the arguments of `scoring.score_rows` and of its program."""
        loss = self.settings.loss
        return self._packed() | {"max_length": loss.max_length, "temperature": loss.temperature}

    def _updating(self) -> dict[str, Any]:
        """Returns the arguments of `train_step.update` and of its program."""
        shape, d = self.settings.shape, self.settings.distillation
        shape = dataclasses.replace(shape, top_tokens=d.num_tokens) if d else shape
        return self._packed() | {"shape": shape, "settings": self.settings.loss, "remat": self.settings.remat}

    def _packed(self) -> dict[str, Any]:
        return {"config": self.config, "shape": self.settings.shape, "mesh": self.mesh, "dtype": self.dtype}
