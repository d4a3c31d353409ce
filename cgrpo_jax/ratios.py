"""What weighs the advantage of a token: pi_theta / pi_old, the paper's shaped ratio, and those of neighbouring methods.

One pure function a ratio, `(logp, old_logp, advantage, mask, bounds) -> (ratio, surrogate)`, all `[B, T]`: the ratio is
what statistics show, the surrogate what the objective sums. `objective.policy_loss` chooses by name.

The estimators of the KL divergence from the reference policy stand here too, and the divergences from a teacher.

    INITIAL_RATIOS["token"](logp_BT, old_logp_BT, advantage_BT, mask_BT, Bounds())
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Log-ratios above it count as it: e^89 is no float32, and the clip that holds it back would have a gradient of 0 * inf.
LARGEST_LOG_RATIO = 20.0


class Bounds(NamedTuple):
    """The constants of a ratio: kept within `1 - low .. 1 + high` where it is clipped; `gamma` shapes."""

    low: float = 0.2
    high: float = 0.2
    clip: bool = True
    gamma: float = 0.1


def importance_ratio(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
    """`r = pi_theta / pi_old`, the ratio of the initial responses (Eq. 3), from log-probabilities in nats.

    At most e^20: tokens that `pi_old` gave so little, which it can hardly have sampled, have the gradient 0.
    """
    return jnp.exp(jnp.minimum(logp - old_logp, LARGEST_LOG_RATIO))


def sequence_ratio(logp_BT: jax.Array, old_logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """`s = (pi_theta(y) / pi_old(y))^(1 / |y|)` at each token of y, one ratio a row (GSPO, arXiv 2507.18071, Eq. 7).

    `logp - old_logp = [log 2, log 0.5, log 4]` gives `s = 4^(1/3)` at all three. The gradient of a token goes through
    the ratio of its whole row.
    """
    mask_BT = mask_BT.astype(logp_BT.dtype)
    total_B = jnp.sum(mask_BT * (logp_BT - old_logp_BT), axis=1)
    mean_B = total_B / jnp.maximum(mask_BT.sum(axis=1), 1)
    return jnp.broadcast_to(importance_ratio(mean_B, jnp.zeros_like(mean_B))[:, None], logp_BT.shape)


def shaped_ratio(logp: jax.Array, gamma: float) -> jax.Array:
    """`rho = pi_theta / (pi_theta + gamma)`, the ratio of the refinements (Eq. 4).

    The gradient flows through both occurrences of `pi_theta`, `d rho = gamma pi / (pi + gamma)^2 d log pi`, so tokens
    of probability near `gamma` move the most, and tokens that are already certain hardly move. The behaviour policy
    does not appear.

    `shaped_ratio(log(0.1), 0.1) = 0.5`; `rho` never exceeds `1 / (1 + gamma)`.

    Args:
      logp: log-probabilities in nats, any shape.
      gamma: shaping constant, above 0.
    """
    # pi / (pi + gamma) = 1 / (1 + exp(log gamma - log pi)): no exponential of a large number, and no 0 / 0.
    return jax.nn.sigmoid(logp - jnp.log(gamma))


def clipped_surrogate(
    ratio: jax.Array, advantage: jax.Array, *, clip_low: float, clip_high: float, clip: bool = True
) -> jax.Array:
    """`min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)` (PPO, arXiv 1707.06347, Eq. 7), or `ratio A`.

    `ratio = 1.5, A = 1 -> 1.2`; `ratio = 1.5, A = -1 -> -1.5`: only a step that goes too far in the direction the
    advantage points is held back.
    """
    if not clip:
        return ratio * advantage
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)


# --- one function a ratio -----------------------------------------------------------------------------------------

Weighed = tuple[jax.Array, jax.Array]  # a ratio and its surrogate


def of_token(logp_BT, old_logp_BT, advantage_BT, mask_BT, bounds: Bounds) -> Weighed:
    """`min(r A, clip(r) A)`, `r = pi_theta / pi_old` of each token (Eq. 3)."""
    return _clipped(importance_ratio(logp_BT, old_logp_BT), advantage_BT, bounds)


def of_sequence(logp_BT, old_logp_BT, advantage_BT, mask_BT, bounds: Bounds) -> Weighed:
    """`min(s A, clip(s) A)`, `s` of a whole row (GSPO, arXiv 2507.18071, Eq. 5, where `aggregate` is a mean a row)."""
    return _clipped(sequence_ratio(logp_BT, old_logp_BT, mask_BT), advantage_BT, bounds)


def of_cispo(logp_BT, old_logp_BT, advantage_BT, mask_BT, bounds: Bounds) -> Weighed:
    """`sg(min(r, 1 + high)) A log pi_theta` (CISPO, arXiv 2506.13585, Eq. 4 and 5): no token loses its gradient.

    There is no lower bound. `r = 3, high = 1, A = 1`: the gradient by `log pi_theta` is 2.
    """
    ratio_BT = importance_ratio(logp_BT, old_logp_BT)
    held_BT = jax.lax.stop_gradient(jnp.minimum(ratio_BT, 1 + bounds.high))
    return ratio_BT, held_BT * advantage_BT * logp_BT


def of_shaped(logp_BT, old_logp_BT, advantage_BT, mask_BT, bounds: Bounds) -> Weighed:
    """`rho A`, `rho = pi_theta / (pi_theta + gamma)` (Eq. 4), or `min(rho A, clip(rho) A)`."""
    return _clipped(shaped_ratio(logp_BT, bounds.gamma), advantage_BT, bounds)


def of_probability(logp_BT, old_logp_BT, advantage_BT, mask_BT, bounds: Bounds) -> Weighed:
    """`pi_theta A`: pi_theta / pi_old with pi_old taken as 1 (LUFFY, arXiv 2504.14945, before it shapes)."""
    return _clipped(jnp.exp(logp_BT), advantage_BT, bounds)


def of_log_probability(logp_BT, old_logp_BT, advantage_BT, mask_BT, bounds: Bounds) -> Weighed:
    """`A log pi_theta`, no ratio at all (RLTF-SD, arXiv 2602.02482); what is shown is pi_theta."""
    return jnp.exp(logp_BT), advantage_BT * logp_BT


def _clipped(ratio_BT: jax.Array, advantage_BT: jax.Array, bounds: Bounds) -> Weighed:
    term = clipped_surrogate(ratio_BT, advantage_BT, clip_low=bounds.low, clip_high=bounds.high, clip=bounds.clip)
    return ratio_BT, term


INITIAL_RATIOS = {"token": of_token, "sequence": of_sequence, "cispo": of_cispo}
REFINED_RATIOS = {
    "shaped": of_shaped,
    "importance": of_token,
    "plain": of_probability,
    "logp": of_log_probability,
}


# --- sampler against trainer ----------------------------------------------------------------------------------------


def truncated_weight(old_logp_BT, sampler_logp_BT, mask_BT, cap: float) -> jax.Array:
    """`min(pi_trainer,old / pi_sampler, cap)` of each token: truncated importance sampling; 1 where both agree.

    https://fengyao.notion.site/off-policy-rl: what samples and what trains differ in bfloat16, and more with int8.
    """
    return jnp.minimum(importance_ratio(old_logp_BT, sampler_logp_BT), cap)


def masked_sequence_weight(old_logp_BT, sampler_logp_BT, mask_BT, cap: float) -> jax.Array:
    """`w 1[w <= cap]`, `w = pi_trainer,old(y) / pi_sampler(y)` of a whole row, at each of its tokens.

    Masked importance sampling: a row beyond the cap trains nothing.
    """
    difference_B = jnp.sum(jnp.where(mask_BT, old_logp_BT - sampler_logp_BT, 0.0), axis=1, keepdims=True)
    ratio_B = importance_ratio(difference_B, jnp.zeros_like(difference_B))
    return jnp.broadcast_to(jnp.where(ratio_B <= cap, ratio_B, 0.0), old_logp_BT.shape)


SAMPLER_WEIGHTS = {"token": truncated_weight, "sequence_mask": masked_sequence_weight}


# --- how far the policy is from the reference -----------------------------------------------------------------------


def kl_k1(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Per-token estimate of `KL(pi_theta || pi_ref)`: `log pi_theta - log pi_ref`.

    The k1 estimator of http://joschu.net/blog/kl-approx.html: unbiased, and negative half of the time. As a loss its
    gradient is 0 in the mean over the policy's own samples.
    """
    return logp - ref_logp


