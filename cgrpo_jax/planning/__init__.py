"""What a run costs on a TPU slice that you do not have; see README.md."""
