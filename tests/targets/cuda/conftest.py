"""Fixtures of the CUDA tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.targets.cuda import driver


@pytest.fixture(scope="session")
def emulated_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the emulated driver and kernels for it."""
    folder = tmp_path_factory.mktemp("driver")
    driver.build(folder)
    return folder
