"""One table of single operators, shared by the tests of inference and of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.shapes import ELEMENT_TYPES, infer
from pwopt.ir.types import Dim, TensorType

Operand = tuple[int, ...] | np.ndarray | None


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@dataclass(frozen=True)
class Case:
    """An operator on operands: a tuple is the shape of a float32 input, an array a constant.

    ``opsets`` are the versions to try; ``results`` the number of results.
    """

    op: str
    operands: Sequence[Operand]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opsets: Sequence[int] = (13, 17, 23)
    results: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        shown = [
            "-"
            if o is None
            else str(o.tolist())
            if isinstance(o, np.ndarray) and o.size < 9
            else str(getattr(o, "shape", o))
            for o in self.operands
        ]
        attributes = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}({' '.join(shown)}){attributes}".replace(" ", "").replace("\n", "")

    def graph(
        self, opset: int, shapes: Mapping[int, tuple[Dim, ...] | None] | None = None
    ) -> tuple[Graph, Node]:
        """The operator alone in a graph; ``shapes`` replaces shapes of inputs by slot."""
        graph = Graph("case", {"": opset})
        operands: list[Value | None] = []
        for slot, operand in enumerate(self.operands):
            if operand is None:
                operands.append(None)
            elif isinstance(operand, np.ndarray):
                operands.append(graph.constant(operand, f"c{slot}"))
            else:
                shape = operand if shapes is None else shapes.get(slot, operand)
                operands.append(graph.add_input(f"x{slot}", TensorType(self.dtype, shape)))
        types = infer(graph, self.op, "", self.attributes, operands, results=self.results)
        assert len(types) == self.results
        node = graph.add(self.op, operands, self.attributes, types=types, name="case")
        for index in range(self.results):
            graph.add_output(f"y{index}", node[index])
        return graph, node

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            f"x{slot}": _random(rng, operand, self.dtype)
            for slot, operand in enumerate(self.operands)
            if isinstance(operand, tuple)
        }


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith("int"):
        return rng.integers(-9, 9, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X4, X3, X5 = (2, 6, 9, 7), (2, 4, 11), (1, 2, 5, 6, 7)
OLD = (7, 8, 9, 10, 11, 12)
ALL = (7, 9, 10, 11, 13, 17, 23)
NUMBER = {name: number for number, name in ELEMENT_TYPES.items()}


def _windows() -> list[Case]:
    cases = []
    attributes: dict[str, Any]
    for attributes in (
        {},
        {"strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"strides": (2, 3), "dilations": (2, 1), "pads": (0, 2, 1, 0)},
        {"auto_pad": "SAME_UPPER", "strides": (2, 2)},
        {"auto_pad": "SAME_LOWER", "strides": (3, 2)},
        {"auto_pad": "SAME_UPPER", "dilations": (2, 2)},
        {"auto_pad": "VALID", "strides": (2, 1)},
    ):
        cases.append(Case("Conv", (X4, weights(8, 6, 3, 2)), attributes, ALL))
        cases.append(Case("Conv", (X4, (8, 6, 3, 2), (8,)), attributes))
        cases.append(
            Case("Conv", (X4, weights(6, 3, 3, 3), weights(6)), {**attributes, "group": 2})
        )
        cases.append(Case("Conv", (X4, weights(12, 1, 3, 3)), {**attributes, "group": 6}))
    cases += [
        Case("Conv", (X3, weights(5, 4, 3)), {"pads": (1, 1)}),
        Case("Conv", (X5, weights(3, 2, 1, 1, 1)), {"strides": (2, 2, 2)}),
        Case("Conv", ((1, 3, 1, 1), weights(2, 3, 1, 1))),
        Case("Conv", ((0, 4, 5, 5), weights(6, 2, 3, 3)), {"group": 2}),
        Case("ConvTranspose", ((0, 4, 5, 5), weights(4, 2, 3, 3))),
        Case("ConvTranspose", (X4, weights(6, 3, 3, 2)), {}, ALL),
        Case("ConvTranspose", (X4, weights(6, 2, 3, 3)), {"group": 3, "strides": (2, 2)}),
        Case(
            "ConvTranspose",
            (X4, weights(6, 2, 3, 3), weights(2)),
            {"strides": (2, 3), "pads": (1, 0, 1, 1), "output_padding": (1, 2)},
        ),
        Case("ConvTranspose", (X4, weights(6, 2, 3, 3)), {"dilations": (2, 2)}),
        Case("ConvTranspose", (X3, weights(4, 2, 4)), {"strides": (2,), "pads": (1, 1)}),
        Case(
            "ConvTranspose",
            (X4, weights(6, 2, 3, 3)),
            {"strides": (2, 2), "auto_pad": "SAME_UPPER"},
        ),
        Case(
            "ConvTranspose",
            (X4, weights(6, 2, 3, 3)),
            {"strides": (2, 2), "auto_pad": "SAME_LOWER"},
        ),
        Case(
            "ConvTranspose",
            (X4, weights(6, 2, 3, 3)),
            {"strides": (2, 2), "output_shape": (18, 14)},
        ),
    ]
    for op in ("MaxPool", "AveragePool", "LpPool"):
        kernel = {"kernel_shape": (3, 2)}
        for attributes in (
            {},
            {"strides": (2, 2)},
            {"strides": (2, 2), "pads": (1, 1, 1, 0)},
            {"auto_pad": "SAME_UPPER", "strides": (2, 2)},
            {"auto_pad": "SAME_LOWER", "strides": (2, 3)},
            {"auto_pad": "VALID", "strides": (2, 2)},
        ):
            cases.append(Case(op, (X4,), {**kernel, **attributes}, ALL))
        cases.append(Case(op, (X3,), {"kernel_shape": (4,), "strides": (3,)}))
        if op == "LpPool":
            continue
        for attributes in (
            {"strides": (2, 2)},
            {"strides": (3, 3), "pads": (1, 0, 1, 1)},
            {"strides": (4, 4), "pads": (1, 1, 1, 1)},
        ):
            cases.append(Case(op, (X4,), {**kernel, **attributes, "ceil_mode": 1}, (11, 17, 23)))
        newest = (12, 17) if op == "MaxPool" else (19, 22)
        dilated = {**kernel, "dilations": (2, 3), "strides": (2, 1)}
        cases.append(Case(op, (X4,), dilated, newest))
    include = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}
    cases.append(Case("AveragePool", (X4,), include, ALL))
    cases.append(
        Case("AveragePool", (X4,), {**include, "strides": (2, 3), "ceil_mode": 1}, (11, 19, 22))
    )
    cases.append(Case("MaxPool", (X4,), {"kernel_shape": (2, 2)}, (8, 12, 17), results=2))
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        cases += [Case(op, (x,), {}, (7, 13, 17)) for x in (X4, X3, X5)]
    return cases


def _elementwise() -> list[Case]:
    cases = [
        Case(op, (X4,), {}, ALL)
        for op in (
            *("Abs", "Ceil", "Elu", "Exp", "Floor", "HardSigmoid", "Identity", "LeakyRelu"),
            *("Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
        )
    ]
    cases += [Case(op, (X4,), {}, (9, 17)) for op in ("Erf", "Sign", "Sinh", "Atan")]
    cases += [
        Case("HardSwish", (X4,), {}, (14, 22)),
        Case("Gelu", (X4,), {}, (20, 23)),
        Case("Gelu", (X4,), {"approximate": "tanh"}, (20,)),
        Case("Mish", (X4,), {}, (18,)),
        Case("ThresholdedRelu", (X4,), {"alpha": 0.3}, (10, 17)),
        Case("Celu", (X4,), {"alpha": 0.7}, (12, 17)),
        Case("Clip", (X4,), {"min": -0.5, "max": 0.5}, (7, 10)),
        Case("Clip", (X4, np.array(-0.5, np.float32), None), {}, (11, 13)),
        Case("Clip", (X4, None, np.array(0.5, np.float32)), {}, (11, 17)),
        Case("PRelu", (X4, weights(6, 1, 1)), {}, ALL),
        Case("PRelu", (X4, weights(1)), {}, (9, 17)),
        Case("Cast", (X4,), {"to": NUMBER["int32"]}, (9, 13)),
        Case("Cast", (X4,), {"to": NUMBER["float64"]}, (9, 13)),
        Case("CastLike", (X4, ints(1)), {}, (15,)),
        Case("Dropout", (X4,), {}, (7, 10, 13)),
        Case("Dropout", (X4,), {}, (13,), results=2),
        Case("IsNaN", (X4,), {}, (9, 13)),
        Case("Not", (X4,), {}, (7, 17), dtype="bool"),
        Case("And", (X4, (7,)), {}, (7, 17), dtype="bool"),
        Case("Where", (np.array([True, False] * 3).reshape(6, 1, 1), X4, (7,)), {}, (9, 16)),
        Case("Sum", (X4, (9, 7), (1,)), {}, (8, 13)),
        Case("Mean", (X4, (9, 1)), {}, (8, 13)),
        Case("Max", (X4, (6, 1, 1), (7,)), {}, (8, 13)),
        Case("Max", (X4, X4), {}, (7,)),
        Case("Min", (X4, (2, 1, 1, 1)), {}, (8, 13)),
        Case("Mod", ((4, 3), ints(4, 5, -3)), {}, (10, 13), dtype="int64"),
        Case("Div", ((4, 3), ints(4, 5, -3)), {}, (7, 14), dtype="int64"),
    ]
    for op in ("Add", "Sub", "Mul", "Div"):
        cases += [
            Case(op, (X4, X4), {}, ALL),
            Case(op, (X4, (6, 1, 1)), {}, ALL),
            Case(op, ((7,), X4), {}, ALL),
            Case(op, ((6, 1, 7), (2, 1, 9, 1)), {}, ALL),
        ]
    cases += [Case(op, (X4, (7,)), {}, (11, 13)) for op in ("Equal", "Greater", "Less")]
    cases += [Case(op, (X4, (7,)), {}, (12, 16)) for op in ("GreaterOrEqual", "LessOrEqual")]
    return cases


def _layout() -> list[Case]:
    return [
        *(Case("Concat", (X4, (2, 3, 9, 7), X4), {"axis": 1}, ALL),),
        *(Case("Concat", (X4, X4), {"axis": -1}, (11, 17)),),
        *(Case("Split", (X4,), {"axis": 1, "split": (1, 2, 3)}, (7, 11), results=3),),
        *(Case("Split", (X4, ints(1, 2, 3)), {"axis": 1}, (13, 18), results=3),),
        *(Case("Split", (X4,), {"axis": 1}, (7, 13), results=3),),
        *(Case("Split", (X4,), {"axis": 2, "num_outputs": 2}, (18,), results=2),),
        *(Case("Reshape", (X4, ints(*s)), {}, ALL) for s in ((0, -1), (2, 6, 63), (-1, 7))),
        *(Case("Reshape", (X4, ints(0, 0, 3, -1)), {}, ALL),),
        *(Case("Reshape", (X4, ints(-1)), {"allowzero": 1}, (14,)),),
        *(Case("Flatten", (X4,), {"axis": a}, (9, 11, 17)) for a in (0, 1, 2, 4)),
        *(Case("Flatten", (X4,), {"axis": -2}, (11, 17)),),
        *(Case("Squeeze", ((1, 6, 1, 7),), {"axes": a}, (7, 11)) for a in ((0,), (0, 2))),
        *(Case("Squeeze", ((1, 6, 1, 7), ints(-2)), {}, (13,)),),
        *(Case("Squeeze", ((1, 6, 1, 7),), {}, ALL),),
        *(Case("Unsqueeze", (X3,), {"axes": (0, 3)}, (7, 11)),),
        *(Case("Unsqueeze", (X3, ints(-1, 1)), {}, (13, 21)),),
        *(Case("Expand", ((6, 1, 1), ints(2, 1, 5, 1)), {}, (8, 13)),),
        *(Case("Tile", (X4, ints(1, 2, 1, 3)), {}, (7, 13)),),
        *(Case("Transpose", (X4,), {"perm": (0, 2, 3, 1)}, ALL),),
        *(Case("Transpose", (X4,), {}, ALL),),
        *(
            Case("Slice", (X4,), {"starts": (1, -3), "ends": (9, -1), "axes": (1, 3)}, (7, 9)),
            Case("Slice", (X4,), {"starts": (0, 2), "ends": (1, 99)}, (7, 9)),
            Case("Slice", (X4, ints(1, -3), ints(9, -1), ints(1, 3)), {}, (10, 13)),
            Case("Slice", (X4, ints(5, -1), ints(0, -99), ints(1, -1), ints(-2, -3)), {}, (10, 13)),
            Case("Slice", (X4, ints(7), ints(2), ints(2)), {}, (13,)),
            Case("Slice", (X4, ints(0, 0), ints(2, 2**62)), {}, (13,)),
        ),
        *(Case("Gather", (X4, ints(0, 3)), {"axis": 1}, (7, 13)),),
        *(Case("Gather", (X4, np.array(1)), {"axis": -1}, (11, 13)),),
        *(Case("Gather", ((5,), np.array([[0, 1], [3, 4]])), {}, (7, 13)),),
        *(Case("GatherElements", (X3, np.zeros((2, 4, 3), np.int64)), {"axis": 2}, (11, 13)),),
        *(Case("Pad", (X4,), {"pads": (0, 0, 1, 2, 0, 0, 3, 4)}, (7, 10)),),
        *(Case("Pad", (X4, ints(0, 0, 1, 2, 0, 0, 3, 4)), {}, (11, 13, 19)),),
        *(Case("Pad", (X4, ints(0, 0, -1, 2, 0, 0, -3, 4)), {}, (11, 13)),),
        *(Case("Pad", (X4, ints(1, 2, 3, 4), None, ints(-1, 2)), {}, (18,)),),
        *(Case("Pad", (X4, ints(0, 0, 1, 2, 0, 0, 3, 4)), {"mode": "reflect"}, (11,)),),
        *(Case("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2}, (7, 13)),),
        *(Case("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}, (11,)),),
        *(Case("SpaceToDepth", ((1, 2, 4, 6),), {"blocksize": 2}, (7, 13)),),
        *(Case("Shape", (X4,), {}, ALL), Case("Shape", (X4,), {"start": 1, "end": -1}, (15,))),
        *(Case("Size", (X4,), {}, ALL),),
        *(Case("ConstantOfShape", (ints(2, 0, 3),), {}, (9, 20)),),
        *(Case("ConstantOfShape", (ints(2, 3),), {"value": np.array([7])}, (9,)),),
    ]


def _resize() -> list[Case]:
    roi = np.zeros(0, np.float32)
    up, down = floats(1, 1, 2, 1.5), floats(1, 1, 0.6, 0.4)
    cases = [
        Case("Upsample", (X4,), {"scales": (1.0, 1.0, 2.0, 3.0), "mode": m}, (7, 8))
        for m in ("nearest", "linear")
    ]
    cases += [Case("Upsample", (X4, floats(1, 1, 2, 2)), {}, (9,))]
    cases += [
        Case("Resize", (X4, floats(1, 1, 2, 2)), {"mode": m}, (10,)) for m in ("nearest", "linear")
    ]
    for scales in (up, down):
        for mode in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
            linear = {"mode": "linear", "coordinate_transformation_mode": mode}
            cases.append(Case("Resize", (X4, roi, scales), linear, (11, 13, 19)))
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            nearest = {"nearest_mode": rounding}
            cases.append(Case("Resize", (X4, None, scales), nearest, (13, 19)))
            nearest = {**nearest, "coordinate_transformation_mode": "asymmetric"}
            cases.append(Case("Resize", (X4, None, scales), nearest, (13, 19)))
    cases.append(Case("Resize", (X4, None, None, ints(2, 6, 13, 5)), {"mode": "linear"}, (13, 19)))
    cases.append(Case("Resize", ((1, 2, 4, 5), None, up), {"mode": "cubic"}, (13,)))
    axes = {"mode": "linear", "axes": (3, 2)}
    cases.append(Case("Resize", (X4, None, None, ints(13, 5)), axes, (18,)))
    return cases


def _reductions() -> list[Case]:
    cases = []
    for op in ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd", "ReduceSumSquare"):
        cases += [
            Case(op, (X4,), {"axes": (2, -1)}, (11, 13, 17)),
            Case(op, (X4, ints(2, -1)), {"keepdims": 0}, (18, 20)),
            Case(op, (X4,), {"keepdims": 0}, (11, 13)),
        ]
    cases += [
        Case("ReduceSum", (X4,), {"axes": (1,), "keepdims": 0}, (7, 11)),
        Case("ReduceSum", (X4, ints(1)), {}, (13, 18)),
        Case("ReduceSum", (X4,), {"noop_with_empty_axes": 1}, (13,)),
        Case("ArgMax", (X4,), {"axis": 1}, (11, 13)),
        Case("ArgMax", (X4,), {"axis": -1, "keepdims": 0}, (11, 13)),
        Case("TopK", (X4, ints(2)), {"axis": 1}, (10, 11), results=2),
        Case("TopK", (X4,), {"k": 2, "axis": 1}, (7,), results=2),
    ]
    return cases


def _algebra() -> list[Case]:
    c = [np.abs(weights(6)) + 0.5 for _ in range(4)]
    cases = [
        Case("Gemm", ((3, 5), weights(5, 4), weights(4)), {}, ALL),
        Case("Gemm", ((5, 3), weights(4, 5), weights(3, 1)), {"transA": 1, "transB": 1}, ALL),
        Case("Gemm", ((3, 5), (5, 4)), {"alpha": 0.5}, (11, 13)),
        Case("Gemm", ((3, 5), (5, 4), (1,)), {"beta": 0.5}, (9, 13)),
        Case("MatMul", ((3, 5), (5, 4)), {}, (9, 13)),
        Case("MatMul", ((2, 1, 3, 5), (7, 5, 4)), {}, (9, 13)),
        Case("MatMul", ((5,), (2, 5, 4)), {}, (9, 13)),
        Case("MatMul", ((2, 3, 5), (5,)), {}, (9, 13)),
        Case("MatMul", ((5,), (5,)), {}, (9, 13)),
        Case("BatchNormalization", (X4, *c), {}, (7, 9, 14, 15)),
        Case("InstanceNormalization", (X4, *c[:2]), {"epsilon": 1e-3}, (7, 22)),
        Case("LayerNormalization", (X4, weights(9, 7), weights(9, 7)), {"axis": 2}, (17,)),
        Case("LRN", (X4,), {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.5}, (7, 13)),
        Case("QuantizeLinear", (X4, np.array(0.1, np.float32)), {}, (10, 13)),
        Case(
            "DequantizeLinear",
            (np.arange(6, dtype=np.int8), np.array(0.1, np.float32), np.array(3, np.int8)),
            {},
            (10, 13),
        ),
    ]
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        cases += [Case(op, (X4,), {"axis": axis}, ALL) for axis in (1, 2)]
        cases += [Case(op, (X4,), {}, ALL), Case(op, (X4,), {"axis": -1}, (11, 13))]
    return cases


CASES = [*_windows(), *_elementwise(), *_layout(), *_resize(), *_reductions(), *_algebra()]
PAIRS = [(case, opset) for case in CASES for opset in case.opsets]
IDS = [f"{case}@{opset}" for case, opset in PAIRS]

__all__ = ["CASES", "IDS", "PAIRS", "Case"]
