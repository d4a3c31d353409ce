"""From a configuration to a run on disk; this room alone reads the configuration. See README.md."""
