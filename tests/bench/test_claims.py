"""The claims are those of the texts, and each is measured in every way."""

from __future__ import annotations

import pytest

from pwopt import cost, frontend
from pwopt.bench import tables
from pwopt.bench.claims import CLAIMS, Claim, ClaimRow, Pair, measure_claims
from tests.bench.test_bench import text_of


@pytest.mark.parametrize(
    ("claim", "parameters", "macs"),
    [
        (CLAIMS[0], (147_488, 16_416), (21_233_664, 2_359_296)),
        (CLAIMS[1], (73_856, 8_320), (75_497_472, 8_388_608)),
        (CLAIMS[2], (55_328, 6_176), (43_352_064, 4_816_896)),
        (CLAIMS[3], (153_632, 15_920), (120_422_400, 12_443_648)),
    ],
    ids=lambda each: each.title if isinstance(each, Claim) else "",
)
def test_work_is_that_of_the_texts(
    claim: Claim, parameters: tuple[int, int], macs: tuple[int, int]
) -> None:
    slow, fast = (frontend.load(model) for model in claim.models())
    assert (cost.parameters(slow), cost.parameters(fast)) == parameters
    assert (cost.graph_macs(slow), cost.graph_macs(fast)) == macs


def test_each_way_is_measured() -> None:
    claim = Claim(16, 9, slow=((24, 5),), fast=((8, 1), (24, 5)))
    (row,) = measure_claims(runs=2, claims=[claim])
    assert row.title == "16->24 @9x9: 1x1 to 8, 5x5 for 5x5"
    ways = [f"{kind}, {way}" for kind in ("compiled", "kernels") for way in ("direct", "Winograd")]
    assert list(row.measured) == ["ONNX Runtime", *ways]
    assert all(min(p.slow_ms, p.fast_ms, p.speedup) > 0 for p in row.measured.values())
    assert row.by_work == pytest.approx(16 * 24 * 25 / (16 * 8 + 8 * 24 * 25))


def test_a_claim_holds_where_it_was_measured() -> None:
    measured = {"ONNX Runtime": Pair(10.0, 1.0, 10.0), "compiled, direct": Pair(5.0, 1.0, 5.0)}
    row = ClaimRow("a claim", (900, 100), (9000, 1000), measured, reported=None)
    assert (row.claimed, row.holds_in) == (9.0, ["ONNX Runtime"])
    told = ClaimRow("a claim", (900, 100), (9000, 1000), measured, reported=23.0)
    assert (told.claimed, told.holds_in) == (23.0, [])
    lines = text_of(tables.claim_table([row])).splitlines()
    (held,) = (line for line in lines if "ONNX Runtime" in line)
    (missed,) = (line for line in lines if "compiled, direct" in line)
    assert "yes" in held
    assert "no" in missed
