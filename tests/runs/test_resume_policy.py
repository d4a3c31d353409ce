"""What may change when something resumes: every key of a configuration is one that may, or one that may not."""

import pytest

from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import resume_policy

KEYS = config_lib.flatten(config_lib.to_json(config_lib.Config()))

# A new key belongs into this list or, where nothing that is sampled, graded or learnt depends on it, says so in its
# section (`may_change`).
DECIDES = """
    distil.kind distil.which distil.coef distil.divergence distil.top_tokens distil.teacher distil.average_rate
    critic.train critic.training.loss critic.training.weights critic.training.beta critic.training.verdict_weight
    critic.training.clip_low critic.training.clip_high critic.training.learning_rate critic.training.num_updates
    critic.training.rank critic.training.alpha
    refiner.folder refiner.temperature refiner.top_p refiner.template_arguments
    rewards reward_weights gate normalize_rewards
    max_prompt_length max_response_length num_responses pass_threshold questions_per_iteration reward_source
    prompts.critique_with_solution
    seed cache.dtype compute.dtype critic.max_prompt_length critic.sees critic.endpoint.model critic.folder
    critic.kind critic.max_length critique.reveals_value critique.schedule critique.when critique.max_retries
    critique.kind critique.step_checker critique.num_per_response data.answer_pattern data.num_held_out
    data.eval data.solution_key data.eval_split data.train data.seed data.kind data.train_split data.pass_rates
    data.mixture data.min_pass_rate data.num_train data.hard_share data.max_pass_rate data.question_key
    data.answer_key data.num_eval data.chain_length grader.timeout grader.tolerance grader.messages grader.kind
    grader.numpy code.modules
    critic.endpoint.extra_body critic.endpoint.send_temperature
    judge.endpoint.extra_body judge.endpoint.send_temperature
    model.family model.head_dim model.rope_theta model.window model.tie_embeddings
    judge.max_length judge.endpoint.model judge.max_retries lora.rank lora.targets lora.alpha model.num_layers
    model.embed_dim model.init model.num_kv_heads model.tokenizer model.architecture model.mlp_dim
    model.max_context model.num_heads model.folder objective.scale_by_std objective.kl_coef
    objective.clip_initial objective.clip_refined objective.aggregate objective.entropy_coef objective.clip_high
    objective.gamma objective.clip_low objective.old_logp optimizer.mu_dtype optimizer.updates_per_batch
    optimizer.schedule optimizer.weight_decay optimizer.learning_rate optimizer.kind optimizer.max_grad_norm
    optimizer.final_learning_rate_share optimizer.b2 optimizer.warmup_updates optimizer.b1 packing.slots
    packing.length packing.rows prompts.question prompts.critique_with_answer prompts.refine_without_critique
    prompts.system prompts.on_long_question prompts.critique prompts.refine refine.num_kept refine.per_critique
    refine.max_pass refine.kind refine.drop_critique_mentions refine.max_prompt_length sampling.temperature
    sampling.top_p sampling.top_k sampling.stop warm_start.rows_per_update warm_start.num_updates
    warm_start.chain_lengths warm_start.learning_rate warm_start.rare_rate
    objective.initial_ratio objective.refined_ratio objective.baseline objective.mask_truncated objective.kl
    objective.length_penalty objective.length_penalty_share objective.tis_cap objective.tis_level
    refine.which refine.select refine.group
    max_extra_questions verdict_share
    judge.mode judge.evidence judge.num_judgements judge.temperature judge.universal
    critique.corruption critique.corrupted_share critique.others prompts.hint prompts.refine_with_hint
    prompts.teacher
    finetune.loss finetune.beta finetune.rows finetune.eval_rows finetune.rows_per_update finetune.on_long
    finetune.turns finetune.stages finetune.which finetune.context finetune.max_per_question
    critic.temperature critic.top_p critic.template_arguments grader.thinking prompts.template_arguments
""".split()
EVALUATING = ["eval.num_samples", "eval.temperature", "eval.top_p", "eval.k"]
HELD = {
    "TRAINING": [*EVALUATING, "eval.every"],
    "EVALUATION": [*EVALUATING, "eval.oracle"],
    "DIAGNOSIS": ["diagnosis.num_questions", "diagnosis.num_responses"],
    "COLLECTION": [key for key in KEYS if key.startswith("collect.")],
}


def other(value):
    """Returns a value that is not this one."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else [*value, "x"] if isinstance(value, list) else value + "x"


@pytest.mark.parametrize("name", HELD)
def test_every_key_may_change_or_may_not(name):
    ignore, refused = getattr(resume_policy, name), []
    for key, value in KEYS.items():
        if config_lib.differences(KEYS, KEYS | {key: other(value)}, ignore):
            refused.append(key)
    assert sorted(refused) == sorted([*DECIDES, *HELD[name]]), "a new key decides results, or may change; say which"


@pytest.mark.parametrize("name", HELD)
def test_all_that_may_change_is_there(name):
    assert set(getattr(resume_policy, name)) <= KEYS.keys()
