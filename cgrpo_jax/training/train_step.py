"""One update of a trainable model: packed rows in, new weights and metrics out.

The gradient of a minibatch is accumulated over packed batches of one static shape, by one program that takes several of
them: memory is bounded by the shape, and the number of compilations does not depend on the data. On a mesh every data
group has its own share of the rows; denominators are those of the whole minibatch, so the gradients simply add up.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cgrpo_jax import sharding
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import LossKind, TrainBatch, TrainRow, TrainState
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training import loss as loss_lib
from cgrpo_jax.training.loss import WEIGHED, LossSettings
from cgrpo_jax.training.optimizer import apply_program
from cgrpo_jax.training.packing import WORK, PackShape, batch_shapes, empty_batch, pack_onto, work
from cgrpo_jax.training.scoring import Kernels, base_specs, weight_specs

AT_ONCE = 8  # packed batches that one run of `accumulate` takes


@functools.partial(
    jax.jit, static_argnames=("config", "settings", "remat", "dtype", "mesh"), donate_argnames=("grads",)
)
def accumulate(
    params,
    base: lora.Base | None,
    grads,
    batches: TrainBatch,
    num,
    counts,
    *,
    config: params_lib.ModelConfig,
    settings,
    remat,
    dtype,
    mesh,
):
    """Adds the gradient of packed batches to `grads`; returns it, and statistics summed over the batches.

    Args:
      params, base: what is trained, and the frozen model that it adapts, if any.
      grads: the gradient so far, whose buffers are donated.
      batches: M of them, stacked on a new first axis.
      num: int32, how many of these to take, at least 1; what the others hold is not looked at.
      counts: the whole minibatch's denominators.
      config, settings, remat, dtype, mesh: as for `accumulate_gradients`.
    """
    kernels = Kernels.of(mesh)

    def part(params, base, grads, batches, num, counts):
        # Each data group adds up a gradient of its own, and those of weights that lie whole in several groups are
        # summed over these once, after the last batch.
        own = jax.tree.map(sharding.varying_over_data, params)
        loss_fn = functools.partial(loss_lib.loss_of, counts=counts, base=base, config=config, settings=settings)
        loss_fn = functools.partial(loss_fn, remat=remat, dtype=dtype, kernels=kernels)

        def loss_of(i):
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
            return functools.partial(loss_fn, batch=batch)

        def add(i, total):
            grads, stats = total
            loss, pull_back, new = jax.vjp(loss_of(i), own, has_aux=True)
            grads = _plus_pulled_back(grads, pull_back, jnp.ones_like(loss), in_place=base is None)
            new = jax.tree.map(sharding.varying_over_data, new)
            return grads, jax.tree.map(jnp.add, stats, new)

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss_of(0), own)[1])
        start = sharding.in_one_group(grads), jax.tree.map(sharding.varying_over_data, zeros)
        total, stats = jax.lax.fori_loop(0, num, add, start)
        return jax.tree.map(sharding.sum_over_groups_of, total, grads), jax.lax.psum(stats, sharding.DATA)

    specs = weight_specs(params, config, mesh)
    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(
            specs,
            base_specs(base, config, mesh),
            specs,
            sharding.STACKED_BY_ROWS,
            sharding.WHOLE,
            sharding.WHOLE,
        ),
        out_specs=(specs, sharding.WHOLE),
    )(params, base, grads, batches, num, counts)


def accumulate_program(
    shape: PackShape,
    *,
    config: params_lib.ModelConfig,
    settings: LossSettings,
    remat: str,
    dtype: jax.typing.DTypeLike | None,
    mesh: jax.sharding.Mesh,
) -> Program:
    """Returns `accumulate` over packed batches of a shape; called with (params, base, grads, batches, num, counts).

    Arguments are as for `accumulate_gradients`. The last three are the inputs.
    """

    def placed(x, spec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    batch = batch_shapes(shape, max_length=settings.max_length, mesh=mesh)
    stacked = jax.tree.map(
        lambda x: placed(jax.ShapeDtypeStruct((AT_ONCE, *x.shape), x.dtype), sharding.STACKED_BY_ROWS), batch
    )
    count = placed(np.float32(0), sharding.WHOLE)
    counts = dict.fromkeys(("rows", "tokens", "nll_tokens", "rco_rows", "pairs", "questions"), count)
    keywords = {"config": config, "settings": settings, "remat": remat, "dtype": dtype, "mesh": mesh}
    return Program("update", accumulate, (stacked, placed(np.int32(0), sharding.WHOLE), counts), keywords)


def _plus_pulled_back(grads, pull_back, cotangent, *, in_place: bool):
    """Returns `grads` and what `pull_back` adds to them.

    In place each layer's is added where the sum lies, and there is no second gradient. Not so for adapters, which are
    small: JAX 0.10 confuses what a scan adds in place with what it does not, as the factor that is scaled before.
    """
    if not in_place:
        return jax.tree.map(jnp.add, grads, pull_back(cotangent)[0])
    sums = jax.tree.map(jax.new_ref, grads)
    pull_back.with_refs(sums)(cotangent)
    return jax.tree.map(jax.freeze, sums)


def accumulate_gradients(
    params,
    rows: Sequence[TrainRow],
    *,
    config: params_lib.ModelConfig,
    settings: LossSettings,
    shape: PackShape,
    num_rows: int | None = None,
    num_tokens: int | None = None,
    num_questions: int | None = None,
    remat: str = "none",
    dtype: jax.typing.DTypeLike | None = None,
    base: lora.Base | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[dict, dict]:
    """Returns the gradient of a minibatch's loss and its statistics, summed over packed batches.

    Args:
      params: the weights; with `base`, its adapters.
      rows: the rows to learn from, of all kinds of loss; may be empty. Masked ones are counted and left out.
      config, settings, shape, remat: model, loss, packed shape, rematerialisation.
      num_rows: rows of the minibatch that the `constant` and `sequence_mean` aggregations divide by, those dropped
        before the update included. Defaults to the number of rows given that are not nll rows.
      num_tokens: likewise for `token_mean`, those of masked rows aside.
      num_questions: Q, for `paper`.
      dtype: what the forward and backward pass compute in; by default the weights' own. The gradient has theirs.
      base: the frozen model that `params` adapts; it gets no gradient. None trains all weights.
      mesh: where `params` lie in the training layout; by default one device.

    Returns:
      (gradient of `params`, which lies as these, dict of statistics, all of them sums and 0 without rows)

    Raises:
      ValueError: `kl_coef` is not 0 and a policy row has no `ref_logp`, `tis_cap` is not 0 and one has no
        `sampler_logp`, an rco or dpo row has no `ref_logp` or the shape is not made for it, or `paper` lacks a count.
    """
    policy_rows = [row for row in rows if row.loss in WEIGHED]
    rows = [row for row in rows if not row.masked]
    if settings.kl_coef and any(row.ref_logp is None for row in policy_rows):
        raise ValueError(f"kl_coef={settings.kl_coef} needs ref_logp in every policy row; score them, or set it to 0.")
    if settings.tis_cap and any(row.sampler_logp is None for row in policy_rows):
        raise ValueError(f"tis_cap={settings.tis_cap} needs sampler_logp in every policy row; give it, or set it to 0.")
    _check_kinds(rows, shape)
    counts = {
        "rows": np.float32(len(policy_rows) if num_rows is None else num_rows),
        "tokens": np.float32(_num_tokens(policy_rows) if num_tokens is None else num_tokens),
        "nll_tokens": np.float32(sum(num_counted(row) for row in rows if row.loss == LossKind.NLL)),
        "rco_rows": np.float32(sum(row.loss == LossKind.RCO for row in rows)),
        "pairs": np.float32(sum(row.pair > 0 for row in rows)),
    }
    counts = {name: np.maximum(value, np.float32(1)) for name, value in counts.items()}
    counts["questions"] = None if num_questions is None else np.float32(num_questions)
    mesh = mesh or sharding.one_device()
    batches = pack_onto(mesh, rows, shape, max_length=settings.max_length)
    grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), params)
    add = accumulate_program(shape, config=config, settings=settings, remat=remat, dtype=dtype, mesh=mesh)
    total: dict = {}
    for first in range(0, len(batches), AT_ONCE):
        some = batches[first : first + AT_ONCE]
        grads, stats = add(params, base, grads, _stacked(some, mesh), np.int32(len(some)), counts)
        total = jax.tree.map(jnp.add, total, stats) if total else stats
    if not batches:  # every row was dropped: the same statistics, all 0, and nothing is run
        empty = empty_batch(shape, max_length=settings.max_length, num_groups=sharding.num_groups(mesh))
        _, stats = jax.eval_shape(add, params, base, grads, stack([empty]), np.int32(1), counts)
        total = {name: np.float32(0) for name in stats}
    done: dict[str, int] = dict.fromkeys(WORK, 0)
    for batch in batches:
        for name, number in work(batch, window=config.window).items():
            done[name] += number
    return grads, {name: float(value) for name, value in jax.device_get(total).items()} | done


def stack(batches: Sequence[TrainBatch]) -> TrainBatch:
    """Returns up to `AT_ONCE` batches as that many on a new first axis, the last of them again and again."""
    padded = [*batches, *[batches[-1]] * (AT_ONCE - len(batches))]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *padded)


def _stacked(batches: Sequence[TrainBatch], mesh: jax.sharding.Mesh) -> TrainBatch:
    return sharding.deal(stack(batches), mesh, spec=sharding.STACKED_BY_ROWS)


def has_gradient(row: TrainRow, settings: LossSettings) -> bool:
    """Whether a row moves the weights.

    A masked one does not, nor without teacher, KL and entropy terms one of advantage 0, or `beyond_cap`.
    """
    if row.masked or row.loss not in WEIGHED:
        return not row.masked
    if settings.distil_coef and row.teacher_logp is not None:
        return True
    if row.loss == LossKind.DISTIL:
        return False
    regularised = bool(settings.kl_coef or settings.entropy_coef)
    return regularised or (row.advantage != 0 and not beyond_cap(row, settings))


def beyond_cap(row: TrainRow, settings: LossSettings) -> bool:
    """Whether `ratios.masked_sequence_weight` of a row is 0: its trainer gives it so much more than its sampler did."""
    if settings.tis_level != "sequence_mask" or not settings.tis_cap or row.refined or row.sampler_logp is None:
        return False
    return float(np.sum(row.old_logp - row.sampler_logp, dtype=np.float64)) > math.log(settings.tis_cap)


def update(
    state: TrainState,
    rows: Sequence[TrainRow],
    *,
    optimizer: optax.GradientTransformation,
    settings: LossSettings,
    num_rows: int | None = None,
    num_tokens: int | None = None,
    drop_zero: bool = True,
    **kw,
) -> tuple[TrainState, dict]:
    """Applies one optimiser update to a minibatch of rows.

    Args:
      state: weights (with `base`: adapters) and optimiser state; its buffers are donated.
      rows: the minibatch.
      optimizer: an optax transformation, the same object in every call.
      settings, num_rows, num_tokens: as in `accumulate_gradients`. Both are counted before any row is dropped.
      drop_zero: leave out policy rows without a gradient (`has_gradient`) before packing, such as those of advantage 0.
      **kw: likewise, `base` included.

    Returns:
      (new state, statistics; `grad_norm` is the norm before clipping)
    """
    policy = [row for row in rows if row.loss in WEIGHED]
    num_rows = len(policy) if num_rows is None else num_rows
    num_tokens = _num_tokens(policy) if num_tokens is None else num_tokens
    rows = [row for row in rows if not row.masked]
    if drop_zero:
        rows = [row for row in rows if has_gradient(row, settings)]
    grads, stats = accumulate_gradients(
        state.params, rows, settings=settings, num_rows=num_rows, num_tokens=num_tokens, **kw
    )
    state, grad_norm = apply_program(optimizer)(state, grads)
    return state, stats | {"grad_norm": float(grad_norm), "rows_trained": len(rows)}


def _check_kinds(rows: Sequence[TrainRow], shape: PackShape) -> None:
    of_rows = [row for row in rows if row.loss in (LossKind.RCO, LossKind.DPO)]
    if (of_rows or any(row.counted is not None for row in rows)) and not shape.from_rows:
        raise ValueError(
            "rows of rco and dpo, and those of which some targets count, need a shape with from_rows=True."
        )
    if any(row.ref_logp is None for row in of_rows):
        raise ValueError("rows of rco and dpo need ref_logp; score them.")


def num_counted(row: TrainRow) -> int:
    """Returns how many targets of a row its loss counts."""
    return len(row.target_ids) if row.counted is None else int(np.sum(row.counted))


def _num_tokens(rows: Sequence[TrainRow]) -> int:
    """Returns the tokens that rows train at most: none of a masked one."""
    return sum(len(row.target_ids) for row in rows if not row.masked)
