"""The numbers of a critic that learns; `metrics.METRICS` says what each means."""

import collections
import math

from cgrpo_jax.records import LossKind
from cgrpo_jax.runs.iteration import CriticUpdates
from cgrpo_jax.training import critic_rows


def learning_metrics(done: CriticUpdates | None) -> dict[str, float]:
    """Returns what critiques achieved, and what a critic's updates counted; empty where none learns.

    Updates that were skipped are counted and otherwise left out.
    """
    if done is None:
        return {}
    found = dict(critic_rows.metrics(done.critiques))
    stats = [one for one in done.updates.stats if math.isfinite(one["grad_norm"])]
    found["critic/skipped_updates"] = len(done.updates.stats) - len(stats)
    found["critic/rows_trained"] = sum(one["rows_trained"] for one in stats)
    found["critic/learning_rate"] = done.learning_rate
    if stats:
        total: collections.Counter = collections.Counter()
        for one in stats:
            total.update(one)
        found["critic/loss"] = (total["policy_loss"] + total["rco_loss"]) / len(stats)
        found["critic/grad_norm"] = total["grad_norm"] / len(stats)
        found |= _moved(stats[-1], done)
    return found


def _moved(stats: dict[str, float], done: CriticUpdates) -> dict[str, float]:
    """Returns how far the critic was from the one that wrote, before an update; empty where no row had a loss."""
    rows = [row for group in done.critiques.rows for row in group]
    if not stats["rows_trained"]:
        return {}
    of_rco = rows[0].loss == LossKind.RCO
    # Of p's own critiques the mean of -log(critic / p) is KL(p || critic); the other loss has k3 of each token.
    total = -stats["rco/log_ratio_sum"] if of_rco else stats["kl_sum"]
    return {"critic/kl": total / stats["rows_trained"]}
