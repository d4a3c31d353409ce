"""How far what samples is from what trains: numbers of the rows whose log-probabilities both have computed."""

from collections.abc import Sequence

import numpy as np

from cgrpo_jax.ratios import LARGEST_LOG_RATIO
from cgrpo_jax.records import TrainRow

PREFIX = "sampling/"


def measure(rows: Sequence[TrainRow], logps: Sequence[np.ndarray], *, cap: float, level: str) -> dict[str, float]:
    """Returns metrics of the tokens of initial rows; empty without any.

    A refinement is left out: it was sampled after another prompt than it trains after.

    Args:
      rows: with the sampler's log-probabilities as `old_logp`.
      logps: of each row those of the trainer, of the same weights.
      cap: `objective.tis_cap`; 0 for none.
      level: `objective.tis_level`.

    Returns:
      `sampling_logp_difference/mean` and `/max`, `|log pi_trainer - log pi_sampler|` (nats) of a token;
      `importance_sampling_ratio/min`, `/mean` and `/max` of w = pi_trainer / pi_sampler, of tokens or, with
      `sequence_mask`, of rows; `effective_sample_size`, `(sum w)^2 / (n sum w^2)`; with a cap `frac_capped`, the share
      of w above it. All names begin with `sampling/`.

    Example:
      w of 1 and 3 have a mean of 2 and an effective size of 16 / 20 = 0.8.
    """
    initial = [(row, logp) for row, logp in zip(rows, logps, strict=True) if not row.refined]
    if not initial:
        return {}
    gaps = [np.asarray(logp - row.old_logp, np.float64) for row, logp in initial]
    gap = np.concatenate(gaps)
    logs = np.array([one.sum() for one in gaps]) if level == "sequence_mask" else gap
    ratio = np.exp(np.minimum(logs, LARGEST_LOG_RATIO))
    found = {
        "sampling_logp_difference/mean": np.abs(gap).mean(),
        "sampling_logp_difference/max": np.abs(gap).max(),
        "importance_sampling_ratio/min": ratio.min(),
        "importance_sampling_ratio/mean": ratio.mean(),
        "importance_sampling_ratio/max": ratio.max(),
        "effective_sample_size": ratio.sum() ** 2 / (len(ratio) * np.square(ratio).sum()),
    }
    if cap:
        found["frac_capped"] = (ratio > cap).mean()
    return {f"{PREFIX}{name}": float(value) for name, value in found.items()}
