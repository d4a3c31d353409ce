"""What a checkpoint can do: benchmarks, diagnosis, estimators with intervals; see README.md."""
