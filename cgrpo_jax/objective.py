"""The Critique-GRPO objective, arXiv 2506.03106, Eq. 2-4, and its neighbours': advantages, aggregation, loss.

This is the readable definition: plain arrays in, a scalar out, nothing fused. Every faster path must equal it.
All functions are pure and can be jitted; a "row" is one response or one kept refinement, in any order. The ratios, one
function each, are in `ratios`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cgrpo_jax.errors import UserError
from cgrpo_jax.ratios import INITIAL_RATIOS, KL_ESTIMATORS, REFINED_RATIOS, SAMPLER_WEIGHTS, Bounds
from cgrpo_jax.ratios import LARGEST_LOG_RATIO as LARGEST_LOG_RATIO  # these five are public names of this module too
from cgrpo_jax.ratios import clipped_surrogate as clipped_surrogate
from cgrpo_jax.ratios import importance_ratio as importance_ratio
from cgrpo_jax.ratios import kl_k3 as kl_k3
from cgrpo_jax.ratios import shaped_ratio as shaped_ratio
from cgrpo_jax.records import Array

AGGREGATES = ("constant", "paper", "token_mean", "sequence_mean")
BASELINES = ("group", "initial")

# Added to the standard deviation, as R1-GRPO implementations do, so that a group of nearly equal rewards stays finite.
STD_EPSILON = 1e-6

Count = int | jax.Array  # of rows, tokens or questions; an array where it is known on the device only


def group_advantages(
    reward_B: Array,
    group_B: Array,
    *,
    num_groups: int,
    scale_by_std: bool = False,
    baseline_B: Array | None = None,
    penalty_B: Array | None = None,
) -> jax.Array:
    """Rewards relative to their group: `A = R - mean(R of the group)`, Eq. 2 without its division by the deviation.

    A group is everything kept for one question, initial responses and refinements alike: there is one baseline. With
    `baseline_B` it is the mean of the rows named, as of the first turn alone in RLTF-SD (arXiv 2602.02482).

        reward_B = [1, 0, 0, 0, 1, 1], group_B = [0, 0, 0, 0, 1, 1]  ->  [0.75, -0.25, -0.25, -0.25, 0, 0]
        reward_B = [0, 0, 1], group_B = [0, 0, 0], baseline_B = [1, 1, 0]  ->  [0, 0, 1]

    A penalty, as for length, is added to the rewards of groups that differ without it. It does not by itself teach on
    questions that all rows solve, or none does: DAPO (arXiv 2503.14476), whose it is, never trains these (Eq. 11).

        reward_B = [1, 0, 1, 1], group_B = [0, 0, 1, 1], penalty_B = [-0.5, 0, -0.5, 0]  ->  [0.25, -0.25, 0, 0]

    Args:
      reward_B: `[B]` float, reward of each row.
      group_B: `[B]` int, group of each row. Anything outside `0 .. num_groups - 1` marks padding.
      num_groups: number of groups, a Python integer.
      scale_by_std: divide by `std + 1e-6` (ddof 1), as R1-GRPO does; a group of one then has advantage 0 too.
      baseline_B: `[B]` bool, the rows that mean and deviation are of; by default all. A group without one has
        advantage 0.
      penalty_B: `[B]` float, added to the rewards of each group in which these are not all equal.

    Returns:
      `[B]` float, 0 at padding and exactly 0 where all rewards of a group are equal, whatever the penalties.
    """
    baseline_B = jnp.ones_like(group_B, bool) if baseline_B is None else jnp.asarray(baseline_B).astype(bool)
    _check_shapes(reward_B=(reward_B, ("B",)), group_B=(group_B, ("B",)), baseline_B=(baseline_B, ("B",)))
    valid_B = (group_B >= 0) & (group_B < num_groups)
    group_B = jnp.where(valid_B, group_B, num_groups)  # padding forms one more group, whose rows are zeroed below
    reward_B = jnp.where(valid_B, reward_B, 0.0)

    def total(value_B: jax.Array) -> jax.Array:
        counted_B = jnp.where(baseline_B, value_B, 0.0)
        return jax.ops.segment_sum(counted_B, group_B, num_segments=num_groups + 1)[group_B]

    count_B = total(jnp.ones_like(reward_B))

    # Counting rewards from the group's lowest leaves A unchanged and makes it exactly 0 for equal rewards: the mean of
    # three times 0.1 is not 0.1 in float32, and rows are dropped by comparing A with 0.
    def from_lowest(value_B: jax.Array) -> jax.Array:
        return value_B - jax.ops.segment_min(value_B, group_B, num_segments=num_groups + 1)[group_B]

    reward_B = from_lowest(reward_B)
    if penalty_B is not None:
        greatest_B = jax.ops.segment_max(reward_B, group_B, num_segments=num_groups + 1)[group_B]
        reward_B = from_lowest(reward_B + jnp.where(valid_B & (greatest_B > 0), penalty_B, 0.0))
    advantage_B = reward_B - total(reward_B) / jnp.maximum(count_B, 1)
    if scale_by_std:
        variance_B = total(advantage_B**2) / jnp.maximum(count_B - 1, 1)
        advantage_B = advantage_B / (jnp.sqrt(variance_B) + STD_EPSILON)
    return jnp.where(valid_B & (count_B > 0), advantage_B, 0.0)


def weighted_advantages(
    reward_KB: Array,
    group_B: Array,
    *,
    weights: Sequence[float],
    normalize_each: bool = False,
    scale_by_std: bool = False,
    penalty_B: Array | None = None,
    **keywords: Any,
) -> jax.Array:
    """Advantages of several rewards: of `sum_k weight_k R_k`, or `sum_k weight_k A_k`, A_k over its deviation (GDPO).

    A null reward, NaN, adds nothing for its row; with `normalize_each` it is in no mean either. Departure: GDPO (arXiv
    2601.05242) also divides the sum by its deviation over the batch.

        reward_KB = [[1, 0], [0, 4]], weights = (1, 0.5), one group  ->  [-0.5, 0.5], and of each [0.35, -0.35]

    Args:
      reward_KB: `[K, B]` float.
      group_B: as for `group_advantages`, as are `scale_by_std`, of the sum alone, and the other keywords.
      weights: of each reward, K Python numbers.
      penalty_B: of the first reward, as for `group_advantages`.
      normalize_each: divide each reward's deviations by their standard deviation before they are added.
    """
    known_KB = ~jnp.isnan(reward_KB)
    reward_KB = jnp.where(known_KB, reward_KB, 0.0)
    if not normalize_each:
        total_B = sum(weight * reward_B for weight, reward_B in zip(weights, reward_KB, strict=True))
        penalty_B = None if penalty_B is None else weights[0] * penalty_B
        return group_advantages(
            jnp.asarray(total_B), group_B, scale_by_std=scale_by_std, penalty_B=penalty_B, **keywords
        )
    penalties = (penalty_B, *[None] * (len(weights) - 1))
    each = [
        weight
        * group_advantages(reward_B, jnp.where(known_B, group_B, -1), scale_by_std=True, penalty_B=penalty, **keywords)
        for weight, reward_B, known_B, penalty in zip(weights, reward_KB, known_KB, penalties, strict=True)
    ]
    return jnp.sum(jnp.stack(each), axis=0)


def length_penalty(length_B: Array, *, max_length: int, buffer: float) -> Array:
    """The soft overlong punishment of DAPO (arXiv 2503.14476, Eq. 13): 0, falling to -1 over the last `buffer` tokens.

        clip((max_length - buffer - length) / buffer, -1, 0)

    `max_length=20, buffer=8`: lengths 12, 14 and 20 give 0, -0.25 and -1.

    Args:
      length_B: `[B]` tokens of each row, of NumPy or JAX, as is what is returned.
      max_length: `max_response_length`, tokens.
      buffer: tokens, above 0.
    """
    return ((max_length - buffer - length_B) / buffer).clip(-1.0, 0.0)


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
    initial_ratio: str = "token", refined_ratio: str = "shaped",
    gamma: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.2,
    clip_initial: bool = True, clip_refined: bool = False,
    aggregate: str = "constant", max_length: int, num_rows: Count | None = None, num_tokens: Count | None = None,
    num_questions: Count | None = None, num_responses: Count | None = None, num_refinements: Count | None = None,
    ref_logp_BT: Array | None = None, kl_coef: float = 0.0, kl: str = "k3",
    entropy_BT: Array | None = None, entropy_coef: float = 0.0,
    sampler_logp_BT: Array | None = None, tis_cap: float = 0.0, tis_level: str = "token",
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """The value to minimise: the negative of Eq. 3 + Eq. 4, plus a KL penalty, minus an entropy bonus.

        loss = - sum_bt w_bt [ min(x A, clip(x, 1 - clip_low, 1 + clip_high) A) - kl_coef KL + entropy_coef H ]
        x = pi_theta / pi_old in an initial row,  x = pi_theta / (pi_theta + gamma) in a refined one, or as `ratios` has

    with `w` from `token_weights`. One initial row of one token, `pi_theta = pi_old`, A = 0.5, `max_length=1`: -0.5.

    Args:
      logp_BT: `[B, T]` log-probabilities (nats) under `pi_theta`, each row given the original prompt alone.
      old_logp_BT: `[B, T]` log-probabilities under the policy that sampled; of refined rows for "importance" alone.
      advantage_B: `[B]` advantage of each row.
      mask_BT: `[B, T]` float (0 or 1) or bool. Where it is 0 the other arrays may hold anything finite.
      refined_B: `[B]` bool, the rows that are refinements.
      initial_ratio: of the initial rows, a name of `ratios.INITIAL_RATIOS`.
      refined_ratio: of the refined rows, a name of `ratios.REFINED_RATIOS`.
      gamma: shaping constant of the refined rows.
      clip_low: ratios are clipped below at `1 - clip_low`.
      clip_high: ratios are clipped above at `1 + clip_high`, which a shaped ratio never reaches.
      clip_initial: clip the initial rows (the paper's equations do, its released code does not).
      clip_refined: clip the refined rows (likewise). Off: it takes all gradient from a wrong refinement's tokens of
        `pi < gamma (1 - clip_low) / clip_low`, which the paper wants to penalise (appendix F.2).
      aggregate: see `token_weights`, as are the counts.
      max_length: `max_response_length`, tokens.
      num_rows: rows of the whole minibatch.
      num_tokens: unmasked tokens of the whole minibatch.
      num_questions: questions of the whole minibatch.
      num_responses: initial responses a question.
      num_refinements: kept refinements a question.
      ref_logp_BT: `[B, T]` log-probabilities under the reference; needed when `kl_coef` is not 0.
      kl_coef: coefficient of the KL penalty, a Python number.
      kl: its estimator, a name of `KL_ESTIMATORS`.
      entropy_BT: `[B, T]` entropy (nats) of `pi_theta` at each token; needed when `entropy_coef` is not 0.
      entropy_coef: coefficient of the entropy bonus, a Python number. Its scale is that of `aggregate`: with "constant"
        a row's bonus is `entropy_coef` times its entropies' sum over `max_length`, with "token_mean" their mean.
      sampler_logp_BT: `[B, T]` log-probabilities in the sampler, where `old_logp_BT` is the trainer's; needed when
        `tis_cap` is not 0.
      tis_cap: at most this is the weight of what initial rows add, for what the sampler did otherwise; 0 for none,
        whatever `sampler_logp_BT` is.
      tis_level: which weight, a name of `ratios.SAMPLER_WEIGHTS`.

    Returns:
      The loss, and statistics that are sums over tokens, so that microbatches and hosts simply add: for `initial` and
      `refined`, `/tokens`, `/ratio_sum`, `/clip_low` and `/clip_high` (tokens whose gradient the clip removed,
      of "cispo" tokens whose weight the cap lowered);
      `logp_difference_sum` (`|logp - old_logp|`, initial tokens); `refined/prob_sum`; with their inputs also
      `kl_sum` (all tokens) and `initial/entropy_sum`, `refined/entropy_sum`.

    Raises:
      UserError: `aggregate`, a ratio, `kl` or `tis_level` is unknown.
      ValueError: an input that a non-zero coefficient or the aggregation needs is missing.
    """
    _check_shapes(
        logp_BT=(logp_BT, ("B", "T")), old_logp_BT=(old_logp_BT, ("B", "T")), mask_BT=(mask_BT, ("B", "T")),
        advantage_B=(advantage_B, ("B",)), refined_B=(refined_B, ("B",)),
    )  # fmt: skip
    _check_given("kl_coef", kl_coef, "ref_logp_BT", ref_logp_BT)
    _check_given("entropy_coef", entropy_coef, "entropy_BT", entropy_BT)
    _check_given("tis_cap", tis_cap, "sampler_logp_BT", sampler_logp_BT)
    initial_of = _named("initial_ratio", initial_ratio, INITIAL_RATIOS)
    refined_of = _named("refined_ratio", refined_ratio, REFINED_RATIOS)
    estimate_kl = _named("kl", kl, KL_ESTIMATORS)
    weigh = _named("tis_level", tis_level, SAMPLER_WEIGHTS)

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
    # gradient. A masked entry has ratio 1; in a row of the other kind, where old_logp is 0, the unused ratio is pi.
    logp_BT = jnp.where(mask_BT, logp_BT, 0.0)
    initial_old_BT = jnp.where(initial_BT, old_logp_BT, 0.0)
    refined_old_BT = jnp.where(refined_BT, old_logp_BT, 0.0)
    bounds = Bounds(clip_low, clip_high, clip_initial, gamma)
    refined_bounds = bounds._replace(clip=clip_refined)
    ratio_BT, initial_term_BT = initial_of(logp_BT, initial_old_BT, advantage_BT, initial_BT, bounds)
    weighed_BT, refined_term_BT = refined_of(logp_BT, refined_old_BT, advantage_BT, refined_BT, refined_bounds)
    if tis_cap and sampler_logp_BT is not None:
        sampler_BT = jnp.where(initial_BT, sampler_logp_BT, 0.0)
        initial_term_BT = weigh(initial_old_BT, sampler_BT, initial_BT, tis_cap) * initial_term_BT
    loss = -jnp.sum(weight_BT * jnp.where(refined_B[:, None], refined_term_BT, initial_term_BT))

    stats = {
        **_ratio_stats("initial", ratio_BT, advantage_BT, initial_BT, bounds, capped=initial_ratio == "cispo"),
        **_ratio_stats("refined", weighed_BT, advantage_BT, refined_BT, refined_bounds),
        "refined/prob_sum": _masked_sum(jnp.exp(logp_BT), refined_BT),
        "logp_difference_sum": _masked_sum(jnp.abs(logp_BT - initial_old_BT), initial_BT),
    }
    if ref_logp_BT is not None:
        kl_BT = estimate_kl(logp_BT, jnp.where(mask_BT, ref_logp_BT, 0.0))
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
    name: str, ratio_BT: jax.Array, advantage_BT: jax.Array, mask_BT: jax.Array, bounds: Bounds, *, capped: bool = False
) -> dict[str, jax.Array]:
    """Sums over the tokens of one kind of row; the clip counts are 0 when that kind is not clipped.

    A weight that is `capped` (CISPO) has no lower bound, and its upper one holds whatever the advantage's sign.
    """
    low_BT = mask_BT & bounds.clip & (not capped) & (ratio_BT < 1 - bounds.low) & (advantage_BT < 0)
    high_BT = mask_BT & bounds.clip & (ratio_BT > 1 + bounds.high) & (capped | (advantage_BT > 0))
    return {
        f"{name}/tokens": mask_BT.astype(float).sum(),
        f"{name}/ratio_sum": _masked_sum(ratio_BT, mask_BT),
        f"{name}/clip_low": low_BT.astype(float).sum(),
        f"{name}/clip_high": high_BT.astype(float).sum(),
    }


def _named(what: str, name: str, known: Mapping[str, Callable]) -> Callable:
    """Returns the function of a name."""
    if name not in known:
        raise UserError(f"{what}={name!r} is unknown; use one of {', '.join(known)}.")
    return known[name]


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
