"""Facts of architectures: which code runs where, how many blocks fit, and the roofline."""

from __future__ import annotations

import pytest

from pwopt.errors import UsageError
from pwopt.targets.cuda.arch import ARCHS, GPUS, arch, archs, best, gpu, native


@pytest.mark.parametrize(
    ("name", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90", (9, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
    ],
)
def test_code_runs_on_its_own_major_version(
    name: str, capability: tuple[int, int], runs: bool
) -> None:
    assert arch(name).runs_on(capability) == runs


def test_the_best_code_of_a_fat_executable_is_taken() -> None:
    assert best(ARCHS, (9, 0)) == "sm_90a"
    assert best(("sm_80", "sm_86"), (8, 9)) == "sm_86"
    assert best(("sm_80", "sm_90"), (7, 5)) is None
    assert native((8, 7)) == "sm_86"
    assert native((12, 0)) is None


def test_lists_of_architectures() -> None:
    assert [a.name for a in archs("sm_80, sm_90a,sm_80")] == ["sm_80", "sm_90a"]
    with pytest.raises(UsageError, match="--arch sm_91: unknown architecture, did you mean 'sm_9"):
        archs("sm_80,sm_91")


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks"),
    [
        # From the occupancy calculator of NVIDIA's toolkit.
        ("sm_80", 256, 32, 0, 8),
        ("sm_80", 256, 64, 0, 4),
        ("sm_80", 128, 126, 96 * 1024, 1),
        ("sm_80", 128, 72, 64 * 1024, 2),
        ("sm_86", 1024, 32, 0, 1),
        ("sm_89", 32, 16, 0, 24),
        ("sm_86", 32, 16, 0, 16),
        ("sm_90a", 384, 168, 132096, 1),
        ("sm_80", 1024, 72, 0, 0),
        ("sm_80", 128, 32, 164 * 1024, 0),
        ("sm_90", 33, 255, 0, 4),
    ],
)
def test_blocks_of_a_multiprocessor(
    name: str, threads: int, registers: int, shared: int, blocks: int
) -> None:
    assert arch(name).blocks(threads, registers, shared) == blocks


def test_occupancy_is_the_share_of_warps() -> None:
    assert arch("sm_80").occupancy(256, 64) == 0.5
    assert arch("sm_86").occupancy(1024, 32) == pytest.approx(2 / 3)


def test_gpus_are_known_by_the_driver_s_name() -> None:
    known = {
        "NVIDIA A10": "A10",
        "NVIDIA A100-SXM4-80GB": "A100-SXM4-80GB",
        "NVIDIA H200": "H200",
        "NVIDIA H100 80GB HBM3": "H100 80GB HBM3",
        "NVIDIA GeForce RTX 4090": "GeForce RTX 4090",
    }
    for told, name in known.items():
        found = gpu(told)
        assert found is not None
        assert found.name == name
    assert gpu("NVIDIA A100-PCIE-40GB") is None
    assert gpu("NVIDIA L40S") is None
    assert all(g.arch in ARCHS for g in GPUS.values())


def test_rooflines_are_bounded_by_arithmetic_or_by_traffic() -> None:
    h200 = GPUS["H200"]
    n = 4096
    product = h200.roofline_us(2 * n**3, 3 * 2 * n * n, "fp16")
    assert product == pytest.approx(2 * n**3 / 989.4e12 * 1e6)
    assert h200.roofline_us(1.0, 4.8e9, "fp16") == pytest.approx(1000.0)
    assert h200.roofline_us(1e9, 0, "tf32") > h200.roofline_us(1e9, 0, "bf16")
