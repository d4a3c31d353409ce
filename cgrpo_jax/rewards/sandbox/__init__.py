"""Running and grading programs that a model wrote; see README.md."""
