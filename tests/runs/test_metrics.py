"""Metrics: values on rollouts made by hand, and that each one is documented."""

import collections
import re

import numpy as np
import pytest
from critic_cases import FIRST, critic_updates

from cgrpo_jax.inference.engine import Stats
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.runs import critic_metrics, metrics
from cgrpo_jax.training import sampler_gap

# What the training loop adds to a row by itself.
OF_THE_LOOP = {
    "learning_rate", "num_tokens", "num_compilations", "step_time", "time/STAGE", "tokens_per_second/STAGE",
    "grade/timeouts", "grade/failures", "refine/prompts_cut", "refine/dropped_mentions", "group_reward", "eval/NAME",
    "rollouts/bytes", "distil/prompts_cut",
}  # fmt: skip
DISTILLED = {
    "distil_loss": 2.0, "distil/tokens": 4.0, "distil/alone_tokens": 3.0, "distil/divergence_sum": 2.0,
    "distil/rest_sum": 1.0,
}  # fmt: skip
COUNTS = collections.Counter(
    critiqued=8, attempts=11, fallbacks=1, prompts_cut=2, malformed=1, unanswered=3,
    comparable=7, valid=4, judged_failed=5, false_right=2, judged_passed=2, false_wrong=1,
)  # fmt: skip
UPDATES = [
    {
        "policy_loss": 0.5, "nll_loss": 0.0, "grad_norm": 3.0, "rows_trained": 4,
        "initial/tokens": 10.0, "initial/ratio_sum": 9.0, "initial/clip_low": 2.0, "initial/clip_high": 1.0,
        "initial/entropy_sum": 12.0, "logp_difference_sum": 0.5,
        "refined/tokens": 0.0, "refined/ratio_sum": 0.0, "refined/clip_low": 0.0, "refined/clip_high": 0.0,
        "refined/entropy_sum": 0.0, "refined/prob_sum": 0.0, "kl_sum": 1.0,
    },
    {
        "policy_loss": -0.1, "nll_loss": 0.0, "grad_norm": 1.0, "rows_trained": 6,
        "initial/tokens": 30.0, "initial/ratio_sum": 31.0, "initial/clip_low": 0.0, "initial/clip_high": 3.0,
        "initial/entropy_sum": 8.0, "logp_difference_sum": 1.5,
        "refined/tokens": 10.0, "refined/ratio_sum": 8.0, "refined/clip_low": 4.0, "refined/clip_high": 1.0,
        "refined/entropy_sum": 5.0, "refined/prob_sum": 2.0, "kl_sum": 4.0,
    },
]  # fmt: skip
WORK = [
    dict(packed_tokens=30.0, targets=10.0, attention_pairs=100.0, local_attention_pairs=90.0, packed_positions=32.0),
    dict(packed_tokens=60.0, targets=40.0, attention_pairs=300.0, local_attention_pairs=200.0, packed_positions=64.0),
]
# A layer has 4 x 4 parameters in each of q, k, v and o, 3 x 4 x 8 in its MLP and 2 x 4 in norms; the last norm has 4.
MODEL = ModelConfig(
    vocab_size=10, num_layers=2, embed_dim=4, num_heads=2, num_kv_heads=2, head_dim=2, mlp_dim=8,
    local_layers=(True, False), window=5,
)  # fmt: skip


def rollout(question, reward, length, *, truncated=False, text="", stage=Stage.RESPONSE):
    return Rollout(
        index=RowIndex(question=question, stage=stage),
        author=Author.POLICY,
        weights_step=0,
        prompt_ids=np.zeros(1, np.int32),
        token_ids=np.zeros(length, np.int32),
        logp=np.zeros(length, np.float32),
        text=text,
        truncated=truncated,
        reward=reward,
    )


RESPONSES = [
    [rollout(0, 1.0, 2), rollout(0, 0.0, 4, truncated=True)],
    [rollout(1, 0.0, 4, truncated=True), rollout(1, 0.0, 3)],
    [rollout(2, 1.0, 1), rollout(2, 1.0, 1)],
    [rollout(3, 0.0, 4, truncated=True), rollout(3, 0.0, 1)],
]
REFINEMENTS = [
    rollout(1, 0.0, 5, stage=Stage.REFINEMENT),
    rollout(1, 1.0, 3, text="As the critique says, 12.", stage=Stage.REFINEMENT),
    rollout(3, 0.0, 2, text="12", stage=Stage.REFINEMENT),
    rollout(3, 0.0, 2, stage=Stage.REFINEMENT),
]


