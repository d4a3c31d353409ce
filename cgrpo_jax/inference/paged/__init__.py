"""A KV cache of pages: who holds which, attention over them, and the engine's slots with them; see README.md."""
