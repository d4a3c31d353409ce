"""The Critique-GRPO objective, arXiv 2506.03106, Eq. 2-4: advantages, ratios, clipping, aggregation.

This is the readable definition: plain arrays in, a scalar out, nothing fused. Every faster path must equal it.
All functions are pure and can be jitted; a "row" is one response or one kept refinement, in any order.
"""

import jax
import jax.numpy as jnp

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Array

AGGREGATES = ("constant", "paper", "token_mean", "sequence_mean")

# Log-ratios above it count as it: e^89 is no float32, and the clip that holds it back would have a gradient of 0 * inf.
LARGEST_LOG_RATIO = 20.0

# Added to the standard deviation, as R1-GRPO implementations do, so that a group of nearly equal rewards stays finite.
STD_EPSILON = 1e-6

Count = int | jax.Array  # of rows, tokens or questions; an array where it is known on the device only


def group_advantages(reward_B: Array, group_B: Array, *, num_groups: int, scale_by_std: bool = False) -> jax.Array:
    """Rewards relative to their group: `A = R - mean(R of the group)`, Eq. 2 without its division by the deviation.

    A group is everything kept for one question, initial responses and refinements alike: there is one baseline.

        reward_B = [1, 0, 0, 0, 1, 1], group_B = [0, 0, 0, 0, 1, 1]  ->  [0.75, -0.25, -0.25, -0.25, 0, 0]

    Args:
      reward_B: `[B]` float, reward of each row.
      group_B: `[B]` int, group of each row. Anything outside `0 .. num_groups - 1` marks padding.
      num_groups: number of groups, a Python integer.
      scale_by_std: divide by `std + 1e-6` (ddof 1), as R1-GRPO does; a group of one then has advantage 0 too.

    Returns:
      `[B]` float, 0 at padding and exactly 0 where all rewards of a group are equal.
    """
    _check_shapes(reward_B=(reward_B, ("B",)), group_B=(group_B, ("B",)))
    valid_B = (group_B >= 0) & (group_B < num_groups)
    group_B = jnp.where(valid_B, group_B, num_groups)  # padding forms one more group, whose rows are zeroed below
    reward_B = jnp.where(valid_B, reward_B, 0.0)

    def total(value_B: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(value_B, group_B, num_segments=num_groups + 1)[group_B]

    count_B = total(jnp.ones_like(reward_B))
    # Counting rewards from the group's lowest leaves A unchanged and makes it exactly 0 for equal rewards: the mean of
    # three times 0.1 is not 0.1 in float32, and rows are dropped by comparing A with 0.
    reward_B = reward_B - jax.ops.segment_min(reward_B, group_B, num_segments=num_groups + 1)[group_B]
    advantage_B = reward_B - total(reward_B) / count_B
    if scale_by_std:
        variance_B = total(advantage_B**2) / jnp.maximum(count_B - 1, 1)
        advantage_B = advantage_B / (jnp.sqrt(variance_B) + STD_EPSILON)
    return jnp.where(valid_B, advantage_B, 0.0)


def importance_ratio(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
    """`r = pi_theta / pi_old`, the ratio of the initial responses (Eq. 3), from log-probabilities in nats.

    At most e^20: tokens that `pi_old` gave so little, which it can hardly have sampled, have the gradient 0.
    """
    return jnp.exp(jnp.minimum(logp - old_logp, LARGEST_LOG_RATIO))


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


def kl_k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Per-token estimate of `KL(pi_theta || pi_ref)`: `exp(d) - d - 1`, `d = log pi_ref - log pi_theta`.

    The k3 estimator of http://joschu.net/blog/kl-approx.html: never negative, and 0 where both agree.
    """
    difference = ref_logp - logp
    return jnp.expm1(difference) - difference


def token_weights(
    mask_BT: Array,
    refined_B: Array,
    *,
    aggregate: str,
    max_length: int,
    num_rows: Count | None = None,
    num_tokens: Count | None = None,
    num_questions: Count | None = None,
    num_responses: Count | None = None,
    num_refinements: Count | None = None,
) -> jax.Array:
    """Weight of each token, such that the objective is `sum(weight_BT * term_BT)`.

    | aggregate | weight of a token |
    |---|---|
    | `"constant"` | `1 / (num_rows * max_length)` |
    | `"paper"` | initial `1 / (num_questions * num_responses)`, refined `1 / (num_questions * num_refinements)` |
    | `"token_mean"` | `1 / num_tokens` |
    | `"sequence_mean"` | `1 / (num_rows * tokens of its row)` |

    Every count is that of the whole minibatch, so that the losses of its microbatches add up.

        mask_BT = [[1, 1, 0], [1, 0, 0]], "constant", max_length=4  ->  [[1/8, 1/8, 0], [1/8, 0, 0]]

    Args:
      mask_BT: `[B, T]` float (0 or 1) or bool, the tokens that count.
      refined_B: `[B]` bool, the rows that are refinements.
      aggregate: one of `AGGREGATES`.
      max_length: `max_response_length` in tokens, which is not T: T may be a shorter bucket.
      num_rows: rows of the minibatch, dropped ones included; B by default.
      num_tokens: unmasked tokens of the minibatch; those of `mask_BT` by default.
      num_questions: questions of the minibatch, Q.
      num_responses: initial responses a question, n.
      num_refinements: kept refinements a question, k; 0 where nothing is refined.

    Raises:
      UserError: `aggregate` is unknown.
      ValueError: `"paper"` without its three counts.
    """
    _check_shapes(mask_BT=(mask_BT, ("B", "T")), refined_B=(refined_B, ("B",)))
    weight_BT = jnp.asarray(mask_BT).astype(bool).astype(float)
    num_rows = jnp.shape(mask_BT)[0] if num_rows is None else num_rows
    match aggregate:
        case "constant":
            # Departure: Eq. 3 and Eq. 4 average initial and refined rows apart; here, as in the paper's release, one
            # denominator serves both. With n = 7 and k = 1 a refined token weighs as much as an initial one, which
            # is 1/7 of what Eq. 4 gives it relative to Eq. 3. `aggregate="paper"` is the literal form.
            return weight_BT / (num_rows * max_length)
        case "paper":
            if num_questions is None or num_responses is None or num_refinements is None:
                counts = {
                    "num_questions": num_questions,
                    "num_responses": num_responses,
                    "num_refinements": num_refinements,
                }
                missing = [name for name, count in counts.items() if count is None]
                raise ValueError(f'aggregate="paper" needs {", ".join(counts)}; pass also {", ".join(missing)}.')
            # With k = 0 no row is refined, and the second denominator only has to be a number.
            per_question_B = jnp.where(refined_B, jnp.maximum(num_refinements, 1), num_responses)
            return weight_BT / (num_questions * per_question_B)[:, None]
        case "token_mean":
            num_tokens = weight_BT.sum() if num_tokens is None else num_tokens
            return weight_BT / jnp.maximum(num_tokens, 1)
        case "sequence_mean":
            length_B = weight_BT.sum(axis=1)
            return weight_BT / (num_rows * jnp.maximum(length_B, 1))[:, None]
        case _:
            raise UserError(f"aggregate={aggregate!r} is unknown; use one of {', '.join(AGGREGATES)}.")


def policy_loss(
    logp_BT: Array, old_logp_BT: Array, advantage_B: Array, mask_BT: Array, refined_B: Array, *,
    gamma: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.2,
    clip_initial: bool = True, clip_refined: bool = True,
    aggregate: str = "constant", max_length: int, num_rows: Count | None = None, num_tokens: Count | None = None,
    num_questions: Count | None = None, num_responses: Count | None = None, num_refinements: Count | None = None,
    ref_logp_BT: Array | None = None, kl_coef: float = 0.0,
    entropy_BT: Array | None = None, entropy_coef: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """The value to minimise: the negative of Eq. 3 + Eq. 4, plus a KL penalty, minus an entropy bonus.

        loss = - sum_bt w_bt [ min(x A, clip(x, 1 - clip_low, 1 + clip_high) A) - kl_coef KL + entropy_coef H ]
        x = pi_theta / pi_old in an initial row,  x = pi_theta / (pi_theta + gamma) in a refined one

    with `w` from `token_weights`. One initial row of one token, `pi_theta = pi_old`, A = 0.5, `max_length=1`: -0.5.

    Args:
      logp_BT: `[B, T]` log-probabilities (nats) under `pi_theta`, each row given the original prompt alone.
      old_logp_BT: `[B, T]` log-probabilities under the policy that sampled; refined rows ignore it.
      advantage_B: `[B]` advantage of each row.
      mask_BT: `[B, T]` float (0 or 1) or bool. Where it is 0 the other arrays may hold anything finite.
      refined_B: `[B]` bool, the rows that are refinements.
      gamma: shaping constant of the refined rows.
      clip_low: ratios are clipped below at `1 - clip_low`.
      clip_high: ratios are clipped above at `1 + clip_high`, which a refined row never reaches.
      clip_initial: clip the initial rows (the paper's equations do, its released code does not).
      clip_refined: clip the refined rows (likewise).
      aggregate: see `token_weights`, as are the counts.
      max_length: `max_response_length`, tokens.
      num_rows: rows of the whole minibatch.
      num_tokens: unmasked tokens of the whole minibatch.
      num_questions: questions of the whole minibatch.
      num_responses: initial responses a question.
      num_refinements: kept refinements a question.
      ref_logp_BT: `[B, T]` log-probabilities under the reference; needed when `kl_coef` is not 0.
      kl_coef: coefficient of the KL penalty, a Python number.
      entropy_BT: `[B, T]` entropy (nats) of `pi_theta` at each token; needed when `entropy_coef` is not 0.
      entropy_coef: coefficient of the entropy bonus, a Python number.

    Returns:
      The loss, and statistics that are sums over tokens, so that microbatches and hosts simply add: for `initial` and
      `refined`, `/tokens`, `/ratio_sum`, `/clip_low` and `/clip_high` (tokens whose gradient the clip removed);
      `logp_difference_sum` (`|logp - old_logp|`, initial tokens); `refined/prob_sum`; with their inputs also
      `kl_sum` (all tokens) and `initial/entropy_sum`, `refined/entropy_sum`.

    Raises:
      UserError: `aggregate` is unknown.
      ValueError: an input that a non-zero coefficient or the aggregation needs is missing.
    """
    _check_shapes(
        logp_BT=(logp_BT, ("B", "T")), old_logp_BT=(old_logp_BT, ("B", "T")), mask_BT=(mask_BT, ("B", "T")),
        advantage_B=(advantage_B, ("B",)), refined_B=(refined_B, ("B",)),
    )  # fmt: skip
    _check_given("kl_coef", kl_coef, "ref_logp_BT", ref_logp_BT)
    _check_given("entropy_coef", entropy_coef, "entropy_BT", entropy_BT)

    weight_BT = token_weights(
        mask_BT, refined_B, aggregate=aggregate, max_length=max_length, num_rows=num_rows, num_tokens=num_tokens,
        num_questions=num_questions, num_responses=num_responses, num_refinements=num_refinements,
    )  # fmt: skip
    mask_BT = jnp.asarray(mask_BT).astype(bool)
    refined_B = jnp.asarray(refined_B).astype(bool)
    initial_BT = mask_BT & ~refined_B[:, None]
    refined_BT = mask_BT & refined_B[:, None]
    advantage_BT = jnp.broadcast_to(advantage_B[:, None], mask_BT.shape)

    # Whatever must not count is replaced before any exponential: selecting afterwards would leave inf * 0 = NaN in the
    # gradient. A masked entry has ratio 1; in a refined row, where old_logp is 0, the unused ratio is pi itself.
    logp_BT = jnp.where(mask_BT, logp_BT, 0.0)
    old_logp_BT = jnp.where(initial_BT, old_logp_BT, 0.0)
    ratio_BT = importance_ratio(logp_BT, old_logp_BT)
    shaped_BT = shaped_ratio(logp_BT, gamma)

    bounds = {"clip_low": clip_low, "clip_high": clip_high}
    surrogate_BT = jnp.where(
        refined_B[:, None],
        clipped_surrogate(shaped_BT, advantage_BT, clip=clip_refined, **bounds),
        clipped_surrogate(ratio_BT, advantage_BT, clip=clip_initial, **bounds),
    )
    loss = -jnp.sum(weight_BT * surrogate_BT)

    stats = {
        **_ratio_stats("initial", ratio_BT, advantage_BT, initial_BT, clip=clip_initial, **bounds),
        **_ratio_stats("refined", shaped_BT, advantage_BT, refined_BT, clip=clip_refined, **bounds),
        "refined/prob_sum": _masked_sum(jnp.exp(logp_BT), refined_BT),
        "logp_difference_sum": _masked_sum(jnp.abs(logp_BT - old_logp_BT), initial_BT),
    }
    if ref_logp_BT is not None:
        kl_BT = kl_k3(logp_BT, jnp.where(mask_BT, ref_logp_BT, 0.0))
        loss = loss + kl_coef * jnp.sum(weight_BT * kl_BT)
        stats["kl_sum"] = _masked_sum(kl_BT, mask_BT)
    if entropy_BT is not None:
        entropy_BT = jnp.where(mask_BT, entropy_BT, 0.0)
        loss = loss - entropy_coef * jnp.sum(weight_BT * entropy_BT)
        stats["initial/entropy_sum"] = _masked_sum(entropy_BT, initial_BT)
        stats["refined/entropy_sum"] = _masked_sum(entropy_BT, refined_BT)
    return loss, stats


def nll_loss(logp_BT: Array, weight_B: Array, mask_BT: Array, *, num_tokens: Count) -> jax.Array:
    """Weighted negative log-likelihood a token: `- sum_bt weight_b mask_bt logp_bt / num_tokens`.

        logp_BT = [[-1, -2], [-4, 0]], weight_B = [1, 0.5], mask_BT = [[1, 1], [1, 0]], num_tokens = 3  ->  5/3

    Args:
      logp_BT: `[B, T]` log-probabilities (nats) of the targets.
      weight_B: `[B]` weight of each row.
      mask_BT: `[B, T]` float (0 or 1) or bool.
      num_tokens: unmasked tokens of the whole minibatch, so that microbatches add up.
    """
    _check_shapes(logp_BT=(logp_BT, ("B", "T")), mask_BT=(mask_BT, ("B", "T")), weight_B=(weight_B, ("B",)))
    return -_masked_sum(weight_B[:, None] * logp_BT, mask_BT) / jnp.maximum(num_tokens, 1)


def _ratio_stats(
    name: str,
    ratio_BT: jax.Array,
    advantage_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    clip: bool,
) -> dict[str, jax.Array]:
    """Sums over the tokens of one kind of row; the clip counts are 0 when that kind is not clipped."""
    low_BT = mask_BT & clip & (ratio_BT < 1 - clip_low) & (advantage_BT < 0)
    high_BT = mask_BT & clip & (ratio_BT > 1 + clip_high) & (advantage_BT > 0)
    return {
        f"{name}/tokens": mask_BT.astype(float).sum(),
        f"{name}/ratio_sum": _masked_sum(ratio_BT, mask_BT),
        f"{name}/clip_low": low_BT.astype(float).sum(),
        f"{name}/clip_high": high_BT.astype(float).sum(),
    }


def _masked_sum(value_BT: Array, mask_BT: Array) -> jax.Array:
    return jnp.sum(jnp.where(jnp.asarray(mask_BT).astype(bool), value_BT, 0.0))


def _check_given(coefficient: str, value: float, name: str, array: Array | None) -> None:
    """Raises a `ValueError` where a coefficient that is not 0 lacks the array that it belongs to."""
    if array is None and value != 0:
        raise ValueError(f"{coefficient}={value} needs {name}; pass it or set {coefficient}=0.")


def _check_shapes(**arrays: tuple[Array, tuple[str, ...]]) -> None:
    """Asserts that axes of one letter have one size: a `[B, 1]` reward would broadcast into a plausible number."""
    sizes: dict[str, int] = {}
    for name, (array, axes) in arrays.items():
        shape = jnp.shape(array)
        assert len(shape) == len(axes), f"{name} has shape {shape}; it needs the axes {axes}."
        for axis, size in zip(axes, shape, strict=True):
            expected = sizes.setdefault(axis, size)
            assert expected == size, f"{name} has shape {shape}; axis {axis} has size {expected} elsewhere."
