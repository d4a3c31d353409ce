"""What a run reports: an iteration's row of metrics, put together here; a summary at the end."""

import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tqdm

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.inference.orchestrator import Status
from cgrpo_jax.records import LossKind, Stage
from cgrpo_jax.rollout import reward_of
from cgrpo_jax.runs import best_checkpoint, critic_metrics, metrics
from cgrpo_jax.runs.initial_state import Progress
from cgrpo_jax.runs.iteration import Iteration
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console, processes
from cgrpo_jax.training import flops
from cgrpo_jax.training.learner import Learner


def stage_bar(doing: str) -> tqdm.tqdm:
    """Returns a bar that has only what `show` writes beside it, such as "evaluating"."""
    return console.progress_bar(desc=doing, leave=False, bar_format="{desc} [{elapsed}{postfix}]")


def show(bar: tqdm.tqdm, progress: Status) -> None:
    """Shows beside a progress bar how far an iteration's texts are, as seldom as the bar itself is drawn."""
    now = time.monotonic()
    if bar.disable:  # then it does not even have an interval
        return
    if now - getattr(bar, "shown_at", -math.inf) < bar.mininterval:
        return
    bar.shown_at = now  # pyright: ignore[reportAttributeAccessIssue] - a time of our own, kept with the bar
    waiting = "+".join(str(progress.waiting.get(stage, 0)) for stage in Stage)
    speed = progress.tokens / progress.seconds if progress.seconds else 0
    bar.set_postfix_str(
        f"{progress.done}/{progress.total} questions, {progress.live}/{progress.slots} slots, {waiting} waiting, "
        f"{speed:.0f} tok/s"
    )


def bar_text(row: Mapping[str, float]) -> str:
    """Returns what is shown beside the progress bar after an iteration."""
    parts = [f"reward {row['reward']:.2f}", f"all wrong {row['frac_all_wrong']:.2f}"]
    if "refine/questions_rescued" in row:
        parts.append(f"rescued {row['refine/questions_rescued']:.2f}")
    if "tokens_per_second/rollout" in row:
        parts.append(f"{row['tokens_per_second/rollout']:.0f} tok/s")
    return ", ".join(parts)


def untrained(done: Iteration, row: Mapping[str, float]) -> str:
    """Returns what is said of the first iteration that trains nothing, of it and its metrics."""
    rows = [one for group in done.rows for one in group]
    if rows and all(one.loss == LossKind.DISTIL and one.feedback_ids is None for one in rows):
        return (
            f"iteration {done.number} trained nothing, for no response has a critique that a teacher could see, by "
            "distil.which (said once)"
        )
    with_one = [
        (one, done.is_capped(q, place))
        for q, group in enumerate(done.rows)
        for place, one in enumerate(group)
        if one.advantage
    ]
    if not with_one:
        return (
            f"iteration {done.number} trained nothing, for no row has an advantage: all responses are wrong in "
            f"{row['frac_all_wrong']:.0%} of the groups, all right in {row['frac_all_right']:.0%} (said once)"
        )
    cut = sum(one.masked for one, _ in with_one)
    capped = sum(capped and not one.masked for one, capped in with_one)
    return (
        f"iteration {done.number} trained nothing: of {len(with_one)} rows with an advantage {cut} were cut off "
        f"(objective.mask_truncated) and {capped} are beyond objective.tis_cap (said once)"
    )


def metrics_row(done: Iteration, settings: RunSettings, *, adapters: bool) -> dict[str, float]:
    """Returns an iteration's metrics that do not depend on the clock; `metrics.METRICS` says what each means.

    Args:
      done: the iteration.
      settings: of the run.
      adapters: whether adapters are trained, or all weights.
    """
    pass_threshold = settings.method.pass_threshold
    row = metrics.response_metrics(done.answers, pass_threshold=pass_threshold)
    row |= metrics.reward_metrics(done.answers, gate=settings.grader)
    cut = done.counts["verdict_prompts_cut"]
    row |= metrics.verdict_metrics(done.verdicts, done.verdict_problems, cut=cut)
    if settings.batch.max_extra:  # further questions are drawn for those that teach nothing
        row |= metrics.batch_metrics(done.rows, num_extra=done.num_extra)
    if settings.method.refine != "none":
        row |= metrics.refinement_metrics(done.refinements, done.kept, pass_threshold=pass_threshold)
        row["refine/prompts_cut"] = done.counts["refine_prompts_cut"]
        row["refine/dropped_mentions"] = done.dropped_mentions
    trained = [one for group in done.groups for one in group.rows]
    row["group_reward"] = sum(reward_of(one) for one in trained) / max(len(trained), 1)
    row |= metrics.critic_metrics(done.counts) | critic_metrics.learning_metrics(done.critic_updates)
    row |= metrics.engine_metrics(done.generated.engines)
    stats = done.updates.stats
    row |= metrics.update_metrics(stats)
    if "distil/tokens" in row:
        row["distil/prompts_cut"] = done.counts["feedback_prompts_cut"]
    return row | metrics.update_work(stats, settings.policy, adapters=adapters)


