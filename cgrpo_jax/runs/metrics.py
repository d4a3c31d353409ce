"""What each metric of a run means (`METRICS`; names are TRL's where TRL has the quantity), and most of their numbers.

`log.metrics_row`, `log.clocked_row` and `Run` in train.py put an iteration's row together, and add the rest.
"""

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cgrpo_jax.critiques.texts import mentions_critique
from cgrpo_jax.groups import teaches
from cgrpo_jax.inference.engine_stats import Stats
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import Problem, Rollout, Stage, TrainRow
from cgrpo_jax.rewards.user_functions import short_name
from cgrpo_jax.rollout import reward_of
from cgrpo_jax.training import flops

METRICS = {
    "reward": "mean reward of the initial responses",
    "reward_std": "mean over the questions of the standard deviation of their initial rewards",
    "rewards/NAME/mean": "mean of each of rewards over the initial responses, by the name of its function, null ones "
    "left out (only with several)",
    "rewards/NAME/std": "their standard deviation",
    "frac_reward_zero_std": "share of the questions whose initial rewards are all equal: plain GRPO learns nothing",
    "frac_all_right": "share of the questions of which all initial responses pass",
    "frac_all_wrong": "share of the questions of which none passes: where refinement helps",
    "group_reward": "mean reward of the rows that train, kept refinements included",
    "batch/extra_questions": "questions drawn beyond the batch, in the place of others whose group has no gradient "
    "(as the next one only with max_extra_questions > 0)",
    "batch/frac_with_gradient": "share of the batch's groups of which a row has an advantage, or a teacher, and is not "
    "masked",
    "verdicts/reward": "share of the answers to verdict problems that judge rightly (as the next ones only with "
    "verdict_share > 0; all other metrics of responses leave these answers out); a share of none is left out",
    "verdicts/malformed_rate": "share of them without a readable verdict",
    "verdicts/frac_right": "share of the verdict problems whose response is right: what always to say so would reach",
    "verdicts/prompts_cut": "verdict problems in which the response was cut in its middle",
    "loss": "the objective's negative; its value says little (advantages sum to about 0), its gradient is what trains",
    "grad_norm": "global norm of the gradient before clipping",
    "skipped_updates": "updates that changed nothing, because their gradient was not finite; what is said of losses, "
    "ratios and trained tokens is of the others",
    "learning_rate": "of the last update",
    "entropy": "mean entropy (nats) of the policy at the trained tokens of initial responses",
    "refined/entropy": "the same at the tokens of kept refinements, given the question alone",
    "refined/prob": "mean pi_theta of the kept refinements' tokens, given the question alone",
    "ratio": "mean pi_theta / pi_old over initial tokens; with objective.initial_ratio sequence, of their rows",
    "refined/shaped_ratio": "mean ratio of refined tokens, by objective.refined_ratio: pi_theta / (pi_theta + gamma)",
    "clip_ratio/low_mean": "share of initial tokens whose ratio is clipped from below",
    "clip_ratio/high_mean": "share of initial tokens whose ratio is clipped from above (cispo: whose weight is capped)",
    "refined/clip_ratio/low_mean": "share of refined tokens whose shaped ratio is clipped from below",
    "refined/clip_ratio/high_mean": "share of refined tokens whose shaped ratio is clipped from above",
    "refined/frac_tokens": "share of the trained tokens that belong to refinements",
    "kl": "mean estimate of KL(pi_theta || pi_ref) per token, by objective.kl (only with objective.kl_coef > 0)",
    "distil/divergence": "mean divergence (nats) of the policy from its teacher, a token, before the updates (only "
    "with distil.kind); of fresh texts that fail, so that it falls less than that of any row it learns from",
    "distil/rest": "mean probability of all but the distil.top_tokens tokens that they are compared by",
    "distil/tokens": "tokens that a teacher scored and that trained",
    "distil/prompts_cut": "prompts of teachers in which the response, or also the critique, was cut in its middle",
    "distil/loss": "the term of distillation, which loss leaves out",
    "sampling/sampling_logp_difference/mean": "mean |log pi_sampler - log pi_trainer| (nats) of the same weights over "
    "the initial tokens that train in an iteration's first update (objective.old_logp trainer: over all of them)",
    "sampling/sampling_logp_difference/max": "the greatest of these; as the next ones only where the trainer scores "
    "before the update (objective.old_logp trainer, objective.tis_cap > 0)",
    "sampling/importance_sampling_ratio/min": "least pi_trainer / pi_sampler of an initial token, of the same weights "
    "(objective.tis_level sequence_mask: of a response)",
    "sampling/importance_sampling_ratio/mean": "the mean of these",
    "sampling/importance_sampling_ratio/max": "the greatest of these",
    "sampling/effective_sample_size": "(sum w)^2 / (n sum w^2) of these n ratios w: 1 where sampler and trainer agree",
    "sampling/frac_capped": "share of these above objective.tis_cap",
    "rows_trained": "rows that went through the update: not those of advantage 0 without a teacher, cut off (objective."
    "mask_truncated), or beyond objective.tis_cap (objective.tis_level sequence_mask), which have no gradient",
    "tokens_trained": "targets of these rows",
    "update/model_flops": "FLOPs that the iteration's updates need by the model's equations (`flops.of_update`): "
    "nothing for padding and recomputation, each prompt once",
    "update/flops_per_second": "these over time/update, of all devices together; scoring before an update (objective."
    "old_logp trainer, objective.kl_coef > 0) takes of its time and is not credited, nor is compiling, in the first "
    "iteration",
    "update/mfu": "the same as a share of the devices' published bfloat16 peak (only where that is known)",
    "update/packing": "share of the packed positions that hold a token",
    "completions/mean_length": "mean length (tokens) of the initial responses",
    "completions/mean_terminated_length": "the same over those that ended by themselves",
    "completions/clipped_ratio": "share of the initial responses that were cut off",
    "refine/attempted": "number of refinements sampled",
    "refine/success": "share of the refinements that pass (the paper's successful refinements); this and the other "
    "shares and means of refinements are left out where there are none",
    "refine/questions_rescued": "share of the questions with refined failures of which a refinement of one passes "
    "(questions refined)",
    "refine/mean_length": "mean length (tokens) of the refinements",
    "refine/mentions_critique": "share of the kept refinements that mention critique, hint or earlier attempt",
    "refine/prompts_cut": "refine prompts in which the response, or also the critique, was cut in its middle",
    "refine/dropped_mentions": "refinements dropped before selection because they mention the critique",
    "critic/valid": "share of the first cot critiques whose verdict agrees with the verifier (reward_source critic: "
    "whose verdict can be read), of those that a model wrote of responses whose grader has not failed",
    "critic/malformed_rate": "share of the first cot critiques without a readable verdict, or hints without a word",
    "critic/false_right_rate": "share of the failed responses with a readable first cot critique that it calls right",
    "critic/false_wrong_rate": "share of the passing responses with a readable first cot critique that it calls wrong",
    "critic/fallback_rate": "share of the critiques replaced by the indicative one after all retries, of hints by none",
    "critic/attempts": "critiques written by a model, retries included",
    "critic/unanswered": "critiques that an HTTP endpoint failed to write: after all attempts, or over its budget",
    "critic/http_requests": "critiques asked of an HTTP endpoint, those that its budget no longer allowed included",
    "critic/http_attempts": "how often the endpoint was asked for them",
    "critic/http_failed/CATEGORY": "those that failed for good, by why: timeout, unreachable, garbage, status 500, ...",
    "critic/prompts_cut": "critique prompts in which a response was cut in its middle",
    "critic/utility": "mean utility of the critiques: the worth of their refinements, 1 fixed, 0.5 as before, 0 broken "
    "(this and the next ones only with critic.train)",
    "critic/fix_rate": "share of the refinements of failed responses that pass; a share of none is left out",
    "critic/break_rate": "share of the refinements of passing responses that fail",
    "critic/verdict_accuracy": "share of the critiques whose verdict agrees with the verifier; unreadable ones do not",
    "critic/loss": "of the critic's updates, by critic.training.loss: policy_gradient's value says little",
    "critic/grad_norm": "global norm of their gradient before clipping",
    "critic/kl": "estimate (nats a critique) of KL(p || critic), p the critic that wrote them, before the last update",
    "critic/rows_trained": "critiques that went through its updates, each as often as it did",
    "critic/skipped_updates": "of its updates, as skipped_updates",
    "critic/learning_rate": "of its last update",
    "grade/timeouts": "rows whose grading ran into its time limit (reward 0)",
    "grade/failures": "rows without a verdict, because their grader failed, or (reward_source critic) their critic's "
    "endpoint gave no answer: they are neither trained nor refined (of several rewards, also null ones)",
    "judge/http_requests": "replies asked of the judge's endpoint, further attempts at unreadable ones included",
    "judge/http_attempts": "how often the endpoint was asked for them",
    "judge/http_failed/CATEGORY": "those that failed for good, by why, as critic/http_failed/CATEGORY",
    "judge/unreadable": "replies of the judge that could not be read; asked for again up to judge.max_retries times",
    "judge/spread": "mean over the judged items of the standard deviation of their judgements, 0 to 0.5 (only with "
    "judge.num_judgements > 1)",
    "judge/calls_run": "calls of responses' programs that were run for the judge (only with judge.evidence)",
    "rollouts/bytes": "of the newest file in rollouts/ before this iteration's",
    "num_tokens": "tokens generated since the start, by all stages",
    "num_compilations": "programs compiled since the start of the process",
    "step_time": "seconds of the whole iteration",
    "eval/NAME": "held-out metrics of the weights after this iteration, every `eval.every`: pass@k, mean@n, ...",
    "time/STAGE": "seconds of one stage: reshard, rollout (respond, critique and refine at once), update, and "
    "critic_update of a critic that learns; of the rollout, grade is what was spent waiting for grades alone; and "
    "warm_start, compile, evaluate where they ran just before",
    "tokens_per_second/STAGE": "tokens sampled (update: tokens trained) by it each second",
    "engine/occupancy": "share of the slots' decoding steps that sampled a token, while requests waited for a slot",
    "engine/prompt_tokens": "prompt tokens prefilled",
    "engine/shared_tokens": "prompt tokens that were copied from another slot instead",
    "engine/set_back": "texts that gave up their pages to older ones and were written on later (0 with a contiguous "
    "cache)",
    "engine/reentered_tokens": "tokens of these that were prefilled again",
}


