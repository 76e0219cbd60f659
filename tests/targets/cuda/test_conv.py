"""Convolution kernels in the emulator: numerics over odd sizes, and faults that must be caught."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pwopt.errors import CodegenError
from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import source
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.packing import pack_conv, rounded_to_tf32
from pwopt.targets.cuda.kernels.tiling import FLOAT_SHAPES, SHAPES, Tile
from pwopt.targets.views import View
from pwopt.targets.windows import Window
from tests.targets.cuda import emulator
from tests.targets.cuda.conv_cases import (
    ADD_RELU,
    GATE,
    SMALL,
    Case,
    check,
    problem,
    random_case,
)
from tests.targets.cuda.emulator import EARLY, LATE, EmulationError

W3 = Window((3, 3), pads=(1, 1))
NARROW = replace(SMALL, row_bytes=64)

POINTWISE = {
    "residual": Case((1, 7, 7), (128, 64), program=ADD_RELU, extras=("full",)),
    "ragged_channels": Case((1, 14, 14), (116, 116), tile=NARROW),
    "few_channels": Case((2, 5, 5), (20, 9), tile=Tile(32, 32, 2, 1, 64, 2)),
    "one_channel_out": Case((1, 9, 5), (24, 1), tile=Tile(64, 16, 4, 1, 64, 2)),
    "to_float": Case((1, 9, 5), (40, 77), out_dtype="float32", tile=Tile(32, 64, 2, 2)),
    "to_nchw": Case((1, 6, 7), (40, 21), out_dtype="float32", nchw=True),
    "gate": Case((1, 8, 8), (64, 72), program=GATE, extras=("image", "channel")),
    "gate_odd": Case((2, 3, 3), (16, 13), program=GATE, extras=("image", "scalar")),
    "slices": Case((1, 6, 6), (24, 40), pixel=64, offset=16, out_pixel=96, out_offset=24),
    "narrow_slices": Case((1, 6, 6), (20, 20), pixel=36, offset=12, out_pixel=44, out_offset=4),
    "rows": Case((1, 1, 5), (512, 100), tile=Tile(16, 64, 1, 4)),
    "strided": Case((1, 15, 13), (40, 64), Window(strides=(2, 2))),
}
KERNELS = {
    "padded": Case((2, 9, 9), (64, 72), W3),
    "strided": Case(
        (1, 15, 14),
        (40, 64),
        Window((3, 3), (2, 2), pads=(1, 1)),
        ends=(1, 1),
        program=ADD_RELU,
        extras=("full",),
    ),
    "asymmetric": Case((1, 8, 10), (16, 24), Window((2, 5), pads=(0, 3)), ends=(1, 0), tile=NARROW),
    "dilated": Case(
        (1, 12, 12), (32, 32), Window((3, 3), dilations=(2, 3), pads=(2, 3)), ends=(2, 3)
    ),
    "row": Case((1, 9, 17), (24, 48), Window((1, 7), pads=(0, 3)), ends=(0, 3), tile=NARROW),
    "groups": Case((1, 8, 8), (128, 64), W3, groups=2, ends=(1, 1)),
    "many_groups": Case((1, 6, 6), (32, 64), W3, groups=8, ends=(1, 1)),
    "single_groups": Case((1, 6, 6), (24, 24), W3, groups=24, ends=(1, 1)),
    "image": Case((1, 17, 19), (4, 24), Window((7, 7), (2, 2), pads=(3, 3)), ends=(3, 3), pixel=4),
    "image_aligned": Case(
        (1, 12, 20), (4, 24), Window((7, 7), (2, 2), pads=(3, 3)), ends=(3, 3), pixel=4
    ),
    "image_dense": Case((1, 9, 9), (4, 16), W3, ends=(1, 1), pixel=4, tile=NARROW),
    "image_even": Case((2, 8, 8), (4, 32), Window((3, 3), (2, 2)), ends=(1, 1), pixel=4),
    "image_padded": Case((1, 9, 9), (3, 16), W3, ends=(1, 1)),
    "pairs": Case((1, 9, 8), (2, 16), Window((3, 3), (2, 2), pads=(1, 1)), ends=(1, 1), pixel=2),
}
TF32 = {
    "pointwise": Case((1, 7, 7), (64, 64), dtype="float32"),
    "odd": Case((1, 7, 5), (19, 27), W3, "float32", program=ADD_RELU, extras=("full",)),
    "strided": Case((1, 9, 9), (24, 40), Window((3, 3), (2, 2), pads=(1, 1)), "float32"),
    "image": Case(
        (1, 13, 13), (3, 24), Window((5, 5), (2, 2), pads=(2, 2)), "float32", ends=(2, 2)
    ),
    "one_channel": Case(
        (1, 9, 9), (1, 8), Window((5, 5), pads=(2, 2)), "float32", ends=(2, 2), pixel=1
    ),
    "groups": Case((1, 6, 6), (24, 36), W3, "float32", groups=2, ends=(1, 1)),
}
SPLITS = {
    "even": Case((1, 7, 7), (256, 64), tile=replace(SMALL, split=4, stages=3)),
    "uneven": Case(
        (1, 7, 7),
        (72, 100),
        W3,
        program=ADD_RELU,
        ends=(1, 1),
        extras=("full",),
        tile=replace(NARROW, split=3),
    ),
    "groups": Case((2, 5, 5), (128, 64), W3, groups=2, ends=(1, 1), tile=replace(SMALL, split=2)),
}
FLOATS = replace(SMALL, tensor_cores=False)
SIMT = {
    "pointwise": Case((1, 7, 7), (60, 64), dtype="float32", tile=FLOATS),
    "odd": Case(
        (2, 7, 5), (19, 27), W3, "float32", program=ADD_RELU, extras=("full",), tile=FLOATS
    ),
    "split": Case((1, 5, 5), (64, 37), W3, "float32", ends=(1, 1), tile=replace(FLOATS, split=3)),
    "large": Case(
        (1, 9, 9), (32, 100), dtype="float32", tile=Tile(128, 64, 2, 2, 64, 3, tensor_cores=False)
    ),
    "small": Case(
        (1, 9, 9), (32, 20), dtype="float32", tile=Tile(32, 32, 2, 2, tensor_cores=False)
    ),
    "image": Case(
        (1, 13, 13), (3, 24), Window((5, 5), (2, 2), pads=(2, 2)), "float32", tile=FLOATS
    ),
}


def test_pointwise() -> None:
    check({f"pointwise_{k}": problem(c) for k, c in POINTWISE.items()})


def test_kernels_strides_groups_and_images() -> None:
    check({f"kernel_{k}": problem(c) for k, c in KERNELS.items()})


def test_a_small_pixel_makes_a_window_row_one_tap() -> None:
    padded, dense = (problem(KERNELS[k]).geometry for k in ("image_padded", "image_aligned"))
    assert (padded.chunks, padded.align) == (9, 16)
    assert (dense.chunks, dense.lead, dense.align) == (7 * 4, 1, 16)


def test_bfloat16() -> None:
    cases = {
        "residual": POINTWISE["residual"],
        "gate": POINTWISE["gate_odd"],
        "image": KERNELS["image"],
    }
    check({f"bf16_{k}": problem(replace(c, dtype="bfloat16")) for k, c in cases.items()})


def test_tf32() -> None:
    check({f"tf32_{k}": problem(c) for k, c in TF32.items()})


def test_every_shape_of_tile() -> None:
    case = Case((1, 13, 13), (40, 130), program=ADD_RELU, extras=("full",))
    problems = {}
    for index, shape in enumerate((*SHAPES, *FLOAT_SHAPES)):
        cores = index < len(SHAPES)
        tile = Tile(*shape, (128, 64)[index % 2], 2 + index % 3, tensor_cores=cores)
        dtype = "float16" if cores else "float32"
        problems[f"tile_{index}"] = problem(replace(case, dtype=dtype, tile=tile))
    check(problems)


def test_split_reductions() -> None:
    check({f"split_{k}": problem(c) for k, c in SPLITS.items()})


def test_float32_without_tensor_cores() -> None:
    check({f"simt_{k}": problem(c) for k, c in SIMT.items()})


def test_random_convolutions() -> None:
    rng = random.Random(0)
    cases = [random_case(rng) for _ in range(16)]
    check({f"random_{i}": problem(c, i) for i, c in enumerate(cases) if c is not None})


@pytest.mark.fuzz
def test_many_random_convolutions(pytestconfig: pytest.Config) -> None:
    seed = random.randrange(1 << 32)
    for batch in range(-(-pytestconfig.getoption("--fuzz-examples") // 16)):
        rng = random.Random(seed + batch)
        cases = [random_case(rng) for _ in range(16)]
        try:
            check({f"random_{i}": problem(c, i) for i, c in enumerate(cases) if c is not None})
        except AssertionError as e:
            raise AssertionError(f"seed {seed + batch}: {e}") from e


def _edited(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


FAULTS: dict[str, Callable[[str], str]] = {
    "a wait too weak": lambda t: _edited(t, '"cp.async.wait_group 2;"', '"cp.async.wait_group 3;"'),
    "no barrier": lambda t: _edited(t, "    __syncthreads();\n}", "    ;\n}"),
    "copies not permuted": lambda t: _edited(
        t, "^ ((((int)threadIdx.x) & 63) >> 3)) * 8", "^ 0) * 8"
    ),
    "no zeros beside the image": lambda t: _edited(
        t, "= 0;\n    }\n    tvm", "= 16;\n    }\n    tvm"
    ),
    "no zeros behind the channels": lambda t: _edited(t, "= (1000 - max(", "= 16 + 0 * (max("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault: str) -> None:
    channels = 500 if "channels" in fault else 512
    faulty = problem(Case((1, 7, 7), (channels, 64), W3, ends=(1, 1)))
    kernel = faulty.kernel()
    text = FAULTS[fault](source({"faulty": kernel}, "sm_80"))
    library, expected = emulator.build(text), faulty.reference()
    for timing in (LATE, EARLY):
        try:
            y = faulty.run(library, "faulty", kernel, timing)
        except EmulationError:
            return
        if not np.allclose(y, expected, atol=1e-2):
            return
    pytest.fail("not caught")


def test_a_counter_that_is_not_reset_is_caught() -> None:
    faulty = problem(SPLITS["even"])
    kernel = faulty.kernel()
    text = _edited(source({"k": kernel}, "sm_80"), "if (*last) *counter = 0;", "")
    with pytest.raises(AssertionError, match="a counter was left"):
        faulty.run(emulator.build(text), "k", kernel, LATE)


def test_channels_apart_or_unaligned_are_refused() -> None:
    y = View.dense((1, 4, 4, 8), "float16")
    with pytest.raises(CodegenError, match="channels apart"):
        Geometry(View((1, 4, 4, 8), (128, 4, 1, 16), 0, "float16"), y)
    with pytest.raises(CodegenError, match="aligned to 2 bytes only"):
        Geometry(View((1, 4, 4, 8), (128, 32, 8, 1), 1, "float16"), y)


def test_rounding_to_tf32_keeps_ten_bits() -> None:
    x = np.array([1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 3.0, np.inf, 0.0], np.float32)
    expected = np.array([1 + 2**-10, 1, -1 - 2**-10, 3.0, np.inf, 0.0], np.float32)
    np.testing.assert_array_equal(rounded_to_tf32(x), expected)
    assert np.isnan(rounded_to_tf32(np.array([np.nan], np.float32))).all()


def test_weights_beyond_float16_are_its_largest() -> None:
    large = problem(Case((1, 2, 2), (8, 8)))
    large.weight[0, 0] = -1e6
    packed, _ = pack_conv(large.weight, large.bias, large.geometry, SMALL)
    assert packed.min() == -65504
    assert np.isfinite(packed).all()


def test_an_identity_program_leaves_the_sum() -> None:
    check({"identity": problem(replace(POINTWISE["rows"], program=Program()))})
