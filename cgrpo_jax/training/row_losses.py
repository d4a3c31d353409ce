"""Losses of whole rows, as functions of log-probabilities: RCO (arXiv 2506.22157) and DPO (arXiv 2305.18290).

Both compare the sum of a row's log-probabilities with that under a reference, here the weights that training began
with; no length divides it. Pure functions of arrays, which can be jitted.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax.records import Array, LossKind, TrainRow

_OF_PAIRS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies")  # TRL's names


def rco_targets(utilities: Sequence[Sequence[float]], *, beta: float) -> list[np.ndarray]:
    """What the log-ratio of each critique is to be: `v_i = CU_i / beta - log Z`, with

        log Z = log (1/N) sum_j exp(CU_j / beta)

    over the N critiques of one response (RCO, arXiv 2506.22157): the optimum of `E[CU] - beta KL(p_theta || p)` is
    `p exp(CU / beta) / Z`. Exactly 0 where all utilities of a group are equal.

    Args:
      utilities: of each group, the utilities of its critiques, from 0 to 1.
      beta: strength of the KL term, above 0.

    Returns:
      `[N]` float64 (nats) of each group.

    Example:
      >>> [v.round(3).tolist() for v in rco_targets([[1.0, 0.0], [0.5, 0.5]], beta=1.0)]
      [[0.38, -0.62], [0.0, 0.0]]
    """
    found = []
    for group in utilities:
        scaled = np.asarray(group, np.float64) / beta
        above = scaled - scaled.max()  # log Z is counted from the largest: exp overflows at 710 nats
        found.append(above - np.log(np.exp(above).mean()))
    return found


def rco_loss(
    logp_BT: Array, ref_logp_BT: Array, target_B: Array, rco_B: Array, mask_BT: Array, *, num_rows: float | Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the mean square of what is left to the targets of `rco_targets`, one term a row (RCO, arXiv 2506.22157):

        L = 1/(2 num_rows) sum_b (sum_t mask_bt (logp_bt - ref_logp_bt) - v_b)^2

    Where `logp = ref_logp` its gradient is that of REINFORCE with advantage v.

        logp_BT = [[-1, -2], [-4, 0]], ref_logp_BT = [[-2, -2], [-4, 0]], v = [0, 2], num_rows = 2  ->  5/4

    Args:
      logp_BT: `[B, T]` log-probabilities (nats) of the targets.
      ref_logp_BT: likewise, under the reference.
      target_B: `[B]` v, in nats.
      rco_B: `[B]` bool, the rows of this loss; the others may hold anything finite.
      mask_BT: `[B, T]` bool, the targets that count.
      num_rows: those of this loss in the whole minibatch, so that microbatches add up.

    Returns:
      (loss; sums over its rows: `rco/log_ratio_sum`, and `rco/residual_sum` of the absolute value of what is left)
    """
    log_ratio_B = _log_ratio(logp_BT, ref_logp_BT, mask_BT)
    left_B = jnp.where(rco_B, log_ratio_B - target_B, 0.0)
    stats = {
        "rco/log_ratio_sum": jnp.sum(jnp.where(rco_B, log_ratio_B, 0.0)),
        "rco/residual_sum": jnp.sum(jnp.abs(left_B)),
    }
    return jnp.sum(left_B**2) / (2 * num_rows), stats


