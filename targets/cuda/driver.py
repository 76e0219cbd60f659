"""The CUDA driver: its bindings, its errors, and what its memory must be like."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pwopt.errors import CodegenError

if TYPE_CHECKING:
    from pwopt.targets.cuda.device import CudaDevice

ALIGNMENT = 64  # bytes; what kernels expect of every pointer
SLACK = 64  # bytes that kernels may read past the end of any array
_APART = 256  # bytes between the starts of arrays that share an allocation


@functools.cache
def bindings() -> Any:
    """The driver's bindings, once the driver is there."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CodegenError("cuda-bindings is not installed: pip install 'pwopt[cuda]'") from error
    try:
        (code,) = driver.cuInit(0)
    except Exception as error:  # the bindings have several errors for a library that is missing
        raise CodegenError("no NVIDIA driver was found") from error
    if int(code):
        raise CodegenError(f"the NVIDIA driver finds no GPU that it can use ({code.name})")
    return driver


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a function of the driver returns beside its code.

    Raises:
        CodegenError: the code is that of an error.
    """
    code, *results = function(*arguments)
    if int(code):
        raise CodegenError(f"the NVIDIA driver's {function.__name__} failed: {code.name}")
    return results[0] if len(results) == 1 else None


def quietly(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
    """Calls a function of the driver that gives something back."""
    function(*arguments)  # nobody could act on what it returns


def release(device: CudaDevice, undo: contextlib.ExitStack) -> None:
    """Gives back what belongs to a device."""
    with contextlib.suppress(CodegenError), device.active():  # the process may be ending
        undo.close()


def rounded(size: int) -> int:
    """A size that the next array may follow."""
    return -(-size // _APART) * _APART
