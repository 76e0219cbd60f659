"""What tuned schedules of the CPU's kernels hold for, and those that come with pwopt."""

from __future__ import annotations

import json
from importlib import resources

from pwopt.hardware import Hardware

# By family and kernel; written by `pwopt tune MODEL --export FILE`.
SHIPPED = resources.files("pwopt.targets").joinpath("schedules.json")

# Of the kernels; grows when one changes so that measurements of the old one mean nothing.
VERSION = 1


def family_key(hardware: Hardware) -> str:
    """What shipped schedules hold for: processors with the same vectors and the same caches a core.

    Neither the name that LLVM knows it by, nor the cache that the cores share, which virtual
    machines report as they like, tell more about a schedule.
    """
    sizes = f"{hardware.l1_bytes // 1024}/{hardware.l2_bytes // 1024}"
    return f"{_vectors(hardware)} {sizes}K kernels {VERSION}"


def machine_key(hardware: Hardware) -> str:
    """What measurements hold for: the processor, its vectors and caches, and our kernels."""
    caches = (hardware.l1_bytes, hardware.l2_bytes, hardware.l3_bytes)
    sizes = "/".join(str(size // 1024) for size in caches)
    return f"{hardware.mcpu} {_vectors(hardware)} {sizes}K kernels {VERSION}"


def _vectors(hardware: Hardware) -> str:
    return f"{hardware.lanes}x{hardware.registers}{' split' * hardware.splits}"


def shipped(hardware: Hardware) -> dict[str, str]:
    """The schedules that come with pwopt for a processor, by kernel; see :func:`family_key`."""
    found = json.loads(SHIPPED.read_text()).get(family_key(hardware), {})
    return {str(kernel): str(schedule) for kernel, schedule in found.items()}
