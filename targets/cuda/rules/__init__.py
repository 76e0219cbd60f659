"""Lowering rules of the CUDA target, by domain and operator."""
