"""Benchmarks: everything that pwopt promises about speed and cost; ``pwopt bench`` runs them."""
