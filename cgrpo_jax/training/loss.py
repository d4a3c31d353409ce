"""The loss of a packed batch: every row by its kind, and what a teacher that has seen feedback adds."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from cgrpo_jax import objective
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import Array, LossKind, TrainBatch
from cgrpo_jax.training import distillation
from cgrpo_jax.training.row_losses import dpo_loss, rco_loss
from cgrpo_jax.training.scoring import forward_weights, target_logprobs, target_states

# Kinds whose rows are weighed together, as `objective.aggregate` says: they share its denominators.
WEIGHED = (LossKind.POLICY, LossKind.DISTIL)
# Of the output layer, of rows of `finetune`: they share few prompts, so that targets fill about half of a packed batch.
_PARTS = 3


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Arguments of the loss that do not change during a run; see `objective.policy_loss` for their meaning.

    `beta` is that of `row_losses.dpo_loss`. `distil_coef` is the coefficient of `distillation.distil_loss`, 0 for none;
    `divergence` a name of `ratios.DIVERGENCES`.
    """

    max_length: int
    aggregate: str = "constant"
    initial_ratio: str = "token"
    refined_ratio: str = "shaped"
    gamma: float = 0.1
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_initial: bool = True
    clip_refined: bool = False
    kl_coef: float = 0.0
    kl: str = "k3"
    entropy_coef: float = 0.0
    tis_cap: float = 0.0
    tis_level: str = "token"
    distil_coef: float = 0.0
    divergence: str = "reverse_kl"
    temperature: float = 1.0
    beta: float = 0.1
    num_responses: int | None = None
    num_refinements: int | None = None


def loss_of(
    params,
    *,
    batch: TrainBatch,
    counts,
    base,
    config: params_lib.ModelConfig,
    settings: LossSettings,
    remat,
    dtype,
    kernels,
):
    weights, temperature = forward_weights(params, base), settings.temperature
    hidden_ND, targets = target_states(weights, config, batch, remat=remat, dtype=dtype, kernels=kernels)
    num_parts = 1 if batch.counted_BT is None else _PARTS
    logp_BT, entropy_BT = target_logprobs(
        weights, config, hidden_ND, targets, temperature=temperature, dtype=dtype, kernels=kernels, num_parts=num_parts
    )
    mask_BT = jnp.arange(batch.target_BT.shape[1]) < batch.length_B[:, None]
    if batch.counted_BT is not None:
        mask_BT = mask_BT & batch.counted_BT
    weighing = _weighing(settings, counts)
    loss, stats = objective.policy_loss(
        logp_BT,
        batch.old_logp_BT,
        batch.advantage_B,
        mask_BT & _of_policy(batch)[:, None],
        batch.refined_B,
        initial_ratio=settings.initial_ratio,
        refined_ratio=settings.refined_ratio,
        gamma=settings.gamma,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        clip_initial=settings.clip_initial,
        clip_refined=settings.clip_refined,
        ref_logp_BT=batch.ref_logp_BT if settings.kl_coef else None,
        kl_coef=settings.kl_coef,
        kl=settings.kl,
        entropy_BT=entropy_BT,
        entropy_coef=settings.entropy_coef,
        sampler_logp_BT=batch.sampler_logp_BT if settings.tis_cap else None,
        tis_cap=settings.tis_cap,
        tis_level=settings.tis_level,
        **weighing,
    )
    nll_mask_BT = mask_BT & batch.nll_B[:, None]
    nll = objective.nll_loss(logp_BT, batch.advantage_B, nll_mask_BT, num_tokens=counts["nll_tokens"])
    of_rows, more = _of_rows(batch, logp_BT, mask_BT, counts, beta=settings.beta)
    stats |= more | {"policy_loss": loss, "nll_loss": nll}
    if not settings.distil_coef:
        return loss + nll + of_rows, stats
    arguments = {"divergence": settings.divergence, "temperature": temperature, "dtype": dtype}
    both_BT = distillation.distances(weights, config, batch, hidden_ND, targets, **arguments)
    distil, more = distillation.distil_loss(batch, mask_BT, *both_BT, coef=settings.distil_coef, **weighing)
    return loss + nll + of_rows + distil, stats | more


def _weighing(settings: LossSettings, counts) -> dict[str, Any]:
    """Returns what `objective.aggregate` weighs rows by, of the policy and distilled alike."""
    return {
        "aggregate": settings.aggregate,
        "max_length": settings.max_length,
        "num_rows": counts["rows"],
        "num_tokens": counts["tokens"],
        "num_questions": counts["questions"],
        "num_responses": settings.num_responses,
        "num_refinements": settings.num_refinements,
    }


def _of_rows(batch: TrainBatch, logp_BT, mask_BT, counts, *, beta: float):
    """Returns the losses of RCO and of pairs, and their statistics; exactly 0 of a batch that is not made for them."""
    if batch.rco_B is None or batch.pair_B is None:
        return 0.0, {}
    arrays = (logp_BT, batch.ref_logp_BT, batch.advantage_B)
    rco, of_rco = rco_loss(*arrays, batch.rco_B, mask_BT, num_rows=counts["rco_rows"])
    dpo, of_dpo = dpo_loss(*arrays, batch.pair_B, mask_BT, beta=beta, num_pairs=counts["pairs"])
    return rco + dpo, of_rco | of_dpo | {"rco_loss": rco, "dpo_loss": dpo}


def _of_policy(batch: TrainBatch) -> Array:
    """Returns `[B]` bool, which rows are of `LossKind.POLICY`."""
    policy_B = jnp.asarray(~batch.nll_B)
    if batch.rco_B is not None and batch.pair_B is not None:
        policy_B = policy_B & ~batch.rco_B & (batch.pair_B == 0)
    if batch.alone_B is not None:
        policy_B = policy_B & ~batch.alone_B
    return policy_B
