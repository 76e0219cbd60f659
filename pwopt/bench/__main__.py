"""``python -m pwopt.bench``."""

from __future__ import annotations

from pwopt.bench.cli import main

if __name__ == "__main__":
    main()
