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
    from pwopt.compilation import compile
    from pwopt.driver import Optimized, optimize
    from pwopt.errors import (
        CodegenError,
        FrontendError,
        IRError,
        NumericsError,
        PassError,
        PwoptError,
        TuningError,
        UsageError,
        VerificationError,
    )
    from pwopt.frontend import load, save
    from pwopt.hardware import Hardware
    from pwopt.ir.graph import Graph, Node
    from pwopt.pass_timing import measure_passes
    from pwopt.passes import register_pass
    from pwopt.pipeline import Applied, Context, Missed, Pass, Rewrite
    from pwopt.recovery import recover
    from pwopt.report import Report
    from pwopt.targets.executable import Executable, load_executable
    from pwopt.tuning import tune

__all__ = [
    "Applied",
    "CodegenError",
    "Comparison",
    "Context",
    "Executable",
    "FrontendError",
    "Graph",
    "Hardware",
    "IRError",
    "Missed",
    "Node",
    "NumericsError",
    "Optimized",
    "Pass",
    "PassError",
    "PwoptError",
    "Report",
    "Rewrite",
    "TuningError",
    "UsageError",
    "VerificationError",
    "__version__",
    "compare",
    "compile",
    "load",
    "load_executable",
    "measure_passes",
    "optimize",
    "recover",
    "register_pass",
    "save",
    "tune",
]

__version__ = "0.1.0"

_ERRORS = tuple(name for name in __all__ if name.endswith("Error"))
_MODULES = {
    "Comparison": "comparison",
    "Executable": "targets.executable",
    "Graph": "ir.graph",
    "Hardware": "hardware",
    "Node": "ir.graph",
    "Optimized": "driver",
    "Report": "report",
    "compare": "comparison",
    "compile": "compilation",
    "load": "frontend",
    "load_executable": "targets.executable",
    "measure_passes": "pass_timing",
    "optimize": "driver",
    "recover": "recovery",
    "register_pass": "passes",
    "save": "frontend",
    "tune": "tuning",
    **dict.fromkeys(("Applied", "Context", "Missed", "Pass", "Rewrite"), "pipeline"),
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