def _mean(values) -> float:
    values = np.asarray(list(values), np.float64)
    return float(values.mean()) if values.size else 0.0


def response_metrics(responses: Sequence[Sequence[Rollout]], *, pass_threshold: float) -> dict[str, float]:
    """Metrics of the initial responses; of rewards, of those with a verdict."""
    rewards = [np.array([reward_of(row) for row in group if not row.ungraded]) for group in responses]
    rewards = [r for r in rewards if r.size]
    rows = [row for group in responses for row in group]
    lengths = np.array([len(row.token_ids) for row in rows])
    cut = np.array([row.truncated for row in rows])
    return {
        "reward": _mean(r.mean() for r in rewards),
        "reward_std": _mean(r.std(ddof=1) if len(r) > 1 else 0.0 for r in rewards),
        "frac_reward_zero_std": _mean(r.min() == r.max() for r in rewards),
        "frac_all_right": _mean((r >= pass_threshold).all() for r in rewards),
        "frac_all_wrong": _mean((r < pass_threshold).all() for r in rewards),
        "completions/mean_length": _mean(lengths),
        "completions/mean_terminated_length": _mean(lengths[~cut]),
        "completions/clipped_ratio": _mean(cut),
    }


def reward_metrics(responses: Sequence[Sequence[Rollout]], *, gate: str) -> dict[str, float]:
    """Metrics of each reward of the initial responses, null ones left out, by TRL's names; empty where there is one."""
    rows = [row for group in responses for row in group]
    values: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        for kind, value in [(gate, None if row.ungraded else row.reward), *row.rewards]:
            if value is not None:
                values[short_name(kind)].append(value)
    if not any(row.rewards for row in rows):
        return {}
    found = {}
    for name, some in values.items():
        found |= {f"rewards/{name}/mean": _mean(some), f"rewards/{name}/std": float(np.std(some, ddof=len(some) > 1))}
    return found


