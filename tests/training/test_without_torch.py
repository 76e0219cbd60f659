"""Where PyTorch is not installed, one line says what to install."""

from __future__ import annotations

import subprocess
import sys


def test_a_missing_torch_is_a_usage_error() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pwopt.errors import UsageError\n"
        "try: import pwopt.training\n"
        "except UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "training needs PyTorch: pip install 'pwopt[train]'"
