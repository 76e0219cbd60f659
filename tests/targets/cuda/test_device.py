"""Launch lists on a GPU: graphs, copies, tensors on the device, threads, errors.

There need be no GPU: the driver is emulated on host memory, beneath NVIDIA's own bindings; it runs
graphs in random orders that their edges allow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pwopt.targets.cuda.toolchain import nvrtc_include_folders

ROOT = Path(__file__).parents[3]
DRIVER = Path(__file__).parent / "driver"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver and kernels for it."""
    folder = tmp_path_factory.mktemp("driver")
    headers = nvrtc_include_folders()
    assert headers is not None
    shared = ["g++", "-shared", "-fPIC", "-O1", *(f"-I{path}" for path in headers)]
    driver = ["-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", str(DRIVER / "libcuda.cpp"), "-ldl"]
    subprocess.run([*shared, *driver], cwd=folder, check=True)
    kernels = ["-o", "kernels.so", str(DRIVER / "kernels.cpp")]
    subprocess.run([*shared, *kernels], cwd=folder, check=True)
    return folder


def check(name: str, folder: Path, **environment: str) -> None:
    script = ["-W", "error", str(DRIVER / "checks.py"), name, str(folder)]
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *script],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "arrays",
        "saved",
        "tensors",
        "threads",
        "nothing_is_left",
        "profile",
        "another_gpu",
        "a_fat_executable",
    ],
)
def test_with_the_emulated_driver(name: str, folder: Path) -> None:
    check(name, folder)


def test_a_driver_without_a_gpu(folder: Path) -> None:
    check("no_gpu", folder, EMULATED_NO_GPU="1")