def refinement_metrics(
    refinements: Sequence[Rollout], kept: Sequence[Rollout], *, pass_threshold: float
) -> dict[str, float]:
    """Metrics of the refinements, those sampled and those kept; a mean or share of none is left out, for it is no 0."""
    passed = [reward_of(row) >= pass_threshold for row in refinements if not row.ungraded]
    by_question = collections.defaultdict(bool)
    for row in refinements:
        if _refines_right(row, pass_threshold):  # with refine.which all
            continue
        by_question[row.index.question] |= not row.ungraded and reward_of(row) >= pass_threshold
    shares = {
        "refine/success": passed,
        "refine/questions_rescued": list(by_question.values()),
        "refine/mean_length": [len(row.token_ids) for row in refinements],
        "refine/mentions_critique": [mentions_critique(row.text) for row in kept],
    }
    return {"refine/attempted": len(refinements)} | {name: _mean(some) for name, some in shares.items() if some}


def _refines_right(refinement: Rollout, pass_threshold: float) -> bool:
    """Whether the response that a refinement starts from passes already."""
    response = refinement.parent
    if response is not None and response.stage == Stage.CRITIQUE:
        response = response.parent
    return response is not None and response.reward is not None and response.reward >= pass_threshold


def critic_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """Metrics of `cot` critiques, or hints, from the counts of `critic.critique`; empty where a rule wrote all."""
    if not counts["attempts"]:
        return {}

    def share(name: str, total: str) -> float:
        return counts[name] / counts[total] if counts[total] else 0.0

    metrics = {
        "critic/malformed_rate": share("malformed", "critiqued"),
        "critic/fallback_rate": share("fallbacks", "critiqued"),
        "critic/attempts": counts["attempts"],
        "critic/unanswered": counts["unanswered"],
        "critic/prompts_cut": counts["prompts_cut"],
    }
    # Where no such response was judged there is no rate, and 0 would praise or blame the critic.
    if counts["comparable"]:
        metrics["critic/valid"] = share("valid", "comparable")
    if counts["judged_failed"]:
        metrics["critic/false_right_rate"] = share("false_right", "judged_failed")
    if counts["judged_passed"]:
        metrics["critic/false_wrong_rate"] = share("false_wrong", "judged_passed")
    return metrics


