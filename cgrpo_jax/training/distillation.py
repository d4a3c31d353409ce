"""Distillation from feedback (SDPO, arXiv 2601.20802): a response's tokens, scored by who has seen its critique.

    teacher q_t = pi_teacher(. | feedback prompt, y_<t),   policy p_t = pi_theta(. | question, y_<t)
    J = - sum_t w_t D(p_t, q_t)

The teacher has the weights that are trained, or their exponential mean, and is held fixed. Both distributions are
compared by the C tokens that the policy, before the updates, finds most likely, and by one group of all others (Eq. 7).

    rows = add_teacher(rows, params, average, settings=Distillation(20, shape), ...)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import objective, ratios, sharding
from cgrpo_jax.models import lora, transformer
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.top_logits import linear_group_logits, linear_top_tokens
from cgrpo_jax.records import TrainBatch, TrainRow
from cgrpo_jax.runtime import watchdog
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training.packing import PackShape, batch_shapes, pack_onto
from cgrpo_jax.training.scoring import (
    Kernels,
    Targets,
    base_specs,
    forward_weights,
    target_states,
    weight_specs,
)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How responses are scored by a teacher that has seen feedback.

    Attributes:
      num_tokens: C, tokens that both distributions are compared by.
      shape: of packed batches whose contexts are feedback prompts.
      average_rate: of the exponential mean that is the teacher, a step after each update; 0: the weights themselves.
    """

    num_tokens: int
    shape: PackShape
    average_rate: float = 0.0

    @property
    def teacher_shape(self) -> PackShape:
        """The shape of what the teacher scores."""
        return dataclasses.replace(self.shape, top_tokens=self.num_tokens)


# --- the loss -----------------------------------------------------------------------------------------------------


