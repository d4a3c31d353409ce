"""From a configuration to what trains the policy: optimiser, rate, loss, packed shape, adapters."""

from cgrpo_jax.models import lora
from cgrpo_jax.runs.config import Config
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training.learner import LearnerSettings
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import LossSettings


def learner_settings(config: Config) -> LearnerSettings:
    """Returns how the policy is trained, steps 7 and 8 of the algorithm."""
    learning_rate = optimizer_lib.make_schedule(
        config.schedule,
        peak=config.learning_rate,
        warmup_steps=config.warmup_updates,
        num_steps=config.num_iterations * config.updates_per_batch,
        final_share=config.final_learning_rate_share,
    )
    optimizer = optimizer_lib.make_optimizer(
        config.optimizer,
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        b1=config.adam_b1,
        b2=config.adam_b2,
        mu_dtype=config.adam_mu_dtype or None,
    )
    return LearnerSettings(
        optimizer=optimizer,
        learning_rate=learning_rate,
        loss=_loss_settings(config),
        shape=_pack_shape(config),
        updates_per_batch=config.updates_per_batch,
        rescore=config.old_logp == "trainer",
        remat=config.remat,
        max_nonfinite_updates=config.max_nonfinite_updates,
        adapters=lora_settings(config),
        offload_optimizer=config.offload_optimizer,
    )


def lora_settings(config: Config) -> lora.LoraSettings | None:
    """Returns what adapters are trained; None where all weights are."""
    c = config.lora
    return lora.LoraSettings(rank=c.rank, alpha=c.alpha, targets=tuple(c.targets)) if c.rank else None


def _loss_settings(config: Config) -> LossSettings:
    return LossSettings(
        max_length=config.max_response_length,
        aggregate=config.aggregate,
        gamma=config.gamma,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        clip_initial=config.clip_initial,
        clip_refined=config.clip_refined,
        kl_coef=config.kl_coef,
        entropy_coef=config.entropy_coef,
        temperature=config.temperature,
        num_responses=config.num_responses,
        num_refinements=config.num_refinements,
    )


def _pack_shape(config: Config) -> PackShape:
    return PackShape(
        num_token_rows=config.pack_rows,
        pack_length=config.pack_length or config.max_prompt_length + config.max_response_length,
        num_slots=config.pack_slots or 64 * config.pack_rows,
    )
