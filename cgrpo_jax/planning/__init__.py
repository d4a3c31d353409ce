"""What a run costs on a TPU slice that is not there; see README.md."""
