"""What a measurement depends on besides the model: versions, and the machine."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions of what takes part, the processor, and how many of its cores may be used."""
    from importlib.metadata import version

    import pwopt

    return {
        "pwopt": pwopt.__version__,
        "onnxruntime": version("onnxruntime"),
        "tvm": version("apache-tvm"),
        "onnx": version("onnx"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else platform.machine()
