"""Facts of NVIDIA's architectures and of a few GPUs: limits, occupancy, peaks for rooflines.

Limits are those of the table "Technical Specifications per Compute Capability" of the CUDA C++
Programming Guide; peaks are the dense rates of NVIDIA's data sheets, products of 16-bit numbers
accumulated in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pwopt.errors import UsageError

WARP = 32
MAX_THREADS_PER_BLOCK = 1024
MAX_REGISTERS_PER_THREAD = 255
REGISTERS_PER_SM = 65536
_REGISTER_UNIT = 256  # registers of a warp are allocated in pieces of so many
_WARP_UNIT = 4  # an SM's registers are divided among four schedulers
_SHARED_UNIT = 128  # bytes
_SHARED_RESERVED = 1024  # bytes of every block that the system takes


@dataclass(frozen=True)
class Arch:
    """What machine code is generated for.

    Attributes:
        name: the compiler's, e.g. ``sm_80``.
        shared_per_block: bytes of shared memory that a block may ask for.
        shared_per_sm: bytes of shared memory of a multiprocessor.
        threads_per_sm: resident at a time.
        blocks_per_sm: likewise.
        wgmma: whether there are warpgroup products and the tensor memory accelerator.
    """

    name: str
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    wgmma: bool = False

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, e.g. (8, 0)."""
        digits = self.name.removeprefix("sm_").rstrip("a")
        return int(digits[:-1]), int(digits[-1])

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU can run its machine code.

        Code runs on later GPUs of the same major version, but for that of ``sm_90a``, which uses
        what no other has.
        """
        if self.name.endswith("a"):
            return capability == self.capability
        return capability[0] == self.capability[0] and capability[1] >= self.capability[1]

    def blocks(self, threads: int, registers: int, shared_bytes: int = 0) -> int:
        """Blocks of a kernel that a multiprocessor holds at a time; 0 if not even one.

        Args:
            threads: of a block.
            registers: of a thread.
            shared_bytes: of a block, static and dynamic together.
        """
        if threads > MAX_THREADS_PER_BLOCK or shared_bytes > self.shared_per_block:
            return 0
        warps = math.ceil(threads / WARP)
        per_warp = _rounded(max(registers, 1) * WARP, _REGISTER_UNIT)
        resident = REGISTERS_PER_SM // per_warp // _WARP_UNIT * _WARP_UNIT
        shared = _rounded(shared_bytes + _SHARED_RESERVED, _SHARED_UNIT)
        return min(
            self.blocks_per_sm,
            self.threads_per_sm // WARP // warps,
            resident // warps,
            self.shared_per_sm // shared,
        )

    def occupancy(self, threads: int, registers: int, shared_bytes: int = 0) -> float:
        """Resident warps over the most that there can be; arguments as of :meth:`blocks`."""
        warps = math.ceil(threads / WARP) * self.blocks(threads, registers, shared_bytes)
        return warps / (self.threads_per_sm // WARP)


_KB = 1024
ARCHS = {
    a.name: a
    for a in (
        Arch("sm_80", 163 * _KB, 164 * _KB, 2048, 32),
        Arch("sm_86", 99 * _KB, 100 * _KB, 1536, 16),
        Arch("sm_89", 99 * _KB, 100 * _KB, 1536, 24),
        Arch("sm_90", 227 * _KB, 228 * _KB, 2048, 32),
        Arch("sm_90a", 227 * _KB, 228 * _KB, 2048, 32, wgmma=True),
    )
}
DEFAULT_ARCH = "sm_80"  # its code runs on sm_86 and sm_89, too


def arch(name: str) -> Arch:
    """The architecture of a name.

    Raises:
        UsageError: pwopt generates no code for it.
    """
    if name not in ARCHS:
        from pwopt.errors import nearest

        hint = nearest(name, tuple(ARCHS))
        raise UsageError(f"--arch {name}: unknown architecture{hint}; {', '.join(ARCHS)}")
    return ARCHS[name]


def archs(text: str) -> tuple[Arch, ...]:
    """The architectures of ``sm_80,sm_90a``, each once.

    Raises:
        UsageError: pwopt generates no code for one of them, or none is named.
    """
    names = dict.fromkeys(part.strip() for part in text.split(","))
    return tuple(arch(name) for name in names)


def best(names: Iterable[str], capability: tuple[int, int]) -> str | None:
    """The architecture among ``names`` whose code is the best that a GPU runs, or None.

    Args:
        names: of architectures.
        capability: of the GPU.
    """
    fitting = [ARCHS[n] for n in names if n in ARCHS and ARCHS[n].runs_on(capability)]
    return max(fitting, key=lambda a: (a.capability, a.wgmma)).name if fitting else None


def native(capability: tuple[int, int]) -> str | None:
    """The architecture to generate code for on a GPU, or None where there is none."""
    return best(ARCHS, capability)


@dataclass(frozen=True)
class Gpu:
    """A GPU, for rooflines.

    Attributes:
        name: NVIDIA's.
        arch: what to generate code for.
        multiprocessors: their number.
        half_tflops: peak of float16 and bfloat16 products accumulated in float32, TFLOP/s.
        tf32_tflops: of TF32 products.
        float_tflops: of float32 without tensor cores.
        bandwidth_gbps: of its memory, GB/s.
        l2_mib: level-2 cache, MiB.
    """

    name: str
    arch: str
    multiprocessors: int
    half_tflops: float
    tf32_tflops: float
    float_tflops: float
    bandwidth_gbps: float
    l2_mib: int

    def tflops(self, precision: str) -> float:
        """Peak rate of ``fp16``, ``bf16``, ``tf32`` or ``fp32``, TFLOP/s."""
        rates = {"tf32": self.tf32_tflops, "fp32": self.float_tflops}
        return rates.get(precision, self.half_tflops)

    def roofline_us(self, flop: float, moved_bytes: float, precision: str) -> float:
        """The least time that work takes, microseconds.

        Args:
            flop: two per multiply-add.
            moved_bytes: read from and written to memory.
            precision: of the products.
        """
        return max(flop / self.tflops(precision) * 1e-6, moved_bytes / self.bandwidth_gbps * 1e-3)


GPUS = {
    g.name: g
    for g in (
        Gpu("A100-SXM4-80GB", "sm_80", 108, 312.0, 156.0, 19.5, 2039.0, 40),
        Gpu("A100-SXM4-40GB", "sm_80", 108, 312.0, 156.0, 19.5, 1555.0, 40),
        Gpu("A10", "sm_86", 72, 125.0, 62.5, 31.2, 600.0, 6),
        Gpu("GeForce RTX 3090", "sm_86", 82, 71.0, 35.6, 35.6, 936.0, 6),
        Gpu("L4", "sm_89", 58, 121.0, 60.0, 30.3, 300.0, 48),
        Gpu("GeForce RTX 4090", "sm_89", 128, 165.2, 82.6, 82.6, 1008.0, 72),
        Gpu("H100 PCIe", "sm_90a", 114, 756.0, 378.0, 51.0, 2000.0, 50),
        Gpu("H100 80GB HBM3", "sm_90a", 132, 989.4, 494.7, 66.9, 3350.0, 50),
        Gpu("H200", "sm_90a", 132, 989.4, 494.7, 66.9, 4800.0, 50),
    )
}


_USUAL = {
    "sm_80": "A100-SXM4-80GB",
    "sm_86": "A10",
    "sm_89": "L4",
    "sm_90": "H200",
    "sm_90a": "H200",
}


def usual_gpu(arch: Arch) -> Gpu:
    """The GPU that code is made for where nothing is known but its architecture."""
    return GPUS[_USUAL[arch.name]]


def gpu(device_name: str) -> Gpu | None:
    """The GPU of the name that the driver gives, e.g. ``NVIDIA A10``, or None if unknown."""
    matching = [g for g in GPUS.values() if re.search(rf"\b{g.name}\b", device_name)]
    return max(matching, key=lambda g: len(g.name), default=None)


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit
