"""Kernel templates of the CUDA target."""