def test_metrics_of_responses():
    assert metrics.response_metrics(RESPONSES, pass_threshold=1.0) == pytest.approx(
        {
            "reward": 3 / 8,
            "reward_std": np.sqrt(0.5) / 4,  # of one question in four: 1, 0 with ddof 1
            "frac_reward_zero_std": 3 / 4,
            "frac_all_right": 1 / 4,
            "frac_all_wrong": 2 / 4,
            "completions/mean_length": 20 / 8,
            "completions/mean_terminated_length": 8 / 5,
            "completions/clipped_ratio": 3 / 8,
        }
    )


def test_responses_that_were_all_cut_off_and_groups_of_one():
    one = metrics.response_metrics([[rollout(0, 0.0, 4, truncated=True)]], pass_threshold=1.0)
    assert one["completions/mean_terminated_length"] == 0 and one["completions/clipped_ratio"] == 1
    assert one["reward_std"] == 0 and one["frac_reward_zero_std"] == 1


def test_a_lower_threshold_passes_partial_rewards():
    groups = [[rollout(0, 0.5, 1), rollout(0, 0.6, 1)]]
    assert metrics.response_metrics(groups, pass_threshold=0.5)["frac_all_right"] == 1
    assert metrics.response_metrics(groups, pass_threshold=0.7)["frac_all_wrong"] == 1


def test_metrics_of_refinements():
    kept = [REFINEMENTS[1], REFINEMENTS[2]]
    assert metrics.refinement_metrics(REFINEMENTS, kept, pass_threshold=1.0) == {
        "refine/attempted": 4,
        "refine/success": 1 / 4,
        "refine/questions_rescued": 1 / 2,
        "refine/mean_length": 12 / 4,
        "refine/mentions_critique": 1 / 2,
    }


def test_of_no_refinements_there_is_no_share():
    assert metrics.refinement_metrics([], [], pass_threshold=1.0) == {"refine/attempted": 0}
    ungraded = [REFINEMENTS[0].replace(reward=0.0, ungraded=True)]
    found = metrics.refinement_metrics(ungraded, [], pass_threshold=1.0)
    assert "refine/success" not in found and found["refine/questions_rescued"] == 0.0


def test_a_question_is_rescued_by_refinements_of_what_failed():
    """Not by those of responses that pass already, which refine.which all refines too."""

    def refined(question, was, reward):
        critique = rollout(question, None, 1, stage=Stage.CRITIQUE).replace(parent=rollout(question, was, 1))
        return rollout(question, reward, 1, stage=Stage.REFINEMENT).replace(parent=critique)

    rows = [refined(0, 0.0, 1.0), refined(1, 1.0, 1.0), refined(1, 0.0, 0.0), refined(2, 1.0, 1.0)]
    inserted = rollout(0, 1.0, 1, stage=Stage.REFINEMENT)  # the data's solution, without a critique
    rows.append(inserted.replace(parent=rollout(0, 0.0, 1)))
    found = metrics.refinement_metrics(rows, rows, pass_threshold=1.0)
    assert found["refine/questions_rescued"] == 1 / 2 and found["refine/success"] == 4 / 5


def test_metrics_of_critiques():
    assert metrics.critic_metrics(COUNTS) == {
        "critic/valid": 4 / 7,
        "critic/malformed_rate": 1 / 8,
        "critic/false_right_rate": 2 / 5,
        "critic/fallback_rate": 1 / 8,
        "critic/attempts": 11,
        "critic/unanswered": 3,
        "critic/prompts_cut": 2,
        "critic/false_wrong_rate": 1 / 2,
    }
    only_failed = COUNTS - collections.Counter(judged_passed=2, false_wrong=1)
    assert "critic/false_wrong_rate" not in metrics.critic_metrics(only_failed)
    unjudged = collections.Counter(critiqued=2, attempts=2, comparable=2, valid=1, malformed=1)  # no verifier, no rate
    assert not {"critic/false_right_rate", "critic/false_wrong_rate"} & metrics.critic_metrics(unjudged).keys()
    assert metrics.critic_metrics(unjudged)["critic/valid"] == 1 / 2
    unanswered = collections.Counter(critiqued=2, attempts=2, unanswered=2, fallbacks=2)
    assert "critic/valid" not in metrics.critic_metrics(unanswered)
    assert metrics.critic_metrics(collections.Counter(critiqued=8)) == {}  # written by a rule


