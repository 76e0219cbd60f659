"""Memory is measured in processes of their own, and failures are noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pwopt.bench import tables
from pwopt.bench.memory import MemoryRow, _run, measure_memory
from pwopt.bench.resident import Resident
from pwopt.errors import PwoptError
from pwopt.models import SUITE
from tests.bench.test_bench import text_of


def test_memory_of_both_runtimes() -> None:
    (row,) = measure_memory([SUITE["mnist_conv"]])
    assert row.failure == ""
    assert row.model_bytes == len(SUITE["mnist_conv"].build().SerializeToString())
    assert row.executable_bytes > row.model_bytes
    for resident in row.resident.values():
        assert 0 < resident.peak < resident.process < 1 << 30
        assert 0 <= resident.private <= resident.process
        assert resident.libraries > 1 << 20
    assert row.passed
    assert "mnist_conv" in text_of(tables.memory_table([row]))


def test_a_network_that_fails_is_a_row() -> None:
    empty = replace(SUITE["mnist_conv"], build=onnx.ModelProto)
    (row,) = measure_memory([empty])
    assert row.failure.startswith("FrontendError: ")
    assert not row.passed
    assert "FrontendError" in text_of(tables.memory_table([row]))


def test_more_than_onnx_runtime_does_not_pass() -> None:
    small, large = Resident(10, 5, 20, 5), Resident(11, 5, 20, 5)
    assert MemoryRow("net", 1, 1, {"onnxruntime": large, "compiled": small}).passed
    assert not MemoryRow("net", 1, 1, {"onnxruntime": small, "compiled": large}).passed


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    model, inputs = tmp_path / "model.so", tmp_path / "inputs.npz"
    model.write_bytes(b"nothing")
    np.savez(inputs, x=np.zeros(1))
    with pytest.raises(PwoptError, match=r"compiled on model\.so: exit code 1: .*no executable"):
        _run("compiled", model, inputs, 1)
