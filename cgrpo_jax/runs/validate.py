"""What the type of a configuration's value does not tell: whether any run can have it."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from cgrpo_jax import objective
from cgrpo_jax.critiques import schedule, texts
from cgrpo_jax.datasets import mixture
from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora, transformer
from cgrpo_jax.rewards import grader
from cgrpo_jax.training import optimizer

_CHOICES = {
    "on_long_question": ("skip", "error"),
    "reward_source": ("verifier", "critic"),
    "critique": ("indicative", "indicative_gt", "execution", "cot", "none"),
    "critique_when": ("refining", "all"),
    "step_checker": ("equations", "chain"),
    "refine": ("policy", "solution", "none"),
    "aggregate": objective.AGGREGATES,
    "old_logp": ("sampler", "trainer"),
    "optimizer": optimizer.OPTIMIZERS,
    "schedule": optimizer.SCHEDULES,
    "adam_mu_dtype": ("", "float32", "bfloat16"),
    "remat": transformer.REMAT,
    "data.kind": ("jsonl", "parquet", "tfds", *MADE_UP),
    "compute_dtype": ("", "float32", "bfloat16"),
    "cache_dtype": ("", "float32", "bfloat16", "int8"),
}
_AT_LEAST_ONE = (
    "questions_per_iteration", "num_responses", "num_refinements", "num_critiques", "refinements_per_critique",
    "updates_per_batch", "max_prompt_length", "max_response_length", "max_critique_length",
    "max_critique_prompt_length", "max_refinement_prompt_length", "decode_chunk",
    "prompt_bucket", "pack_rows", "checkpoint_every", "checkpoints_to_keep", "samples_every", "grader_workers",
    "eval.num_samples", "eval.texts_per_slot", "diagnosis.num_responses", "data.chain_length",
    "warm_start.rows_per_update", "http_critic.concurrency", "http_critic.max_attempts", "judge.concurrency",
    "judge.max_attempts", "judge.max_reply_length",
)  # fmt: skip
_NOT_NEGATIVE = (
    "seed", "num_slots", "kv_cache_gib",
    "num_iterations", "samples_per_iteration", "top_k", "max_retries", "kl_coef", "clip_low", "clip_high",
    "learning_rate", "warmup_updates", "weight_decay", "max_grad_norm", "pack_length", "pack_slots", "data.seed",
    "data.num_train", "data.num_eval", "warm_start.num_updates", "warm_start.learning_rate", "eval.every",
    "eval.temperature", "diagnosis.num_questions", "lora.rank", "max_nonfinite_updates", "http_critic.max_requests",
    "http_critic.max_tokens", "judge.max_retries", "grader_tolerance",
)  # fmt: skip
_MOST_SAMPLES = 1024  # `evaluation.estimators.MOST_SAMPLES`
_MAX_SEED = 2**32 - 1  # random keys are folded from 32-bit numbers
_BELOW_ONE = ("adam_b1", "adam_b2")
_SHARES = ("refine_max_pass", "final_learning_rate_share", "data.hard_share", "warm_start.rare_rate")
_TEMPLATES = {
    "question_prompt": ("question",),
    "critique_prompt": ("question", "response"),
    "critique_prompt_with_answer": ("question", "response", "answer"),
    "refine_prompt": ("question", "response", "critique"),
    "refine_prompt_without_critique": ("question", "response"),
}


def check(config) -> None:
    """Checks a configuration by itself: without its models, its data and the machine.

    Raises:
      UserError: a value, or a combination of values, that no run can have.
    """
    for key, allowed in _CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            raise UserError(f"{key} {value!r} is unknown; use one of {', '.join(allowed)}.")
    for key, value in _leaves(config.to_dict()):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} {value} is no finite number; use one.")
    for key in _AT_LEAST_ONE:
        if _get(config, key) < 1:
            raise UserError(f"{key} {_get(config, key)} is too small; use at least 1.")
    for key in _NOT_NEGATIVE:
        value = _get(config, key)
        if value < 0:
            raise UserError(f"{key} {value} is negative; use 0 or more.")
    for key in _SHARES:
        value = _get(config, key)
        if not 0 <= value <= 1:
            raise UserError(f"{key} {value} is not a share; use a value from 0 to 1.")
    for key in _BELOW_ONE:
        value = _get(config, key)
        if not 0 <= value < 1:
            raise UserError(f"{key} {value} is no decay of an average; use a value of at least 0 and below 1.")
    for key, fields in _TEMPLATES.items():
        template = _get(config, key)
        if template or key == "question_prompt":  # where the others are empty, critiques.py has a default
            try:
                texts.check_template(template, fields)
            except UserError as error:
                raise UserError(f"{key}: {error}") from error
    if config.questions_per_iteration % config.updates_per_batch:
        divisors = [d for d in range(1, 65) if config.questions_per_iteration % d == 0]
        raise UserError(
            f"updates_per_batch {config.updates_per_batch} does not divide questions_per_iteration "
            f"{config.questions_per_iteration}; use one of {', '.join(map(str, divisors))}."
        )
    schedule.check(config.critique_schedule, _CHOICES["critique"])
    _check_optimizer(config)
    _check_data(config)
    if config.temperature <= 0:
        raise UserError(f"temperature {config.temperature} gives no exploration; use a positive one, such as 1.0.")
    for key in ("top_p", "eval.top_p"):
        value = _get(config, key)
        if not 0 < value <= 1:
            raise UserError(f"{key} {value} is not a probability mass; use a value above 0 and at most 1.")
    if not config.num_slots and not config.kv_cache_gib:
        raise UserError("num_slots 0 takes as many slots as kv_cache_gib holds; set one of them.")
    if config.num_slots and config.kv_cache_gib:
        raise UserError(
            f"num_slots {config.num_slots} and kv_cache_gib {config.kv_cache_gib:g} are both set; set one of them to 0."
        )
    if not all(isinstance(stop, str) for stop in config.stop):
        raise UserError(f"stop {tuple(config.stop)} must hold strings; quote them.")
    if any(not stop for stop in config.stop):
        raise UserError(f"stop {tuple(config.stop)} holds an empty string, after which every text ends; leave it out.")
    grader.check_kind(config.grader)
    if config.grader_timeout <= 0:
        raise UserError(f"grader_timeout {config.grader_timeout} leaves no time; use a positive one, such as 5.0.")
    if config.http_critic.timeout <= 0:
        raise UserError(f"http_critic.timeout {config.http_critic.timeout} leaves no time; use a positive one.")
    if config.judge.timeout <= 0:
        raise UserError(f"judge.timeout {config.judge.timeout} leaves no time; use a positive one.")
    if config.grader == "judge" and not config.judge.url:
        raise UserError('grader "judge" asks an endpoint; give its address in judge.url.')
    if config.judge.url and not config.judge.model:
        raise UserError("judge.model is empty; give the name that the endpoint knows its model by.")
    if config.http_critic.url:
        _check_http_critic(config)
    if config.seed > _MAX_SEED:
        raise UserError(f"seed {config.seed} does not fit 32 bits; use at most {_MAX_SEED}.")
    if (config.top_p < 1 or config.top_k > 0) and config.old_logp == "sampler":
        raise UserError('top_p below 1 or top_k above 0 needs old_logp "trainer"; set it, or sample untruncated.')
    if config.gamma <= 0:
        raise UserError(f"gamma {config.gamma} makes the shaped ratio 1; use a positive value, such as 0.1.")
    kinds = schedule.kinds(critique=config.critique, schedule=config.critique_schedule)
    if config.reward_source == "critic" and (kinds != {"cot"} or config.critique_when != "all"):
        raise UserError(
            'reward_source "critic" takes its rewards from verdicts; set critique "cot", critique_when "all".'
        )
    if config.step_checker == "chain" and config.data.kind != "chains":
        raise UserError(f'step_checker "chain" knows chains only, not data.kind {config.data.kind!r}; use "equations".')
    if config.warm_start.num_updates and config.data.kind not in MADE_UP:
        raise UserError("warm_start has lessons on chains and snippets only; set warm_start.num_updates to 0.")
    if config.warm_start.num_updates and min(config.warm_start.chain_lengths, default=0) < 1:
        raise UserError(
            f"warm_start.chain_lengths {tuple(config.warm_start.chain_lengths)} must hold numbers of at least 1, such "
            "as (1, 2, 3)."
        )
    if config.warm_start.rare_rate and not config.data.num_held_out:
        raise UserError("warm_start.rare_rate shows held-out facts, but data.num_held_out is 0; set one of them.")
    if config.pack_length and config.pack_length < config.max_prompt_length + config.max_response_length - 1:
        raise UserError(
            f"pack_length {config.pack_length} does not hold the longest prompt and response; use at least "
            f"{config.max_prompt_length + config.max_response_length - 1}, or 0."
        )
    if config.lora.rank:
        lora.LoraSettings(rank=config.lora.rank, alpha=config.lora.alpha, targets=tuple(config.lora.targets))
    if not config.eval.k or min(config.eval.k) < 1:
        raise UserError(f"eval.k {tuple(config.eval.k)} must hold numbers of at least 1, such as (1, 8).")
    if config.eval.num_samples < max(config.eval.k):
        raise UserError(
            f"eval.k {max(config.eval.k)} needs as many samples; eval.num_samples is {config.eval.num_samples}."
        )
    if config.eval.num_samples > _MOST_SAMPLES:
        raise UserError(f"eval.num_samples {config.eval.num_samples} is too large; use at most {_MOST_SAMPLES}.")
    kinds = _CHOICES["critique"][:-1]
    if not config.diagnosis.kinds or not set(config.diagnosis.kinds) <= set(kinds):
        raise UserError(
            f"diagnosis.kinds {tuple(config.diagnosis.kinds)} must be kinds of critiques; use some of "
            f'{", ".join(kinds)}, as --config.diagnosis.kinds=\'("indicative", "cot")\'.'
        )
    if config.refine == "solution" and config.data.kind not in MADE_UP and not config.data.solution_key:
        raise UserError('refine "solution" inserts the data\'s solutions; name their column in data.solution_key.')


def _check_optimizer(config) -> None:
    if config.optimizer != "adamw" and config.adam_mu_dtype:
        raise UserError(
            f"adam_mu_dtype {config.adam_mu_dtype!r} is of AdamW's first moment, which optimizer {config.optimizer!r} "
            "has not; leave it empty."
        )
    updates = config.num_iterations * config.updates_per_batch
    if config.schedule != "constant" and 0 < updates <= config.warmup_updates:
        raise UserError(
            f"warmup_updates {config.warmup_updates} leaves schedule {config.schedule!r} none of the run's {updates} "
            "updates to fall over; use fewer."
        )


def _check_data(config) -> None:
    d = config.data
    if d.pass_rates and not d.min_pass_rate < d.max_pass_rate:
        raise UserError(
            f"data.min_pass_rate {d.min_pass_rate:g} is not below data.max_pass_rate {d.max_pass_rate:g}; no question "
            "has a rate between them."
        )
    if mixture.parse_mixture(d.mixture) and d.kind in MADE_UP:
        raise UserError(f"data.mixture mixes data sets that are read; data.kind {d.kind} is made up. Leave it empty.")


def _check_http_critic(config) -> None:
    if "cot" not in schedule.kinds(critique=config.critique, schedule=config.critique_schedule):
        raise UserError(
            f'http_critic.url needs critique "cot", not {config.critique!r}; set it, or leave the url empty.'
        )
    if config.critic_folder:
        raise UserError("critic_folder and http_critic.url both name a critic; leave one of them empty.")
    if not config.http_critic.model:
        raise UserError("http_critic.model is empty; give the name that the endpoint knows its model by.")
    if config.reward_source == "critic" and (config.http_critic.max_requests or config.http_critic.max_tokens):
        raise UserError(
            'reward_source "critic" needs a verdict on every response, which http_critic.max_requests and max_tokens '
            "end; set both to 0."
        )


def _get(config, key: str):
    return functools.reduce(getattr, key.split("."), config)


def _leaves(values: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
