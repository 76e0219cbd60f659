"""``python -m pwopt.bench``: the same as ``pwopt bench``."""

from __future__ import annotations

import sys

from pwopt.cli import run

if __name__ == "__main__":
    sys.exit(run(["bench", *sys.argv[1:]]))