def kl_k2(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Likewise: `(log pi_theta - log pi_ref)^2 / 2`, the k2 estimator: biased, and its gradient is that of the KL."""
    return 0.5 * (logp - ref_logp) ** 2


def kl_k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Likewise: `exp(d) - d - 1`, `d = log pi_ref - log pi_theta`, the k3 estimator: never negative, and unbiased."""
    difference = ref_logp - logp
    return jnp.expm1(difference) - difference


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


# --- how far the policy is from its teacher -------------------------------------------------------------------------


def reverse_kl(logp: jax.Array, teacher_logp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`KL(p || q) = sum_g p_g log(p_g / q_g)` of distributions over the last axis, and its slope `log(p_g / q_g)`.

    The slope is the derivative by `p_g` up to a constant, which no distribution can follow. Of what the teacher q gives
    little, the policy p learns to give less.

        p = [1/2, 1/2], q = [1/4, 3/4]  ->  log(2) / 2 + log(2/3) / 2 = 0.1438
    """
    slope = logp - teacher_logp
    return jnp.sum(jnp.exp(logp) * slope, axis=-1), slope


def jensen_shannon(logp: jax.Array, teacher_logp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Likewise `KL(p || m) / 2 + KL(q || m) / 2`, `m = (p + q) / 2`, at most log 2; its slope is `log(p_g / m_g) / 2`.

    p = [1/2, 1/2], q = [1/4, 3/4], m = [3/8, 5/8]  ->  0.0338
    """
    above_m = -_log_mean(teacher_logp - logp)  # log(p / m)
    teacher_above_m = -_log_mean(logp - teacher_logp)
    terms = jnp.exp(logp) * above_m + jnp.exp(teacher_logp) * teacher_above_m
    return 0.5 * jnp.sum(terms, axis=-1), 0.5 * above_m


def _log_mean(x: jax.Array) -> jax.Array:
    """Returns `log((1 + e^x) / 2)`, exactly 0 at 0."""
    return jnp.maximum(x, 0) + jnp.log1p(0.5 * jnp.expm1(-jnp.abs(x)))


DIVERGENCES = {"reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}


def distance(logits: jax.Array, teacher_logp: jax.Array, divergence: str) -> jax.Array:
    """The divergence of `softmax(logits)` from a teacher's distribution, which is held fixed.

    Its gradient is `d z_j = p_j (s_j - sum_i p_i s_i)`, s the divergence's slope: exactly 0 where both are equal.

    Args:
      logits: `[..., G]`, of tokens, or of groups of tokens (`top_logits.linear_group_logits`).
      teacher_logp: `[..., G]` log-probabilities (nats) of the same.
      divergence: a name of `DIVERGENCES`.
    """
    logp = jax.nn.log_softmax(logits, axis=-1)
    value, slope = DIVERGENCES[divergence](logp, teacher_logp)
    # Differentiated term by term, p log(p / q) would leave the rounding of 1 - sum p in the gradient.
    pulled = jnp.sum(jax.lax.stop_gradient(jnp.exp(logp) * slope) * logp, axis=-1)
    return jax.lax.stop_gradient(value) + (pulled - jax.lax.stop_gradient(pulled))
