"""Kernels of generation."""
