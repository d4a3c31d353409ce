"""What `finetune` reports of an update: `METRICS`, and of `metrics.METRICS` what is said of updates and their speed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import TrainRow
from cgrpo_jax.runs import metrics
from cgrpo_jax.runtime import console
from cgrpo_jax.training import flops, row_losses
from cgrpo_jax.training.learner import Updates
from cgrpo_jax.training.train_step import num_counted

METRICS = {
    "loss": "of the update, before it: nats a target (nll), half the mean square of what is left (rco), a pair (dpo)",
    "epoch": "passes over the rows so far",
    "rows_trained": "rows of the update",
    "tokens_trained": "targets of these rows that the loss counts",
    "num_tokens": "these since the start",
    "rewards/chosen": "dpo: mean of beta times the log-ratio to the reference over chosen rows",
    "rewards/rejected": "dpo: the same over rejected rows",
    "rewards/margins": "dpo: the difference of both",
    "rewards/accuracies": "dpo: share of the pairs whose chosen row has the larger one",
    "rco/log_ratio": "rco: mean log-ratio (nats) of critiques to the reference",
    "rco/residual": "rco: mean absolute difference (nats) between these and CU/beta - log Z",
    "eval/NAME": "every eval.every: of held-out rows the loss and what goes with it, of held-out questions pass@k ...",
}
_LOSSES = ("nll_loss", "rco_loss", "dpo_loss")  # of which rows of one kind have one


def metrics_row(
    batch: Sequence[Sequence[TrainRow]], updates: Updates, model: ModelConfig, *, adapters: bool
) -> dict[str, float]:
    """Returns the metrics of an update that do not depend on the clock.

    Args:
      batch: the rows of each of its units.
      updates: what it counted.
      model: the model's shape.
      adapters: whether adapters are trained, or all weights.
    """
    (stats,), rows = updates.stats, [row for unit in batch for row in unit]
    skipped = not math.isfinite(stats["grad_norm"])
    row = {"skipped_updates": int(skipped), "rows_trained": 0, "tokens_trained": 0}
    if not skipped:
        row |= {"rows_trained": len(rows), "tokens_trained": sum(map(num_counted, rows))}
        row |= {"loss": sum(stats[name] for name in _LOSSES), "grad_norm": stats["grad_norm"]}
        row |= row_losses.means(stats, rows)
    return row | metrics.update_work(updates.stats, model, adapters=adapters)


def clocked_row(row: Mapping[str, float], *, clock: console.Clock, devices: np.ndarray) -> dict[str, float]:
    """Returns the seconds and speeds of an update whose `metrics_row` is `row`, timed by a clock, on some devices."""
    clocked = clock.take({"update": row["tokens_trained"]})
    return clocked | metrics.update_speed(
        row["update/model_flops"],
        clocked["time/update"],
        num_devices=devices.size,
        peak=flops.peak_flops(devices.flat[0]),
    )
