"""What the keys of a configuration were called before it had sections: one table, for old folders, flags and files.

An old run's `config.json` is read through the table each time, and written in today's names only when the run resumes
with another value. An old flag works, and a line says what it is called now. An old name in a configuration's file is
an error that names the new one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Names that are not here are what they were: mesh, model, lora, data, warm_start, eval, diagnosis, and a few others.
RENAMED = {
    "checkpoint_every": "checkpoints.every",
    "checkpoints_to_keep": "checkpoints.keep",
    "samples_every": "rollouts.every",
    "profile_steps": "profile.steps",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "stop": "sampling.stop",
    "on_long_question": "prompts.on_long_question",
    "system_prompt": "prompts.system",
    "question_prompt": "prompts.question",
    "critique_prompt": "prompts.critique",
    "critique_prompt_with_answer": "prompts.critique_with_answer",
    "refine_prompt": "prompts.refine",
    "refine_prompt_without_critique": "prompts.refine_without_critique",
    "num_slots": "engine.num_slots",
    "prompt_bucket": "engine.prompt_bucket",
    "decode_chunk": "engine.decode_chunk",
    "kv_cache_gib": "cache.gib",
    "cache_dtype": "cache.dtype",
    "grader": "grader.kind",
    "grader_timeout": "grader.timeout",
    "grader_workers": "grader.num_workers",
    "grader_tolerance": "grader.tolerance",
    "grader_messages": "grader.messages",
    "judge.url": "judge.endpoint.url",
    "judge.model": "judge.endpoint.model",
    "judge.key_variable": "judge.endpoint.key_variable",
    "judge.concurrency": "judge.endpoint.concurrency",
    "judge.timeout": "judge.endpoint.timeout",
    "judge.max_attempts": "judge.endpoint.max_attempts",
    "judge.max_reply_length": "judge.max_length",
    "critic_folder": "critic.folder",
    "critic_sees_answer": "critic.sees",
    "http_critic.url": "critic.endpoint.url",
    "http_critic.model": "critic.endpoint.model",
    "http_critic.key_variable": "critic.endpoint.key_variable",
    "http_critic.concurrency": "critic.endpoint.concurrency",
    "http_critic.timeout": "critic.endpoint.timeout",
    "http_critic.max_attempts": "critic.endpoint.max_attempts",
    "http_critic.max_requests": "critic.endpoint.max_requests",
    "http_critic.max_tokens": "critic.endpoint.max_tokens",
    "max_critique_length": "critic.max_length",
    "max_critique_prompt_length": "critic.max_prompt_length",
    "critique": "critique.kind",
    "critique_schedule": "critique.schedule",
    "critique_when": "critique.when",
    "num_critiques": "critique.num_per_response",
    "max_retries": "critique.max_retries",
    "step_checker": "critique.step_checker",
    "execution_reveals_value": "critique.reveals_value",
    "refine": "refine.kind",
    "refine_max_pass": "refine.max_pass",
    "refinements_per_critique": "refine.per_critique",
    "num_refinements": "refine.num_kept",
    "max_refinement_prompt_length": "refine.max_prompt_length",
    "drop_critique_mentions": "refine.drop_critique_mentions",
    "gamma": "objective.gamma",
    "scale_by_std": "objective.scale_by_std",
    "clip_low": "objective.clip_low",
    "clip_high": "objective.clip_high",
    "clip_initial": "objective.clip_initial",
    "clip_refined": "objective.clip_refined",
    "aggregate": "objective.aggregate",
    "kl_coef": "objective.kl_coef",
    "entropy_coef": "objective.entropy_coef",
    "old_logp": "objective.old_logp",
    "optimizer": "optimizer.kind",
    "learning_rate": "optimizer.learning_rate",
    "schedule": "optimizer.schedule",
    "warmup_updates": "optimizer.warmup_updates",
    "final_learning_rate_share": "optimizer.final_learning_rate_share",
    "weight_decay": "optimizer.weight_decay",
    "adam_b1": "optimizer.b1",
    "adam_b2": "optimizer.b2",
    "adam_mu_dtype": "optimizer.mu_dtype",
    "offload_optimizer": "optimizer.offload",
    "max_grad_norm": "optimizer.max_grad_norm",
    "updates_per_batch": "optimizer.updates_per_batch",
    "max_nonfinite_updates": "optimizer.max_nonfinite_updates",
    "pack_rows": "packing.rows",
    "pack_length": "packing.length",
    "pack_slots": "packing.slots",
    "compute_dtype": "compute.dtype",
    "remat": "compute.remat",
}
# Names of today's sections that have changed since.
RENAMED_SINCE = {"samples.every": "rollouts.every"}
_ALL = RENAMED | RENAMED_SINCE
# Groups of keys that have another name, and keys that are no more, with what is done in their place.
_GROUPS = {"http_critic": "critic.endpoint", "samples": "rollouts"}
_EVERY_QUESTION = "rollouts.every writes all questions of an iteration"
GONE = {"samples_per_iteration": _EVERY_QUESTION, "samples.per_iteration": _EVERY_QUESTION}
# A key with which an old folder or flag said which critic there is, and the kind of critic that it is.
_CRITICS = {"critic_folder": "folder", "http_critic.url": "endpoint"}
# Keys and sections that a run did not have, and keys that a section did not have, with what was done then; where
# metrics are shown is as for a run that starts.
_ADDED_TO_RUN = {
    "rewards": [],
    "reward_weights": [],
    "gate": "",
    "normalize_rewards": False,
    "trackers": ["tensorboard"],
    "tracking.project": "cgrpo_jax",
    "tracking.group": "",
    "max_extra_questions": 0,
    "verdict_share": 0.0,
    "distil.kind": "none",
    "distil.which": "failed",
    "distil.coef": 1.0,
    "distil.divergence": "reverse_kl",
    "distil.top_tokens": 20,
    "distil.teacher": "policy",
    "distil.average_rate": 0.05,
    "critic.training.loss": "rco",
    "critic.training.weights": "policy",
    "critic.training.beta": 0.1,
    "critic.training.verdict_weight": 0.5,
    "critic.training.clip_low": 0.2,
    "critic.training.clip_high": 0.2,
    "critic.training.learning_rate": 1e-6,
    "critic.training.num_updates": 2,
    "critic.training.rank": 16,
    "critic.training.alpha": 32.0,
    "refiner.folder": "",
    "refiner.temperature": -1.0,
    "refiner.top_p": 0.0,
    "refiner.template_arguments": "",
    "code.modules": [],
    "finetune.loss": "nll",
    "finetune.beta": 0.1,
    "finetune.rows": "",
    "finetune.eval_rows": "",
    "finetune.epochs": 3,
    "finetune.rows_per_update": 32,
    "finetune.on_long": "error",
    "finetune.turns": "all",
    "finetune.stages": ["response", "refinement"],
    "finetune.which": "right",
    "finetune.context": "question",
    "finetune.max_per_question": 0,
    "collect.rows": "",
    "collect.questions": "training",
    "collect.num_questions": 0,
    "collect.num_responses": 0,
    "collect.which": "all",
    "collect.num_critiques": 1,
    "collect.num_refinements": 1,
    "collect.utility": "verifier",
    "collect.questions_per_file": 128,
}
_ADDED = {
    "cache.kind": "contiguous",
    "cache.page_size": 64,
    "mesh.gen_tensor": 0,
    "engine.prompt_tokens": 512,
    "engine.overlap": "auto",
    "judge.endpoint.max_requests": 0,
    "judge.endpoint.max_tokens": 0,
    "judge.mode": "explicit",
    "judge.evidence": False,
    "judge.num_judgements": 1,
    "judge.temperature": 0.0,
    "judge.universal": "",
    "prompts.template_arguments": "",
    "grader.thinking": "after",
    "critic.temperature": -1.0,
    "critic.top_p": 0.0,
    "critic.template_arguments": "",
    "critic.train": False,
    "grader.numpy": False,
    "prompts.critique_with_solution": "",
    "prompts.hint": "",
    "prompts.refine_with_hint": "",
    "prompts.teacher": "",
    "critique.corruption": "none",
    "critique.corrupted_share": 1.0,
    "critique.others": "",
    "refine.which": "failed",
    "refine.select": "best",
    "refine.group": "append",
    "objective.initial_ratio": "token",
    "objective.refined_ratio": "shaped",
    "objective.baseline": "group",
    "objective.mask_truncated": False,
    "objective.length_penalty": 0.0,
    "objective.length_penalty_share": 0.2,
    "objective.kl": "k3",
    "objective.tis_cap": 0.0,
    "objective.tis_level": "token",
    "eval.keep_best": "",
    "model.family": "llama",
    "model.head_dim": 0,
    "model.rope_theta": 0.0,
    "model.window": 0,
    "model.tie_embeddings": True,
    "compute.keep_programs": True,
    "compute.stall_timeout": 1800.0,
    "compute.compile_timeout": 3600.0,
    **{
        f"{who}.endpoint.{name}": value
        for who in ("critic", "judge")
        for name, value in (("max_tokens_field", "max_tokens"), ("send_temperature", True), ("extra_body", ""))
    },
}
_SEES = {True: "answer", False: "nothing"}


class ChangedDefault(NamedTuple):
    """A default that was another one; a config.json without the key `since`, which came with the change, is older."""

    was: Any
    now: Any
    since: str


CHANGED_DEFAULTS = {"objective.clip_refined": ChangedDefault(True, False, since="objective.refined_ratio")}


def defaults_of_then(old: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys at which an old run has the default of then and a configuration that of today, with the former.

    With these the run goes on as it began.

    Args:
      old: as its `config.json` holds it.
      now: another configuration, its keys dotted.

    Example:
      >>> defaults_of_then({"objective": {"clip_refined": True}}, {"objective.clip_refined": False})
      {'objective.clip_refined': True}
    """
    flat = {_ALL.get(name, name): value for name, value in _flat(old)}
    return {
        key: one.was
        for key, one in CHANGED_DEFAULTS.items()
        if one.since not in flat and flat.get(key) == one.was and now.get(key) == one.now
    }


