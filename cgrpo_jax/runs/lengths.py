"""The lengths of a run, in tokens: those that its configuration leaves at 0 follow from the model's context.

The rule is the paper's shares, whose longest stage takes 16384 tokens:

| key | at 0 |
|---|---|
| `max_prompt_length` | 1/8 of the model's context |
| `max_response_length` | 3/8 of it; no more than the refine prompt leaves, where that is given |
| `critic.max_length` | 1/16 of it |
| `critic.max_prompt_length` | question, response and 1024 tokens around them, as far as the critic's context goes |
| `refine.max_prompt_length` | question, response, critique and 1024 tokens, as far as the refiner's context goes |
"""

from typing import Any

from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config

KEYS = (
    "max_prompt_length",
    "max_response_length",
    "critic.max_length",
    "critic.max_prompt_length",
    "refine.max_prompt_length",
)
_WORDS = 1024  # tokens of a prompt besides what it quotes


def chosen(
    config: Config, *, context: int, critic_context: int | None, refiner_context: int | None = None
) -> dict[str, Any]:
    """Returns the lengths that the configuration leaves at 0, by key; empty where it gives all.

    Args:
      config: the configuration, checked.
      context: tokens that the policy was made for.
      critic_context: likewise, of the model that writes critiques; None where it is not known, as behind an endpoint.
      refiner_context: likewise, of a frozen refiner; None where the policy refines.

    Example:
      of a configuration with all of them at 0, and a context of 16384 tokens
      {"max_prompt_length": 2048, "max_response_length": 6144, "critic.max_length": 1024,
       "critic.max_prompt_length": 9216, "refine.max_prompt_length": 10240}
    """
    question = config.max_prompt_length or max(1, context // 8)
    response = config.max_response_length or min(3 * context // 8, context - config.refine.max_prompt_length)
    response = max(1, response)
    critique = config.critic.max_length or max(1, (critic_context or context) // 16)
    asked = question + response + _WORDS
    if critic_context is not None:
        asked = min(asked, critic_context - critique)
    refined = min(question + response + critique + _WORDS, (refiner_context or context) - response)
    values = dict(zip(KEYS, (question, response, critique, max(1, asked), max(1, refined)), strict=True))
    return {key: value for key, value in values.items() if not config_lib.value(config, key)}


def filled(
    config: Config, *, context: int, critic_context: int | None, refiner_context: int | None = None
) -> tuple[Config, str]:
    """Returns the configuration with all lengths, and a line that says which were chosen; empty where none was.

    Args:
      config, context, critic_context, refiner_context: as for `chosen`.
    """
    found = chosen(config, context=context, critic_context=critic_context, refiner_context=refiner_context)
    if not found:
        return config, ""
    listed = ", ".join(f"{key} {value}" for key, value in found.items())
    return config_lib.replaced(config, found), f"lengths from the model's context of {context} tokens: {listed}"