def dpo_loss(
    logp_BT: Array,
    ref_logp_BT: Array,
    weight_B: Array,
    pair_B: Array,
    mask_BT: Array,
    *,
    beta: float,
    num_pairs: float | Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The negative log-likelihood of preferring the chosen row of each pair (DPO, arXiv 2305.18290, Eq. 7):

        L = - 1/num_pairs sum_p w_p log sigmoid(beta (d_chosen - d_rejected)),  d = sum_t mask_t (logp_t - ref_logp_t)

        logp_BT = [[-1], [-3]], ref_logp_BT = [[-2], [-2]], pair_B = [1, -1], w = 1, beta = 0.5, num_pairs = 1
        ->  log(1 + exp(-1)) = 0.313

    Args:
      logp_BT, ref_logp_BT, mask_BT: as for `rco_loss`.
      weight_B: `[B]` weight of each pair, which its chosen row has.
      pair_B: `[B]` int, +p of the chosen and -p of the rejected row of pair p, from 1 to B; 0 for other rows.
      beta: strength of the KL term.
      num_pairs: those of the whole minibatch.

    Returns:
      (loss; sums over its pairs, by names of TRL's metrics: `rewards/chosen_sum` and `rewards/rejected_sum` of beta d,
      and `rewards/accuracies_sum`, pairs whose chosen row has the larger one)
    """
    side_B, number_B = jnp.sign(pair_B), jnp.abs(pair_B)
    reward_B = beta * _log_ratio(logp_BT, ref_logp_BT, mask_BT)

    def by_pair(value_B: jax.Array) -> jax.Array:
        """Sums over the rows of each pair; at 0 over those of none, which have side 0."""
        return jax.ops.segment_sum(value_B, number_B, num_segments=pair_B.shape[0] + 1)

    chosen_B = side_B > 0
    margin_P = by_pair(side_B * reward_B)
    weight_P = by_pair(jnp.where(chosen_B, weight_B, 0.0))
    stats = {
        "rewards/chosen_sum": jnp.sum(jnp.where(chosen_B, reward_B, 0.0)),
        "rewards/rejected_sum": jnp.sum(jnp.where(side_B < 0, reward_B, 0.0)),
        "rewards/accuracies_sum": jnp.sum(((margin_P > 0) & (by_pair(jnp.abs(side_B)) > 0)).astype(float)),
    }
    return -jnp.sum(weight_P * jax.nn.log_sigmoid(margin_P)) / num_pairs, stats


def _log_ratio(logp_BT: Array, ref_logp_BT: Array, mask_BT: Array) -> jax.Array:
    """Returns `[B]` the log of each row's probability over that under the reference; 0 without a target."""
    return jnp.sum(jnp.where(mask_BT, jnp.asarray(logp_BT) - ref_logp_BT, 0.0), axis=1)


def measured(
    rows: Sequence[TrainRow], logps: Sequence[np.ndarray], references: Sequence[np.ndarray] | None, *, beta: float
) -> dict[str, float]:
    """Returns the loss of rows of one kind, as an update of them all would have it, and what goes with it.

    Args:
      rows: of nll, of rco, or both rows of each dpo pair, whose numbers are from 1 on.
      logps: `[T]` log-probabilities (nats) of each row's targets.
      references: likewise, under the reference; None where no loss needs it.
      beta: as for `dpo_loss`.

    Returns:
      `loss`; of pairs also `rewards/chosen`, `rewards/rejected`, `rewards/margins` and `rewards/accuracies`; of rco
      `rco/log_ratio` and `rco/residual`, means over rows
    """
    counted = [
        np.ones(len(logp), bool) if row.counted is None else row.counted for row, logp in zip(rows, logps, strict=True)
    ]
    sums = np.array([logp[mask].sum(dtype=np.float64) for logp, mask in zip(logps, counted, strict=True)])
    weight_B = np.array([row.advantage for row in rows], np.float32)
    if rows[0].loss == LossKind.NLL:
        return {"loss": float(-(weight_B * sums).sum() / sum(mask.sum() for mask in counted))}
    assert references is not None, "rco and dpo compare with a reference"
    of_reference = [logp[mask].sum(dtype=np.float64) for logp, mask in zip(references, counted, strict=True)]
    # The whole row as one target: both losses are of sums alone.
    log_ratio_B1, zero_B1 = (
        (sums - np.array(of_reference))[:, None].astype(np.float32),
        np.zeros((len(rows), 1), np.float32),
    )
    one_B1 = np.ones((len(rows), 1), bool)
    if rows[0].loss == LossKind.RCO:
        rco_B = np.ones(len(rows), bool)
        loss, stats = rco_loss(log_ratio_B1, zero_B1, weight_B, rco_B, one_B1, num_rows=len(rows))
    else:
        pair_B = np.array([row.pair for row in rows], np.int32)
        loss, stats = dpo_loss(
            log_ratio_B1, zero_B1, weight_B, pair_B, one_B1, beta=beta, num_pairs=int((pair_B > 0).sum())
        )
    return {"loss": float(loss)} | means({name: float(value) for name, value in stats.items()}, rows)


def means(stats: Mapping[str, float], rows: Sequence[TrainRow]) -> dict[str, float]:
    """Returns the means of what `rco_loss` and `dpo_loss` have summed over rows, or pairs, by the names of metrics."""
    pairs, of_rco = sum(row.pair > 0 for row in rows), sum(row.loss == LossKind.RCO for row in rows)
    if of_rco:
        return {name: stats[f"{name}_sum"] / of_rco for name in ("rco/log_ratio", "rco/residual")}
    if not pairs:
        return {}
    found = {name: stats[f"{name}_sum"] / pairs for name in _OF_PAIRS}
    return found | {"rewards/margins": found["rewards/chosen"] - found["rewards/rejected"]}