def distil_loss(
    batch: TrainBatch,
    mask_BT: jax.Array,
    distance_BT: jax.Array,
    rest_BT: jax.Array,
    *,
    coef: float,
    **weighing: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`coef sum_bt w_bt D_bt` over the rows that have a teacher; w is what weighs a response's surrogate too.

        distance_BT = [[0.2, 0.4], [0.1, 0]], mask_BT = [[1, 1], [1, 0]], "constant", max_length = 2  ->  0.7 / 4

    Args:
      batch: says which rows have a teacher.
      mask_BT: `[B, T]` bool, the tokens of all rows.
      distance_BT, rest_BT: from `distances`.
      coef: a Python number.
      **weighing: counts of the whole minibatch, as for `objective.token_weights`.

    Returns:
      The loss, and statistics that are sums over the tokens that have a teacher.
    """
    assert batch.distil_B is not None and batch.alone_B is not None, "its shape has a teacher's tokens"
    taught_BT = mask_BT & batch.distil_B[:, None]
    weight_BT = objective.token_weights(taught_BT, jnp.zeros(len(mask_BT), bool), **weighing)
    distance_BT, rest_BT = (jnp.where(taught_BT, x_BT, 0.0) for x_BT in (distance_BT, rest_BT))
    loss = coef * jnp.sum(weight_BT * distance_BT)
    return loss, {
        "distil_loss": loss,
        "distil/tokens": taught_BT.astype(float).sum(),
        "distil/alone_tokens": (taught_BT & batch.alone_B[:, None]).astype(float).sum(),
        "distil/divergence_sum": distance_BT.sum(),
        "distil/rest_sum": rest_BT.sum(),
    }


def distances(
    params,
    config: params_lib.ModelConfig,
    batch: TrainBatch,
    hidden_ND: jax.Array,
    targets: Targets,
    *,
    divergence: str,
    temperature: float,
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns `[B, T]` distances from the teacher, and the policy's probability of all but the C tokens."""
    logits_NG = _group_logits(params, config, batch, hidden_ND, targets, temperature=temperature, dtype=dtype)
    teacher_logp_NG = targets.at_positions(batch.teacher_logp_RSG)
    distance_N = ratios.distance(logits_NG, teacher_logp_NG, divergence)
    return targets.by_row(distance_N), targets.by_row(jax.nn.softmax(logits_NG, axis=-1)[:, -1])


def _group_logits(params, config, batch, hidden_ND, targets, *, temperature, dtype):
    return linear_group_logits(
        hidden_ND,
        transformer.unembedding(params, config, dtype),
        targets.at_positions(batch.top_ids_RSC),
        temperature=temperature,
        softcap=config.logit_softcap,
        vocab_size=config.vocab_size,
        num_live=targets.num_live,
    )


# --- what it needs, before the updates ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("num_tokens", "config", "dtype", "mesh"))
def choose(params, base: lora.Base | None, batch: TrainBatch, *, num_tokens, config, dtype, mesh):
    """Returns `[R, S, C]` int32, the C most likely tokens where a target is predicted; dealt out as the batch is."""

    def part(weights, hidden_ND, targets, batch):
        id_NC = linear_top_tokens(
            hidden_ND,
            transformer.unembedding(weights, config, dtype),
            num_tokens=num_tokens,
            vocab_size=config.vocab_size,
            num_live=targets.num_live,
        )
        return id_NC

    return _at_positions(part, params, base, batch, config=config, dtype=dtype, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("temperature", "config", "dtype", "mesh"))
def teach(params, base: lora.Base | None, batch: TrainBatch, *, temperature, config, dtype, mesh):
    """Returns `[R, S, C + 1]` log-probabilities of a batch's `top_ids_RSC` and of all others; dealt out likewise."""

    def part(weights, hidden_ND, targets, batch):
        logits_NG = _group_logits(weights, config, batch, hidden_ND, targets, temperature=temperature, dtype=dtype)
        return jax.nn.log_softmax(logits_NG, axis=-1)

    return _at_positions(part, params, base, batch, config=config, dtype=dtype, mesh=mesh)


def _at_positions(part: Callable, params, base, batch, *, config, dtype, mesh):
    """Returns what `part(weights, hidden_ND, targets, batch)` gives of each target, where that is predicted."""

    def placed(params, base, batch):
        weights = forward_weights(params, base)
        hidden_ND, targets = target_states(weights, config, batch, remat="none", dtype=dtype, kernels=Kernels.of(mesh))
        x_NG = part(weights, hidden_ND, targets, batch)
        R, S = batch.tokens_RS.shape
        empty = sharding.varying_like(jnp.zeros((R * S, x_NG.shape[1]), x_NG.dtype), x_NG)
        return empty.at[targets.position_N].set(x_NG, mode="drop").reshape(R, S, -1)

    in_specs = (weight_specs(params, config, mesh), base_specs(base, config, mesh), sharding.BY_ROWS)
    return jax.shard_map(placed, mesh=mesh, in_specs=in_specs, out_specs=sharding.BY_ROWS)(params, base, batch)


def choose_program(shape: PackShape, *, max_length: int, mesh: jax.sharding.Mesh, **keywords: Any) -> Program:
    """Returns `choose` of packed batches; called with (params, base, batch). Keywords are its static arguments."""
    return Program(
        "choose", choose, (batch_shapes(shape, max_length=max_length, mesh=mesh),), keywords | {"mesh": mesh}
    )


def teach_program(shape: PackShape, *, max_length: int, mesh: jax.sharding.Mesh, **keywords: Any) -> Program:
    """Returns `teach` likewise."""
    return Program("teach", teach, (batch_shapes(shape, max_length=max_length, mesh=mesh),), keywords | {"mesh": mesh})


def add_teacher(
    rows: Sequence[TrainRow],
    params: dict,
    teacher: dict,
    *,
    settings: Distillation,
    shape: PackShape,
    max_length: int,
    config: params_lib.ModelConfig,
    temperature: float = 1.0,
    dtype: jax.typing.DTypeLike | None = None,
    base: lora.Base | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> list[TrainRow]:
    """Returns rows of which those with a feedback prompt have what a teacher says of their targets; the others alike.

    Args:
      rows: to learn from.
      params: the weights that are trained, or the adapters of `base`: they say which tokens are compared.
      teacher: those that score the targets after the feedback prompt.
      settings: how.
      shape: of packed batches whose contexts are questions.
      max_length: targets that a row may have.
      config, dtype, base, mesh: of the model, as for `scoring.score_rows`.
      temperature: of both distributions.
    """
    mesh = mesh or sharding.one_device()
    about = {"max_length": max_length, "mesh": mesh, "config": config, "dtype": dtype}
    taught = [row for row in rows if row.feedback_ids is not None and not row.masked]
    program = choose_program(shape, num_tokens=settings.num_tokens, **about)
    found = _of_rows(program, params, base, taught, shape, max_length=max_length, mesh=mesh)
    asked = [
        dataclasses.replace(row, context_ids=row.feedback_ids, top_ids=top_ids)
        for row, top_ids in zip(taught, found, strict=True)
    ]
    program = teach_program(settings.teacher_shape, temperature=temperature, **about)
    said = _of_rows(program, teacher, base, asked, settings.teacher_shape, max_length=max_length, mesh=mesh)
    scored = iter(zip(found, said, strict=True))

    def with_teacher(row: TrainRow) -> TrainRow:
        if row.feedback_ids is None or row.masked:
            return row
        top_ids, teacher_logp = next(scored)
        return dataclasses.replace(row, top_ids=top_ids, teacher_logp=teacher_logp)

    return [with_teacher(row) for row in rows]


def _of_rows(
    program: Program,
    params: dict,
    base: lora.Base | None,
    rows: Sequence[TrainRow],
    shape: PackShape,
    *,
    max_length: int,
    mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
    """Returns what a program gives at each row's targets, `[T, ...]`, in the order of `rows`."""
    # As in `scoring.score_rows`: a field that packing copies through says which row a slot has.
    numbered = [dataclasses.replace(row, advantage=float(i + 1)) for i, row in enumerate(rows)]
    out: list = [None] * len(rows)
    for batch in pack_onto(mesh, numbered, shape, max_length=max_length):
        found_RS = sharding.read(program(params, base, sharding.deal(batch, mesh)), mesh)
        watchdog.tick()
        for b in np.flatnonzero(batch.length_B):
            # `row_B` counts token rows within the part of a data group, which has so many slots.
            r = b // shape.num_slots * shape.num_token_rows + batch.row_B[b]
            first = batch.start_B[b]
            out[int(batch.advantage_B[b]) - 1] = found_RS[r, first : first + batch.length_B[b]]
    return out
