"""pwopt: a graph optimizer and compiler for CNNs in ONNX, built around 1x1 convolutions.

    import pwopt

    result = pwopt.optimize("model.onnx")
    executable = pwopt.compile(result.graph, threads=1)
    outputs = executable.run({"input": x})

Names load on first use, so that ``import pwopt`` costs neither TVM nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pwopt.comparison import Comparison, compare
    from pwopt.driver import Optimized, compile, optimize
    from pwopt.errors import (
        CodegenError,
        FrontendError,
        IRError,
        NumericsError,
        PassError,
        PwoptError,
        UsageError,
        VerificationError,
    )
    from pwopt.frontend import load, save
    from pwopt.hardware import Hardware
    from pwopt.ir.graph import Graph
    from pwopt.report import Report
    from pwopt.targets.executable import Executable, load_executable

__all__ = [
    "CodegenError",
    "Comparison",
    "Executable",
    "FrontendError",
    "Graph",
    "Hardware",
    "IRError",
    "NumericsError",
    "Optimized",
    "PassError",
    "PwoptError",
    "Report",
    "UsageError",
    "VerificationError",
    "__version__",
    "compare",
    "compile",
    "load",
    "load_executable",
    "optimize",
    "save",
]

__version__ = "0.1.0"

_ERRORS = tuple(name for name in __all__ if name.endswith("Error"))
_MODULES = {
    "Comparison": "comparison",
    "Executable": "targets.executable",
    "Graph": "ir.graph",
    "Hardware": "hardware",
    "Optimized": "driver",
    "Report": "report",
    "compare": "comparison",
    "compile": "driver",
    "load": "frontend",
    "load_executable": "targets.executable",
    "optimize": "driver",
    "save": "frontend",
    **dict.fromkeys(_ERRORS, "errors"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pwopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pwopt.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
