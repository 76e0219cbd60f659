"""What machine code of the CUDA target is made of, for a block."""

from __future__ import annotations

from dataclasses import replace

from pwopt.bench import tables
from pwopt.bench.cuda_evidence import KernelEvidence, measure


def test_kernels_of_a_block() -> None:
    lines: list[str] = []
    rows = list(measure(["squeeze_excite"], [2], ["sm_80"], progress=lines.append))
    assert lines == ["squeeze_excite, batch 2, sm_80"]
    assert {r.kind for r in rows} >= {"conv", "gemv", "reduce"}
    for row in rows:
        assert not row.problem, (row.kernel, row.problem)
        assert bool(row.tensor_core_instructions) == (row.kind == "conv")
        assert 0 < row.occupancy <= 1
        assert row.registers > 0
        assert row.predicted_us > 0
    assert tables.evidence_table(rows).row_count == len({r.kind for r in rows})
    conv = next(r for r in rows if r.kind == "conv")
    assert replace(conv, tensor_core_instructions=0).problem == "no tensor cores"
    assert "8 bytes spilled" in replace(conv, spill_bytes=8).problem
    assert replace(conv, occupancy=0.0).problem == "does not fit a multiprocessor"
    assert isinstance(conv, KernelEvidence)
