"""The transformer, attention, adapters and log-probabilities, as pure functions; see README.md."""
