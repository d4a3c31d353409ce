"""From a configuration to what trains the policy: optimiser, rate, loss, packed shape, adapters."""

import dataclasses

from cgrpo_jax.models import lora
from cgrpo_jax.runs.config import Config
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training.critic_learner import CriticSettings
from cgrpo_jax.training.critic_rows import CriticTraining
from cgrpo_jax.training.distillation import Distillation
from cgrpo_jax.training.learner import LearnerSettings
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import LossSettings


def learner_settings(config: Config) -> LearnerSettings:
    """Returns how the policy is trained, steps 7 and 8 of the algorithm."""
    return _learner(config, num_updates=config.num_iterations * config.optimizer.updates_per_batch)


def of_finetuning(config: Config, *, num_updates: int) -> LearnerSettings:
    """Returns how a model learns from rows: so many updates, each of which a batch is drawn for.

    A target's log-probability is of `softmax(logits)`: nothing is sampled, and no temperature divides.
    """
    loss = LossSettings(max_length=config.max_response_length, beta=config.finetune.beta)
    return dataclasses.replace(
        _learner(config, num_updates=num_updates),
        loss=loss,
        shape=dataclasses.replace(_pack_shape(config), sampler_logp=False, from_rows=True),
        updates_per_batch=1,
        rescore=False,
        distillation=None,
        compares=config.finetune.loss != "nll",
    )


def critic_settings(config: Config) -> CriticSettings | None:
    """Returns how a critic learns beside the policy; None where none does.

    Its optimiser is the policy's, with a rate of its own. The ratio of each of its tokens is clipped to bounds of its
    own, and what it trains is scored at the temperature that it samples with.
    """
    c, sampling = config.critic.training, config.sampling
    if not config.critic.train:
        return None
    is_rco = c.loss == "rco"
    temperature = sampling.temperature if config.critic.temperature < 0 else config.critic.temperature
    loss = LossSettings(
        max_length=config.critic.max_length,
        clip_low=c.clip_low,
        clip_high=c.clip_high,
        kl_coef=0.0 if is_rco else c.beta,
        temperature=temperature,
    )
    shape = PackShape(
        config.packing.rows,
        config.critic.max_prompt_length + config.critic.max_length,
        _num_slots(config),
        from_rows=is_rco,
    )
    num_updates = config.num_iterations * c.num_updates
    adapters = {"policy": lora_settings(config), "adapter": _adapter(config), "model": None}
    learner = dataclasses.replace(
        _learner(config, num_updates=num_updates, learning_rate=c.learning_rate),
        loss=loss,
        shape=shape,
        updates_per_batch=c.num_updates,
        rescore=True,
        proximal=True,
        adapters=adapters[c.weights],
        distillation=None,
    )
    training = CriticTraining(c.loss, c.weights, c.beta, c.verdict_weight, config.pass_threshold)
    return CriticSettings(training, learner)


def _adapter(config: Config) -> lora.LoraSettings:
    """Returns the adapter of a critic on the policy's weights."""
    c = config.critic.training
    return lora.LoraSettings(rank=c.rank, alpha=c.alpha, targets=tuple(lora.TARGETS))


def _learner(config: Config, *, num_updates: int, learning_rate: float | None = None) -> LearnerSettings:
    schedule = optimizer_lib.make_schedule(
        config.optimizer.schedule,
        peak=config.optimizer.learning_rate if learning_rate is None else learning_rate,
        warmup_steps=config.optimizer.warmup_updates,
        num_steps=num_updates,
        final_share=config.optimizer.final_learning_rate_share,
    )
    optimizer = optimizer_lib.make_optimizer(
        config.optimizer.kind,
        learning_rate=schedule,
        max_grad_norm=config.optimizer.max_grad_norm,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        mu_dtype=config.optimizer.mu_dtype or None,
    )
    return LearnerSettings(
        optimizer=optimizer,
        learning_rate=schedule,
        loss=loss_settings(config),
        shape=_pack_shape(config),
        updates_per_batch=config.optimizer.updates_per_batch,
        rescore=config.objective.old_logp == "trainer" or config.objective.tis_cap > 0,
        remat=config.compute.remat,
        max_nonfinite_updates=config.optimizer.max_nonfinite_updates,
        adapters=lora_settings(config),
        offload_optimizer=config.optimizer.offload,
        distillation=distillation(config),
    )


def lora_settings(config: Config) -> lora.LoraSettings | None:
    """Returns what adapters are trained; None where all weights are."""
    c = config.lora
    return lora.LoraSettings(rank=c.rank, alpha=c.alpha, targets=tuple(c.targets)) if c.rank else None


def distillation(config: Config) -> Distillation | None:
    """Returns how responses are scored by a teacher that has seen feedback; None where none is."""
    d = config.distil
    if d.kind == "none":
        return None
    length = config.refine.max_prompt_length + config.max_response_length
    shape = PackShape(config.packing.rows, length, num_slots=_num_slots(config))
    return Distillation(d.top_tokens, shape, average_rate=d.average_rate if d.teacher == "average" else 0.0)


def loss_settings(config: Config) -> LossSettings:
    """Returns the arguments of the loss, step 7."""
    return LossSettings(
        max_length=config.max_response_length,
        aggregate=config.objective.aggregate,
        initial_ratio=config.objective.initial_ratio,
        refined_ratio=config.objective.refined_ratio,
        gamma=config.objective.gamma,
        clip_low=config.objective.clip_low,
        clip_high=config.objective.clip_high,
        clip_initial=config.objective.clip_initial,
        clip_refined=config.objective.clip_refined,
        kl_coef=config.objective.kl_coef,
        kl=config.objective.kl,
        entropy_coef=config.objective.entropy_coef,
        tis_cap=config.objective.tis_cap,
        tis_level=config.objective.tis_level,
        distil_coef=0.0 if config.distil.kind == "none" else config.distil.coef,
        divergence=config.distil.divergence,
        temperature=config.sampling.temperature,
        num_responses=config.num_responses,
        num_refinements=config.refine.num_kept,
    )


def _pack_shape(config: Config) -> PackShape:
    return PackShape(
        num_token_rows=config.packing.rows,
        pack_length=config.packing.length or config.max_prompt_length + config.max_response_length,
        num_slots=_num_slots(config),
        sampler_logp=config.objective.tis_cap > 0,
    )


def _num_slots(config: Config) -> int:
    return config.packing.slots or 64 * config.packing.rows