def test_metrics_of_an_endpoint():
    """Categories of earlier iterations go on being told, as 0."""
    before = {"requests": 7, "attempts": 9, "answers": 5, "failed/timeout": 2, "retried/timeout": 1}
    counts = before | {"requests": 10, "attempts": 15, "failed/status 500": 2}
    assert metrics.endpoint_metrics(counts, before) == {
        "critic/http_requests": 3,
        "critic/http_attempts": 6,
        "critic/http_failed/timeout": 0,
        "critic/http_failed/status 500": 2,
    }
    assert metrics.endpoint_metrics({}, {}) == {"critic/http_requests": 0, "critic/http_attempts": 0}
    judged = {"requests": 9, "attempts": 9, "unreadable": 3}
    assert metrics.endpoint_metrics(judged, {"requests": 4, "attempts": 4, "unreadable": 2}, whose="judge") == {
        "judge/http_requests": 5,
        "judge/http_attempts": 5,
        "judge/unreadable": 1,
    }
    several = judged | {"calls_run": 4, "spread_sum": 1.25, "spread_items": 5}
    before = judged | {"calls_run": 1, "spread_sum": 0.25, "spread_items": 1}
    found = metrics.endpoint_metrics(several, before, whose="judge")
    assert (found["judge/calls_run"], found["judge/spread"], found["judge/unreadable"]) == (3, 0.25, 0)
    assert "judge/spread" not in metrics.endpoint_metrics(several, several, whose="judge")


def test_rows_without_a_verdict_are_in_no_metric_of_rewards():
    failed = [RESPONSES[0][0].replace(reward=0.0, ungraded=True)] * 3
    graded = metrics.response_metrics(RESPONSES, pass_threshold=1.0)
    found = metrics.response_metrics([[*RESPONSES[0], *failed], *RESPONSES[1:], failed], pass_threshold=1.0)
    of_rewards = ("reward", "reward_std", "frac_reward_zero_std", "frac_all_right", "frac_all_wrong")
    assert {name: found[name] for name in of_rewards} == {name: graded[name] for name in of_rewards}
    failed = [REFINEMENTS[0].replace(reward=0.0, ungraded=True)]
    success = metrics.refinement_metrics([*REFINEMENTS, *failed], REFINEMENTS, pass_threshold=1.0)["refine/success"]
    assert success == metrics.refinement_metrics(REFINEMENTS, REFINEMENTS, pass_threshold=1.0)["refine/success"]


def test_metrics_of_engines():
    first = Stats(tokens=9, prompt_tokens=20, shared_tokens=3, slot_steps=30, slot_steps_waiting=8, tokens_waiting=6)
    first.set_back, first.reentered_tokens = 2, 50
    second = Stats(tokens=9, prompt_tokens=10, shared_tokens=4, slot_steps=30, slot_steps_waiting=2, tokens_waiting=2)
    assert metrics.engine_metrics([first, second]) == {
        "engine/occupancy": 8 / 10,
        "engine/prompt_tokens": 30,
        "engine/shared_tokens": 7,
        "engine/set_back": 2,
        "engine/reentered_tokens": 50,
    }
    assert metrics.engine_metrics([Stats(tokens=4, slot_steps=8)])["engine/occupancy"] == 1.0  # nothing waited


def test_metrics_of_updates():
    """Rates are over the tokens of all updates; losses and norms are means over the updates."""
    assert metrics.update_metrics(UPDATES) == pytest.approx(
        {
            "loss": 0.2,
            "grad_norm": 2.0,
            "skipped_updates": 0,
            "rows_trained": 10,
            "tokens_trained": 40 + 10,
            "entropy": 20 / 40,
            "ratio": 40 / 40,
            "clip_ratio/low_mean": 2 / 40,
            "clip_ratio/high_mean": 4 / 40,
            "sampling/sampling_logp_difference/mean": 0.5 / 10,  # of the first update
            "refined/entropy": 5 / 10,
            "refined/prob": 2 / 10,
            "refined/shaped_ratio": 8 / 10,
            "refined/clip_ratio/low_mean": 4 / 10,
            "refined/clip_ratio/high_mean": 1 / 10,
            "refined/frac_tokens": 10 / 50,
            "kl": 5 / 50,
        }
    )


def test_updates_without_refinements_or_without_rows():
    first = metrics.update_metrics(UPDATES[:1])
    assert not [name for name in first if name.startswith("refined/")] and first["entropy"] == 1.2
    nothing = {name: 0.0 for name in UPDATES[0] if name != "kl_sum"}
    of_all = {"loss", "grad_norm", "skipped_updates", "rows_trained", "tokens_trained"}
    assert metrics.update_metrics([nothing]) == dict.fromkeys(of_all, 0.0)  # no mean of no tokens
    later = metrics.update_metrics([nothing, UPDATES[0]])
    assert later["entropy"] == 1.2 and "sampling/sampling_logp_difference/mean" not in later


