"""Who writes text: the generation engine, generators, and what keeps many questions in flight; see README.md."""
