"""Critique-GRPO in JAX (arXiv 2506.03106): learn to reason from rewards and natural-language critiques."""

import sys

__version__ = "0.1.0"

# Python is looking for the module of `python -m cgrpo_jax.NAME`.
if sys.argv[:1] == ["-m"] and any(argument.startswith("cgrpo_jax.") for argument in sys.orig_argv):
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()
