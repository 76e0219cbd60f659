"""Training of a graph's own weights with PyTorch.

PyTorch is an optional extra, ``pip install 'pwopt[train]'``. Nothing else in pwopt imports
torch, and ``import pwopt`` does not load this package.
"""

from __future__ import annotations

from pwopt.errors import UsageError

try:
    import torch  # noqa: F401
except ImportError:
    raise UsageError("training needs PyTorch: pip install 'pwopt[train]'") from None

from pwopt.training.fit import Schedule, fit, predict, shifted_or_mirrored
from pwopt.training.torch_module import GraphModule

__all__ = ["GraphModule", "Schedule", "fit", "predict", "shifted_or_mirrored"]
