"""Critique-GRPO in JAX (arXiv 2506.03106): learn to reason from rewards and natural-language critiques."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # Python is looking for the module of `python -m cgrpo_jax.NAME`
    from cgrpo_jax import interrupts

    interrupts.end_while_importing()
