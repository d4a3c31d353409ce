"""The quickstart with LoRA."""

from configs import quickstart


def get_config():
    """Returns the configuration of the quickstart that trains adapters."""
    c = quickstart.get_config()
    c.lora.rank = 16
    c.lora.alpha = 16.0
    c.learning_rate = 3e-3
    return c
