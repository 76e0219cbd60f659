"""``python -m pwopt.models``: list the suite, fetch its files, write one of its models."""

from __future__ import annotations

from pwopt.models.cli import main

if __name__ == "__main__":
    main()