def endpoint_metrics(
    counts: Mapping[str, float], before: Mapping[str, float], *, whose: str = "critic"
) -> dict[str, float]:
    """Metrics of the endpoint of a "critic" or a "judge", from what its `counts` were after and before an iteration."""

    def since(name: str) -> float:
        return counts.get(name, 0) - before.get(name, 0)

    wanted = ["requests", "attempts", *(name for name in counts if name.startswith("failed/"))]
    result: dict[str, float] = {f"{whose}/http_{name}": since(name) for name in wanted}
    result |= {f"{whose}/{name}": since(name) for name in ("unreadable", "calls_run") if name in counts}
    if items := since("spread_items"):
        result[f"{whose}/spread"] = since("spread_sum") / items
    return result


def endpoints_metrics(counts: Mapping[str, Mapping], before: Mapping[str, Mapping]) -> dict[str, float]:
    """Metrics of all endpoints that an iteration asked, by whose they are, as `endpoint_metrics`."""
    return {k: v for whose in before for k, v in endpoint_metrics(counts[whose], before[whose], whose=whose).items()}


def batch_metrics(rows: Sequence[Sequence[TrainRow]], *, num_extra: int) -> dict[str, float]:
    """Metrics of what was drawn for a batch of groups."""
    found = [any(teaches(row) for row in group) for group in rows]
    return {"batch/extra_questions": num_extra, "batch/frac_with_gradient": _mean(found)}


def verdict_metrics(
    verdicts: Sequence[Sequence[Rollout]], problems: Sequence[Problem], *, cut: int
) -> dict[str, float]:
    """Metrics of the answers to verdict problems, those of a response without a verdict left out; empty without any.

    Args:
      verdicts: the answers to each of them.
      problems: themselves.
      cut: how many hold a response that was cut.
    """
    known = [(rows, one) for rows, one in zip(verdicts, problems, strict=True) if not rows[0].ungraded]
    if not verdicts:
        return {}
    answers = [row for rows, _ in known for row in rows]
    shares = {
        "verdicts/reward": [reward_of(row) for row in answers],
        "verdicts/malformed_rate": [row.extracted is None for row in answers],
        "verdicts/frac_right": [one.answer == "right" for _, one in known],
    }
    return {name: _mean(some) for name, some in shares.items() if some} | {"verdicts/prompts_cut": cut}


def engine_metrics(stats: Sequence[Stats]) -> dict[str, float]:
    """Metrics of the engines that wrote an iteration's texts."""
    steps = sum(one.slot_steps_waiting for one in stats)
    return {
        "engine/occupancy": sum(one.tokens_waiting for one in stats) / steps if steps else 1.0,
        "engine/prompt_tokens": sum(one.prompt_tokens for one in stats),
        "engine/shared_tokens": sum(one.shared_tokens for one in stats),
        "engine/set_back": sum(one.set_back for one in stats),
        "engine/reentered_tokens": sum(one.reentered_tokens for one in stats),
    }


