"""What may change when something goes on: every key of a configuration is one that may, or one that may not."""

import paths
import pytest

from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import resume_policy

BASE = config_lib.load(paths.CONFIGS / "base.py")
KEYS = config_lib.flatten(config_lib.to_json(BASE))

# A new key belongs into this list, or, where nothing that is sampled, graded or learnt depends on it, into
# may_change.py.
DECIDES = """
    seed questions_per_iteration num_responses temperature top_p top_k max_prompt_length max_response_length
    on_long_question system_prompt question_prompt stop cache_dtype
    reward_source grader grader_timeout grader_tolerance grader_messages
    judge.model judge.max_retries judge.max_reply_length pass_threshold
    critique critique_schedule critique_when critic_folder critic_sees_answer http_critic.model
    execution_reveals_value step_checker max_retries num_critiques max_critique_length max_critique_prompt_length
    critique_prompt critique_prompt_with_answer
    refine refine_max_pass refinements_per_critique num_refinements max_refinement_prompt_length
    drop_critique_mentions refine_prompt refine_prompt_without_critique
    gamma scale_by_std clip_low clip_high clip_initial clip_refined aggregate kl_coef entropy_coef old_logp
    updates_per_batch optimizer learning_rate schedule warmup_updates final_learning_rate_share weight_decay
    adam_b1 adam_b2 adam_mu_dtype max_grad_norm pack_rows pack_length pack_slots compute_dtype
    model.folder model.tokenizer model.architecture model.init model.num_layers model.embed_dim model.num_heads
    model.num_kv_heads model.mlp_dim model.max_context
    lora.rank lora.alpha lora.targets
    data.kind data.seed data.train data.eval data.mixture data.train_split data.eval_split data.question_key
    data.answer_key data.solution_key data.answer_pattern data.num_train data.num_eval data.pass_rates
    data.min_pass_rate data.max_pass_rate data.chain_length data.num_held_out data.hard_share
    warm_start.num_updates warm_start.rows_per_update warm_start.learning_rate warm_start.chain_lengths
    warm_start.rare_rate
""".split()
EVALUATING = ["eval.num_samples", "eval.temperature", "eval.top_p", "eval.k"]
HELD = {
    "TRAINING": [*EVALUATING, "eval.every"],
    "EVALUATION": [*EVALUATING, "eval.oracle"],
    "DIAGNOSIS": ["diagnosis.num_questions", "diagnosis.num_responses"],
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
    for one in getattr(resume_policy, name):
        assert any(key == one or key.startswith(f"{one}.") for key in KEYS), one
