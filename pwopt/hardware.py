"""What the passes, the cost model and the kernels need to know of a machine: one neutral record."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pwopt.errors import UsageError, nearest

TARGETS = ("cpu", "cuda")


@dataclass(frozen=True)
class Hardware:
    """A CPU core and its caches.

    Attributes:
        mcpu: LLVM's name of the processor.
        lanes: float32 elements of a vector register.
        registers: number of vector registers.
        masks: whether loads and stores can be masked for free (AVX-512).
        splits: whether a vector operation takes two turns, so that half a vector costs half.
        bf16: whether it adds up products of bfloat16 pairs in float32 (AVX512-BF16).
        l1_bytes, l2_bytes, l3_bytes: data cache sizes; L1 and L2 of one core.
        peak_gflops: estimate of the fp32 FMA peak of one core, GFLOP/s.
        bf16_gain: the peak of bfloat16 dot products over that of float32 multiply-adds.
        bandwidth_gbps: estimate of one core's memory read bandwidth, GB/s.
        l2_gbps, l3_gbps: the same of caches, reads and writes of streaming kernels together.
        launch_us: cost of calling one kernel, microseconds.
        efficiency: share of the peak that convolutions and products reach on data in cache.
        depthwise_efficiency: the same of depthwise convolutions, whose taps are loaded each time.
        tile_overhead: cost of a tile's start and end, as multiply-adds of each accumulator.
        overlap: share of the shorter of arithmetic and traffic that hides behind the other.
        triple: LLVM target triple, empty for the host's.
    """

    mcpu: str
    lanes: int
    registers: int
    masks: bool
    splits: bool = False
    bf16: bool = False
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 1024 * 1024
    l3_bytes: int = 32 * 1024 * 1024
    # Fitted to `pwopt bench calibrate`, one thread; here on a Xeon (Cascade Lake, 2.5
    # GHz, 36 MB of shared L3) on 2026-11-21, processor time beside other work.
    peak_gflops: float = 150.0  # 152 in registers
    bf16_gain: float = 2.0  # 235.9 over 118.0 in registers of Zen 4
    bandwidth_gbps: float = 12.0
    l2_gbps: float = 48.0
    l3_gbps: float = 20.0
    launch_us: float = 0.3
    efficiency: float = 0.95
    depthwise_efficiency: float = 0.3
    tile_overhead: float = 8.0
    overlap: float = 0.8
    triple: str = ""

    def for_channels(self, channels: int) -> Hardware:
        """The machine with vectors as wide as waste the least on so many channels."""
        half = self.lanes // 2
        odd = -(-channels // half) % 2  # a last vector that half of one could hold
        return replace(self, lanes=half) if self.splits and odd else self


AVX512 = Hardware("x86-64-v4", lanes=16, registers=32, masks=True)
# Zen 4 splits 512-bit operations in two. On an EPYC (3.7 GHz, 32 MB of L3 a die), 2026-11-21, idle.
ZEN4 = replace(
    AVX512,
    mcpu="znver4",
    splits=True,
    bf16=True,
    peak_gflops=118.0,
    bandwidth_gbps=36.0,
    l2_gbps=98.0,
    l3_gbps=74.0,
    launch_us=0.1,
    efficiency=1.0,
    depthwise_efficiency=0.95,
    tile_overhead=1.0,
    overlap=1.0,
)
AVX2 = Hardware(
    "x86-64-v3", lanes=8, registers=16, masks=False, l2_bytes=512 * 1024, peak_gflops=75.0
)
NEON = Hardware(
    "generic",
    lanes=4,
    registers=32,
    masks=False,
    l2_bytes=512 * 1024,
    peak_gflops=37.5,
    triple="aarch64-linux-gnu",
)

# LLVM processor names by vector extension; anything else that is x86 is taken for AVX2.
_AVX512_NAMES = re.compile(
    r"x86-64-v4|skylake-avx512|cascadelake|cooperlake|cannonlake|icelake|tigerlake|rocketlake"
    r"|sapphirerapids|emeraldrapids|graniterapids|diamondrapids|znver[456]|knl|knm"
)
_BF16_NAMES = re.compile(r"cooperlake|(sapphire|emerald|granite|diamond)rapids|znver[456]")
_NEON_NAMES = re.compile(r"cortex-|neoverse-|apple-|thunderx|a64fx|carmel|exynos|kryo|generic")
_AVX2_NAMES = re.compile(
    r"x86-64-v3|haswell|broadwell|skylake|alderlake|raptorlake|meteorlake|arrowlake|lunarlake"
    r"|sierraforest|grandridge|gracemont|core-avx2|znver[123]|pantherlake"
)


# Some of what named() knows, for hints and completion.
COMMON = (
    *("x86-64-v3", "x86-64-v4", "haswell", "skylake", "skylake-avx512", "cascadelake"),
    *("icelake-server", "sapphirerapids", "emeraldrapids", "graniterapids", "alderlake"),
    *("znver2", "znver3", "znver4", "znver5", "neoverse-n1", "neoverse-v1", "neoverse-v2"),
    *("cortex-a72", "cortex-a76", "apple-m1"),
)


def named(mcpu: str) -> Hardware:
    """The description of a processor by LLVM's name, for cross-compilation.

    Raises:
        UsageError: the name is of no processor family that pwopt generates code for.
    """
    if mcpu == ZEN4.mcpu:
        return ZEN4
    for pattern, base in ((_AVX512_NAMES, AVX512), (_NEON_NAMES, NEON), (_AVX2_NAMES, AVX2)):
        if pattern.match(mcpu):
            return replace(base, mcpu=mcpu, bf16=bool(_BF16_NAMES.match(mcpu)))
    raise UsageError(
        f"--mcpu {mcpu}: unknown processor{nearest(mcpu, COMMON)}; name one with AVX-512 "
        "(e.g. x86-64-v4, cascadelake, "
        "znver5), AVX2 (e.g. x86-64-v3, haswell, znver3) or NEON (e.g. neoverse-n1, cortex-a76)"
    )


@functools.cache
def host() -> Hardware:
    """The machine that this process runs on (Linux: /proc and /sys; conservative elsewhere)."""
    flags = _cpu_flags()
    if os.uname().machine in ("aarch64", "arm64"):
        base = replace(NEON, triple="")
    elif {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags:
        base = replace(ZEN4, mcpu=AVX512.mcpu) if _is_zen4() else AVX512
        base = replace(base, bf16="avx512_bf16" in flags)
    elif {"avx2", "fma"} <= flags:
        base = AVX2
    else:
        base = replace(AVX2, mcpu="x86-64-v2", lanes=4)
    caches = {level: _cache_bytes(level) for level in (1, 2, 3)}
    return replace(
        base,
        l1_bytes=caches[1] or base.l1_bytes,
        l2_bytes=caches[2] or base.l2_bytes,
        l3_bytes=caches[3] or base.l3_bytes,
    )


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _is_zen4() -> bool:
    # Family 25 is Zen 3, too, which has no AVX-512.
    return (_cpu_info("vendor_id"), _cpu_info("cpu family")) == ("AuthenticAMD", "25")


def _cpu_info(key: str) -> str:
    """What Linux says of the first processor, or nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    match = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1) if match else ""


def _cache_bytes(level: int) -> int | None:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) != level:
                continue
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if match:
            return int(match.group(1)) << {"": 0, "K": 10, "M": 20, "G": 30}[match.group(2)]
    return None


def check_target(target: str) -> None:
    """Makes sure that a target is one of :data:`TARGETS`.

    Raises:
        UsageError: it is not.
    """
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}{nearest(target, TARGETS)}; {list(TARGETS)}")
