"""NVIDIA's driver emulated on host memory, and checks that run with it in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pwopt.targets.cuda.toolchain import nvrtc_include_folders

ROOT = Path(__file__).parents[4]
_HERE = Path(__file__).parent


def build(folder: Path) -> None:
    """Builds the driver and kernels for it."""
    headers = nvrtc_include_folders()
    assert headers is not None
    shared = ["g++", "-shared", "-fPIC", "-O1", *(f"-I{path}" for path in headers)]
    driver = ["-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", str(_HERE / "libcuda.cpp"), "-ldl"]
    subprocess.run([*shared, *driver], cwd=folder, check=True)
    kernels = ["-o", "kernels.so", str(_HERE / "kernels.cpp")]
    subprocess.run([*shared, *kernels], cwd=folder, check=True)


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to find the driver, and pwopt."""
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}


def check(name: str, folder: Path, *, script: str = "checks", code: int = 0, **more: str) -> None:
    """Runs a check of a script in this folder in a process that has the driver.

    Args:
        name: of the check.
        folder: of :func:`build`.
        script: that holds the check.
        code: that the process ends with.
        more: environment.
    """
    command = ["-W", "error", str(_HERE / f"{script}.py"), name, str(folder)]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment(folder) | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert not done.stderr
