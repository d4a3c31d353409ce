"""Pallas kernels for TPUs, the arithmetic that they share with plain JAX, and what a call costs."""
