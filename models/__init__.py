"""Reference models, labelled data and small graph builders for tests and benchmarks.

`registry` lists every network by name: `blocks` are the small graphs that tests are written
against, `plain`, `branching` and `residual` whole networks with seeded weights, `trained` the small
ones trained on Fashion-MNIST, `suite` the fourteen that pwopt is measured on. `datasets` has the
labelled data, `store` the files that have to be fetched first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ == "models":
    raise ImportError("import pwopt.models, not models: the folder is part of the pwopt package")

if TYPE_CHECKING:
    from pwopt.models.blocks import BLOCKS
    from pwopt.models.datasets import labelled_data
    from pwopt.models.registry import REGISTRY, entry
    from pwopt.models.suite import SUITE, SuiteModel, load_suite
    from pwopt.models.trained import TRAINED

__all__ = [
    "BLOCKS",
    "REGISTRY",
    "SUITE",
    "TRAINED",
    "SuiteModel",
    "entry",
    "labelled_data",
    "load_suite",
]

# Loaded on first use: the command line mounts pwopt.models.cli and must not pay for onnx.
_MODULES = {
    "BLOCKS": "blocks",
    "REGISTRY": "registry",
    "TRAINED": "trained",
    "entry": "registry",
    "labelled_data": "datasets",
    **dict.fromkeys(("SUITE", "SuiteModel", "load_suite"), "suite"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pwopt.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pwopt.models.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
