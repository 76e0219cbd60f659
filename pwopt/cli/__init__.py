"""The command line: ``pwopt optimize | compare | tune | recover | inspect | bench | ...``.

Data goes to stdout, progress and logs to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

from pwopt.cli.entry import DONE, FAILED, INTERRUPTED, TERMINATED, WRONG_USAGE, main, run

__all__ = ["DONE", "FAILED", "INTERRUPTED", "TERMINATED", "WRONG_USAGE", "main", "run"]
