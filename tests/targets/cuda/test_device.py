"""Launch lists on a GPU: graphs, copies, tensors on the device, threads, errors.

There need be no GPU: the driver is emulated on host memory, beneath NVIDIA's own bindings; it runs
graphs in random orders that their edges allow.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.targets.cuda.driver import check


@pytest.mark.parametrize(
    "name",
    [
        "arrays",
        "saved",
        "tensors",
        "threads",
        "segments",
        "benchmark",
        "nothing_is_left",
        "profile",
        "another_gpu",
        "a_fat_executable",
    ],
)
def test_with_the_emulated_driver(name: str, emulated_driver: Path) -> None:
    check(name, emulated_driver)


def test_a_driver_without_a_gpu(emulated_driver: Path) -> None:
    check("no_gpu", emulated_driver, EMULATED_NO_GPU="1")


def test_passes_are_measured_by_the_clock_of_the_gpu(emulated_driver: Path) -> None:
    check("times_are_those_of_the_device", emulated_driver, script="pass_checks")