def stopped(signal: str, iteration: int | None) -> str:
    """Returns what is said where a signal ends a run after so many iterations; None: before it has begun."""
    if iteration is None:
        return f"stopped by {signal} before the first iteration; the same command starts it again"
    return f"stopped by {signal} after iteration {iteration}; the same command resumes it"


def gave_up(learner: Learner, where: pathlib.Path, iteration: int) -> str:
    """Returns what is said where a run ends because updates were skipped, whose last rows are in a file."""
    return (
        f"the gradient was not finite in {learner.skipped_in_a_row} updates in a row, which were skipped "
        f"(optimizer.max_nonfinite_updates {learner.settings.max_nonfinite_updates}); the last one's rows are "
        f"in {where}. The same command resumes after iteration {iteration}."
    )


def clocked_row(done: Iteration, row: Mapping[str, float], *, clock: console.Clock, devices: np.ndarray) -> dict:
    """Returns an iteration's seconds and speeds, and what was counted besides its rollouts.

    Args:
      done: the iteration.
      row: its `metrics_row`.
      clock: has timed its stages, and starts again.
      devices: that computed them.
    """
    generated = done.generated
    sampled = sum(stats.tokens for stats in generated.engines)
    clocked = clock.take({"rollout": sampled, "update": row["tokens_trained"]})
    clocked |= {"grade/timeouts": generated.timeouts, "grade/failures": generated.failures, **generated.endpoints}
    clocked |= done.updates.sampling
    return clocked | metrics.update_speed(
        row["update/model_flops"],
        clocked["time/update"],
        num_devices=devices.size,
        peak=flops.peak_flops(devices.flat[0]),
    )


def summary(
    progress: Progress,
    *,
    updates: int,
    after: dict | None,
    solved_after: Sequence[bool | None] | None,
    questions: int = 0,
) -> dict:
    """Returns the summary of a run: held-out accuracy before, after and at its best checkpoint, tokens, seconds.

    `unsolved_before` counts the held-out questions of which no text of the first weights passes, and all have a
    verdict; `unsolved_before_solved_after` is the share of these that the final weights solve, of those of which that
    is known. Either is None where there is nothing to count. `task` is a made-up task with its version, or None.

    Args:
      progress: of the run.
      updates: by the policy's optimiser; those of a critic that learns are not counted, of shared weights either.
      after: held-out metrics of the final weights.
      solved_after: `benchmark.solved` of the final weights.
      questions: held out, which these numbers are of.
    """
    unsolved = progress.unsolved_before
    solved = [] if solved_after is None else [solved_after[q] for q in unsolved or ()]
    known = [one for one in solved if one is not None]
    return {
        "eval_before": progress.eval_before,
        "eval_after": after,
        "eval_questions": questions,
        "best": progress.best,
        "unsolved_before": None if unsolved is None else len(unsolved),
        "unsolved_before_solved_after": sum(known) / len(known) if known else None,
        "all_failed_start": progress.all_failed_start,
        "updates": updates,
        "iterations": progress.iteration,
        "num_tokens": progress.num_tokens,
        "seconds": progress.seconds,
        "num_compilations": processes.compilations(),
        "task": progress.inputs.get(fingerprints.TASK),
    }


def table(summary: Mapping, *, tokens: str = "generated") -> str:
    """Returns a summary as the short table that a run ends with; `tokens` says what its number of tokens is of."""
    lines = [f"{summary['updates']} updates, {summary['num_tokens']} tokens {tokens}, {summary['seconds']:.0f} s"]
    before, after = summary["eval_before"], summary["eval_after"]
    if after:
        lines += ["", f"{'held-out':<12}{'before':>8}{'after':>8}"]
        shown = [name for name in after if name.startswith("pass") or name == best_checkpoint.LOSS]
        lines += [f"{name:<12}{before[name]:>8.3f}{after[name]:>8.3f}" for name in shown]
        lines.append("")
    if best := summary["best"]:
        lines.append(f"best {best['metric']}: {best['value']:.3f}, checkpoint {best['step']}, kept (--step=best)")
    if summary["unsolved_before_solved_after"] is not None:
        lines.append(
            f"{summary['unsolved_before']} held-out questions were unsolved before; "
            f"{summary['unsolved_before_solved_after']:.0%} of them are solved now"
        )
    return "\n".join(lines) + "\n"
