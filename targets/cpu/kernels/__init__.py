"""The kernels: each file makes functions of one kind for given shapes."""