def test_the_work_of_updates_and_their_speed():
    parameters = 2 * (4 * 16 + 96 + 8) + 4
    expected = 6 * (90 * parameters + 50 * 10 * 4) + 12 * 2 * 2 * (400 + 290)
    work = metrics.update_work(WORK, MODEL, adapters=False)
    assert work == {"update/model_flops": expected, "update/packing": 90 / 96}
    adapted = 4 * (90 * parameters + 50 * 10 * 4) + 12 * 2 * 2 * (400 + 290)
    assert metrics.update_work(WORK, MODEL, adapters=True)["update/model_flops"] == adapted
    nothing = dict.fromkeys(WORK[0], 0.0)
    assert set(metrics.update_work([nothing], MODEL, adapters=False).values()) == {0.0}
    with pytest.raises(KeyError, match="packed_positions"):  # an update that does not tell is not one without work
        metrics.update_work([{k: v for k, v in WORK[0].items() if k != "packed_positions"}], MODEL, adapters=False)

    assert metrics.update_speed(600.0, 2.0, num_devices=3, peak=200.0) == {
        "update/flops_per_second": 300.0,
        "update/mfu": 0.5,
    }
    assert metrics.update_speed(600.0, 2.0, num_devices=3, peak=None) == {"update/flops_per_second": 300.0}


SCORED = TrainRow(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.float32), 1.0)


def test_what_is_distilled_is_of_the_tokens_that_a_teacher_scored():
    found = metrics.update_metrics([UPDATES[0] | DISTILLED])
    named = {name: value for name, value in found.items() if name.startswith("distil/")}
    assert named == {"distil/divergence": 0.5, "distil/rest": 0.25, "distil/tokens": 4.0, "distil/loss": 2.0}
    assert found["tokens_trained"] == 13.0  # those of rows that are distilled alone are counted nowhere else
    assert not any(name.startswith("distil/") for name in metrics.update_metrics(UPDATES))


def test_an_iteration_in_which_no_response_has_a_teacher_has_no_divergence():
    found = metrics.update_metrics([UPDATES[0] | dict.fromkeys(DISTILLED, 0.0)])
    assert {name: value for name, value in found.items() if name.startswith("distil/")} == {
        "distil/tokens": 0.0, "distil/loss": 0.0,
    }  # fmt: skip


def test_what_was_drawn_for_a_batch():
    masked, equal = SCORED.replace(masked=True), SCORED.replace(advantage=0.0)
    found = metrics.batch_metrics([[equal, SCORED], [equal, masked], [], [SCORED]], num_extra=3)
    assert found == {"batch/extra_questions": 3, "batch/frac_with_gradient": 0.5}


def test_verdicts_on_responses():
    assert metrics.verdict_metrics([], [], cut=0) == {}
    read = rollout(0, 1.0, 1).replace(extracted="right")
    answers = [[read, read], [rollout(0, 0.0, 1), read], [read.replace(ungraded=True)] * 2]
    problems = [Problem(0, "", "right"), Problem(1, "", "wrong"), Problem(2, "", "wrong")]
    assert metrics.verdict_metrics(answers, problems, cut=1) == {
        "verdicts/reward": 0.75, "verdicts/malformed_rate": 0.25, "verdicts/frac_right": 0.5, "verdicts/prompts_cut": 1,
    }  # fmt: skip
    assert metrics.verdict_metrics(answers[2:], problems[2:], cut=1) == {"verdicts/prompts_cut": 1}  # none is no 0


def test_every_metric_is_documented_and_every_documented_one_exists():
    emitted = {
        *metrics.response_metrics(RESPONSES, pass_threshold=1.0),
        *metrics.refinement_metrics(REFINEMENTS, REFINEMENTS, pass_threshold=1.0),
        *metrics.critic_metrics(COUNTS),
        *critic_metrics.learning_metrics(critic_updates(FIRST)),
        *metrics.update_metrics(UPDATES),
        *metrics.update_metrics([UPDATES[0] | DISTILLED]),
        *metrics.update_work(WORK, MODEL, adapters=False),
        *metrics.update_speed(1.0, 1.0, num_devices=1, peak=1.0),
        *metrics.engine_metrics([]),
        *metrics.batch_metrics([[SCORED]], num_extra=0),
        *metrics.verdict_metrics([RESPONSES[0]], [Problem(0, "", "right")], cut=0),
        "rewards/NAME/mean",
        "rewards/NAME/std",
        *sampler_gap.measure([SCORED], [SCORED.old_logp], cap=2.0, level="token"),
        *(
            re.sub("failed/.*", "failed/CATEGORY", key)
            for whose, more in (("critic", {}), ("judge", {"unreadable": 1, "calls_run": 1, "spread_items": 1}))
            for key in metrics.endpoint_metrics({"failed/timeout": 1, "spread_sum": 1} | more, {}, whose=whose)
        ),
    }
    assert emitted | OF_THE_LOOP == set(metrics.METRICS)
    assert not emitted & OF_THE_LOOP
    assert all(isinstance(text, str) and len(text) > 5 for text in metrics.METRICS.values())
