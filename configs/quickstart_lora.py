"""The quickstart with LoRA: adapters of 0.12 M parameters learn what its warm-started weights of 1.0 M lack.

    python -m cgrpo_jax.train --config=configs/quickstart_lora.py --workdir=runs/quickstart_lora

SECONDS_LINE
Held-out pass@1 goes from 0.40 to between 0.82 and 0.93 (seeds 0, 1, 2; mean 0.89): less than the quickstart, which
trains all weights and reaches 0.92 to 0.98 with these seeds. Each run is in results/quickstart_lora.json.
"""

from configs import quickstart


def get_config():
    """Returns the configuration of the quickstart that trains adapters."""
    c = quickstart.get_config()

    # Chosen on other facts, questions and seed (data.seed 1, seed 3), where all of rank 8, 16 and 32, and rank 8 in the
    # MLP or 16 in attention alone, reach 0.97 to 0.99 and training all weights 1.00.
    c.lora.rank = 16
    c.lora.alpha = 16.0
    c.learning_rate = 3e-3  # six times that of all weights
    return c
