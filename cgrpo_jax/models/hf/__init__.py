"""Hugging Face folders, in and out: configurations, weights, tokenizers; see README.md."""
