"""Tasks that the package makes up, each with its lessons for a warm start."""
