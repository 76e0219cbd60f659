"""What tuned schedules of CUDA kernels hold for, and which of them a build takes."""

from __future__ import annotations

from pwopt.targets.cuda.arch import Arch
from pwopt.targets.database import TuningDatabase

# Of the kernels; grows when one changes so that measurements of the old one mean nothing.
VERSION = 1


def machine_key(gpu: str, arch: Arch) -> str:
    """What measurements hold for: the GPU, by the driver's name, the code's architecture."""
    return f"{gpu}{_suffix(arch)}"


def tuned(database: TuningDatabase, arch: Arch, gpu: str | None) -> dict[str, str]:
    """The fastest known schedules by kernel, for code of an architecture.

    Args:
        database: of tuned schedules.
        arch: of the code.
        gpu: that it will run on, by the driver's name; what was measured there says more than what
            other GPUs of the architecture say. None if it is not known.

    Raises:
        TuningError: the database cannot be read.
    """
    own = machine_key(gpu, arch) if gpu is not None else ""
    found: dict[str, str] = {}
    for machine in database.machines():
        if machine.endswith(_suffix(arch)) and machine != own:
            found |= database.best(machine)
    for kernel, schedules in database.measured(own).items():
        if found.get(kernel) in schedules:
            del found[kernel]
    return found | database.best(own)


def _suffix(arch: Arch) -> str:
    return f" {arch.name} kernels {VERSION}"