def as_old_as(old: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration for the `config.json` of an older run, which must stay known as older (`ChangedDefault`).

    What it leaves out is what the old run did not have yet, at what was done then.
    """
    flat = {_ALL.get(name, name) for name, _ in _flat(old)}
    values = dict(_flat(now))
    since = {one.since for key, one in CHANGED_DEFAULTS.items() if key in flat} - flat
    return _nested({name: value for name, value in values.items() if not (name in since and value == _ADDED[name])})


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration as its `config.json` holds it, nested, in today's names; unknown keys stay.

    Example:
      >>> translate({"seed": 1, "gamma": 0.1})
      {'seed': 1, 'objective': {'gamma': 0.1}}
    """
    flat = dict(_flat(values))
    found = {_ALL.get(name, name): value for name, value in flat.items() if name not in GONE}
    if isinstance(found.get("critic.sees"), bool):
        found["critic.sees"] = _SEES[found["critic.sees"]]
    if _CRITICS.keys() & flat.keys():
        kinds = [kind for name, kind in _CRITICS.items() if flat.get(name)]
        found.setdefault("critic.kind", kinds[0] if kinds else "policy")
    sections = {name.rpartition(".")[0] for name in found}
    found = {name: value for name, value in _ADDED.items() if name.rpartition(".")[0] in sections} | found
    found = (_ADDED_TO_RUN if "num_responses" in found else {}) | found
    return _nested(found)


def translate_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns command line arguments with today's names of keys, and a line for each that was called otherwise.

    Example:
      >>> translate_flags(["--config.gamma=0.1", "--config.seed=1"])
      (['--config.objective.gamma=0.1', '--config.seed=1'], ['--config.gamma is now --config.objective.gamma'])
    """
    kind = _critic_of(arguments)
    found, hints = [], []
    left = iter(arguments)
    for argument in left:
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match and match[2] in GONE:
            if match[3] is None:
                next(left, None)  # its value
            hints.append(f"--config.{match[2]} is gone: {GONE[match[2]]}")
            continue
        if not match or match[2] not in _ALL:
            found.append(argument)
            continue
        no, old, value = match[1] or "", match[2], match[3]
        new = f"--{no}config.{_ALL[old]}"
        if old == "critic_sees_answer":
            sees = not no and (value or "true").lower() in ("true", "t", "1")
            new, value = f"--config.{_ALL[old]}={_SEES[sees]}", None
        found.append(new if value is None else f"{new}={value}")
        if old in _CRITICS:
            new += f", with --config.critic.kind={kind}"
        hints.append(f"--{no}config.{old} is now {new}")
    if kind and not any(re.match(r"--?config\.critic\.kind\b", argument) for argument in arguments):
        found.append(f"--config.critic.kind={kind}")
    return found, hints


def _critic_of(arguments: Sequence[str]) -> str | None:
    """Returns the kind of critic that old flags ask for; None where they say nothing of it."""
    kind = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match and match[1] in _CRITICS:
            given = following if match[2] is None else match[2]
            kind = _CRITICS[match[1]] if given else kind or "policy"
    return kind


def new_name(name: str) -> str:
    """Returns what a key, or a group of keys, is called now; empty if it has kept its name, is gone, or never was.

    Example:
      >>> new_name("kl_coef"), new_name("http_critic"), new_name("seed")
      ('objective.kl_coef', 'critic.endpoint', '')
    """
    return _GROUPS.get(name) or _ALL.get(name, "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return nested
