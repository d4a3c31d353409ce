"""Critique-GRPO in JAX (arXiv 2506.03106): learn to reason from rewards and natural-language critiques."""

__version__ = "0.1.0"
