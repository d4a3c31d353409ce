"""From train rows to new weights: packing, gradients, optimiser, checkpoints; see README.md."""
