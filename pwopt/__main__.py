"""The command line's front door: small, so that an early Ctrl-C finds it ready."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits."""
    try:
        from pwopt.cli import main as command_line
    except KeyboardInterrupt:
        print("pwopt: interrupted", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