def update_metrics(stats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of an iteration's updates from the statistics of each (sums, see `objective.policy_loss`).

    Updates that were skipped, whose gradient's norm is not finite, are counted and otherwise left out.
    """
    skipped = [one for one in stats if not math.isfinite(one["grad_norm"])]
    stats = [one for one in stats if math.isfinite(one["grad_norm"])]
    if not stats:
        return {"skipped_updates": len(skipped), "rows_trained": 0, "tokens_trained": 0}
    total: collections.Counter = collections.Counter()
    for one in stats:
        total.update(one)

    def share(name: str, tokens: str) -> float:
        return total[name] / total[tokens]

    metrics = {
        "loss": total["policy_loss"] / len(stats),
        "grad_norm": total["grad_norm"] / len(stats),
        "skipped_updates": len(skipped),
        "rows_trained": total["rows_trained"],
        "tokens_trained": total["initial/tokens"] + total["refined/tokens"] + total["distil/alone_tokens"],
    }
    if stats[0]["initial/tokens"]:
        # Of the first update alone: after it the weights are others than those that sampled.
        gap = stats[0]["logp_difference_sum"] / stats[0]["initial/tokens"]
        metrics["sampling/sampling_logp_difference/mean"] = gap
    if total["initial/tokens"]:  # a mean of nothing is no number, and 0 would be one
        metrics |= {
            "entropy": share("initial/entropy_sum", "initial/tokens"),
            "ratio": share("initial/ratio_sum", "initial/tokens"),
            "clip_ratio/low_mean": share("initial/clip_low", "initial/tokens"),
            "clip_ratio/high_mean": share("initial/clip_high", "initial/tokens"),
        }
    if total["refined/tokens"]:
        metrics |= {
            "refined/entropy": share("refined/entropy_sum", "refined/tokens"),
            "refined/prob": share("refined/prob_sum", "refined/tokens"),
            "refined/shaped_ratio": share("refined/ratio_sum", "refined/tokens"),
            "refined/clip_ratio/low_mean": share("refined/clip_low", "refined/tokens"),
            "refined/clip_ratio/high_mean": share("refined/clip_high", "refined/tokens"),
            "refined/frac_tokens": total["refined/tokens"] / (total["refined/tokens"] + total["initial/tokens"]),
        }
    if "distil_loss" in total:
        metrics |= {"distil/tokens": total["distil/tokens"], "distil/loss": total["distil_loss"] / len(stats)}
        if total["distil/tokens"]:  # no response had a critique that its teacher could see, where there are none
            metrics |= {
                "distil/divergence": share("distil/divergence_sum", "distil/tokens"),
                "distil/rest": share("distil/rest_sum", "distil/tokens"),
            }
    if "kl_sum" in total:
        metrics["kl"] = total["kl_sum"] / max(total["initial/tokens"] + total["refined/tokens"], 1)
    return metrics


def update_work(stats: Sequence[Mapping[str, float]], model: ModelConfig, *, adapters: bool) -> dict[str, float]:
    """Metrics of what an iteration's updates had to compute, from the statistics of each."""

    def total(name: str) -> float:
        return sum(one[name] for one in stats)

    positions = total("packed_positions")
    return {
        "update/model_flops": flops.of_update(
            model,
            tokens=total("packed_tokens"),
            targets=total("targets"),
            pairs=total("attention_pairs"),
            local_pairs=total("local_attention_pairs"),
            adapters=adapters,
        ),
        "update/packing": total("packed_tokens") / positions if positions else 0.0,
    }


def update_speed(model_flops: float, seconds: float, *, num_devices: int, peak: float | None) -> dict[str, float]:
    """Metrics of how fast an iteration's updates were.

    Args:
      model_flops: `update/model_flops`.
      seconds: `time/update`.
      num_devices: that computed them.
      peak: `flops.peak_flops` of each.
    """
    speed = {"update/flops_per_second": model_flops / seconds}
    if peak:
        speed["update/mfu"] = flops.mfu(model_flops, seconds, num_devices=num_devices, peak=peak)
    return speed
