"""Whole networks and every lowering rule through the emulator, against ONNX Runtime."""

from __future__ import annotations

import pytest

from pwopt.models.datasets import labelled_data
from pwopt.models.registry import REGISTRY
from tests.targets.cuda.network_helpers import Job, check, job
from tests.targets.lowering_helpers import normal
from tests.targets.test_lowering import CASES

_BATCH = 24  # models whose kernels are compiled together
# Of these a node has no kernel, in the CPU target either.
ELSEWHERE = {"dropout_mask_is_an_output", "pooling_indices_are_an_output", "three_spatial_axes"}
_NAMES = [name for name in CASES if name not in ELSEWHERE]
BATCHES = [_NAMES[i : i + _BATCH] for i in range(0, len(_NAMES), _BATCH)]


@pytest.mark.parametrize("batch", range(len(BATCHES)))
def test_every_rule(batch: int) -> None:
    jobs: list[Job] = []
    for name in BATCHES[batch]:
        source, inputs = CASES[name]()
        jobs += [job(f"{name} {o}", source, inputs, optimized=o) for o in (False, True)]
    check(*jobs)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_blocks(precision: str) -> None:
    sizes = {
        "bottleneck": {"channels": 40, "width": 12, "size": 9, "stride": 2, "project": True},
        "inverted_residual": {"channels": 12, "expand": 3, "size": 7},
        "inception": {"channels": 24, "width": 8, "size": 6},
        "squeeze_excite": {"channels": 20, "reduced": 6, "size": 5},
        "dense_block": {"channels": 24, "growth": 12, "layers": 3, "size": 6},
        "fpn_head": {"channels": 16, "width": 12, "size": 8},
    }
    jobs = []
    for name, options in sizes.items():
        source = REGISTRY[name].build(**options)
        inputs = {
            i.name: normal(*(d.dim_value for d in i.type.tensor_type.shape.dim), seed=n)
            for n, i in enumerate(source.graph.input)
        }
        jobs.append(job(name, source, inputs, precision))
    check(*jobs)


@pytest.mark.parametrize("name", [n for n, e in REGISTRY.items() if e.kind == "fashion"])
def test_trained_networks_classify_as_in_onnx_runtime(name: str) -> None:
    source = REGISTRY[name].build()
    (port,) = source.graph.input
    pictures, _ = labelled_data(name, 3)
    for picture in pictures:
        each = job(name, source, {port.name: picture[None]})
        (got,) = check(each).values()
        (want,) = each.expected.values()
        assert got.argmax() == want.argmax()
