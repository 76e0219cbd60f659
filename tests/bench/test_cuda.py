"""The benchmark on a GPU, as far as it goes without one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pwopt import CodegenError
from pwopt.bench import cuda
from pwopt.cli.entry import run
from pwopt.models.registry import entry
from pwopt.targets.cuda import device


def has_gpu() -> bool:
    try:
        device.current()
    except CodegenError:
        return False
    return True


def test_every_case_can_be_made() -> None:
    cases = cuda.cases()
    assert len({case.file for case in cases}) == len(cases) == 15
    for case in cases:
        known = entry(case.model).options
        assert set(case.options) <= set(known)


def test_a_row_without_failure_has_a_share() -> None:
    row = cuda.CudaRow("x", ms={"pwopt": 2.0, "torch-compile": 4.0}, ratio={"torch-compile": 0.5})
    assert math.isnan(row.share)
    assert cuda.CudaRow("x", ms={"pwopt": 2.0}, roofline_ms=1.0).share == 0.5
    failed = cuda.CudaRow("y", failure="it did not run")
    assert cuda.table([row, failed]).row_count == 2


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "cuda", "--run", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "pwopt: no NVIDIA driver was found\n"
    assert run(["bench", "cuda", "--run", str(tmp_path), "--build", str(tmp_path)]) == 2
