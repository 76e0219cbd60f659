"""Benchmarks: everything that pwopt promises about speed and cost, measured by one command.

python -m pwopt.bench            # the fourteen networks: correctness and latency
python -m pwopt.bench --all      # and kernels, building, and graphs of up to 100,000 nodes
"""
