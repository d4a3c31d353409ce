"""What other libraries call the keys of a configuration, and which key a misspelt name means: hints, never aliases.

Earlier names of our own, which still work as flags, are in old_keys.py.
"""

import difflib
from collections.abc import Sequence

from cgrpo_jax.runs import old_keys

# Names of TRL, verl, transformers and peft; of dotted ones the last part.
KEYS = {
    "lr": "optimizer.learning_rate",
    "lr_scheduler_type": "optimizer.schedule",
    "warmup_steps": "optimizer.warmup_updates",
    "lr_warmup_steps": "optimizer.warmup_updates",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "grad_clip": "optimizer.max_grad_norm",
    "optim": "optimizer.kind",
    "n": "num_responses",
    "num_generations": "num_responses",
    "group_size": "num_responses",
    "max_completion_length": "max_response_length",
    "max_new_tokens": "max_response_length",
    "max_tokens": "max_response_length",
    "response_length": "max_response_length",
    "prompt_length": "max_prompt_length",
    "batch_size": "questions_per_iteration",
    "train_batch_size": "questions_per_iteration",
    "per_device_train_batch_size": "questions_per_iteration",
    "generation_batch_size": "questions_per_iteration",
    "num_minibatches": "optimizer.updates_per_batch",
    "ppo_epochs": "optimizer.updates_per_batch",
    "max_steps": "num_iterations",
    "num_steps": "num_iterations",
    "total_steps": "num_iterations",
    "total_training_steps": "num_iterations",
    "num_train_epochs": "num_iterations",
    "total_epochs": "num_iterations",
    "beta": "objective.kl_coef",
    "kl_loss_coef": "objective.kl_coef",
    "kl_penalty": "objective.kl_coef",
    "entropy_coeff": "objective.entropy_coef",
    "epsilon": "objective.clip_low",
    "epsilon_low": "objective.clip_low",
    "epsilon_high": "objective.clip_high",
    "clip_ratio": "objective.clip_low",
    "clip_ratio_low": "objective.clip_low",
    "clip_ratio_high": "objective.clip_high",
    "scale_rewards": "objective.scale_by_std",
    "norm_adv_by_std_in_grpo": "objective.scale_by_std",
    "importance_sampling_level": "objective.initial_ratio",
    "mask_truncated_completions": "objective.mask_truncated",
    "overlong_filter": "objective.mask_truncated",
    "soft_punish_cache": "objective.length_penalty_share",
    "overlong_buffer": "objective.length_penalty_share",
    "kl_loss_type": "objective.kl",
    "vllm_importance_sampling_cap": "objective.tis_cap",
    "vllm_importance_sampling_mode": "objective.tis_level",
    "rollout_is_threshold": "objective.tis_cap",
    "rollout_is": "objective.tis_level",
    "loss_type": "objective.aggregate",
    "loss_agg_mode": "objective.aggregate",
    "reward_funcs": "rewards",
    "reward_fn": "grader.kind",
    "reward_function": "grader.kind",
    "model_name_or_path": "model.folder",
    "model_path": "model.folder",
    "model_name": "model.folder",
    "lora_r": "lora.rank",
    "r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "target_modules": "lora.targets",
    "lora_target_modules": "lora.targets",
    "assistant_only_loss": "finetune.turns",
    "max_seq_length": "packing.length",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "train_files": "data.train",
    "val_files": "data.eval",
    "eval_files": "data.eval",
    "prompt_key": "data.question_key",
    "save_steps": "checkpoints.every",
    "save_freq": "checkpoints.every",
    "save_total_limit": "checkpoints.keep",
    "eval_steps": "eval.every",
    "test_freq": "eval.every",
    "ks": "eval.k",
    "bf16": "compute.dtype",
    "gradient_checkpointing": "compute.remat",
    "tensor_model_parallel_size": "mesh.tensor",
    "tensor_parallel_size": "mesh.tensor",
    "gpu_memory_utilization": "cache.gib",
    "vllm_gpu_memory_utilization": "cache.gib",
    "chat_template_kwargs": "prompts.template_arguments",
    "enable_thinking": "prompts.template_arguments",
    "template_arguments": "prompts.template_arguments",
}
_CLOSE = 0.6  # as in difflib.get_close_matches
# Flags of other programs.
FLAGS = {"output_dir": "workdir", "default_local_dir": "workdir", "run_dir": "workdir", "checkpoint": "workdir"}


def meant(name: str, known: Sequence[str]) -> str:
    """Returns the key that a name certainly means, here or elsewhere; an empty string if none.

    Args:
      name: as it was given, dotted or not.
      known: the dotted keys that there are.

    Example:
      >>> meant("lr", ["seed", "optimizer.learning_rate"])
      'optimizer.learning_rate'
    """
    last = name.rpartition(".")[2]
    for one in (name, *(names.get(part) for part in (name, last) for names in (KEYS, old_keys.RENAMED))):
        if one and one in known:
            return one
    same = [key for key in known if key.rpartition(".")[2] == last]
    return same[0] if len(same) == 1 else ""


def closest(name: str, known: Sequence[str]) -> str:
    """Returns the key that a misspelt name may mean, perhaps of another section; an empty string if none is close."""
    if found := meant(name, known):
        return found
    last = name.rpartition(".")[2]
    by_last = {one: meant(one, known) for one in KEYS}
    for key in known:
        one = key.rpartition(".")[2]
        by_last.setdefault(one, meant(one, known) or key)
    candidates = [(_likeness(name, key), key) for key in known]
    candidates += [(_likeness(last, one), key) for one, key in by_last.items() if key]
    best = max(candidates, key=lambda one: one[0], default=(0.0, ""))
    return best[1] if best[0] >= _CLOSE else ""


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
