"""Predicted microseconds of a node as one kernel on one core: a roofline with four slopes.

A kernel takes the longer of its arithmetic and its traffic, part of the shorter, and its launch.
Arithmetic is counted in vector instructions, with the lanes that a channel count leaves idle;
traffic in bytes over the bandwidth of the cache level that they come from: activations from the
level that a node's operands and results fit into together, weights from the level that all
constants of the graph fit into, because each run streams through all of them.

In bfloat16 (``CostModel(hardware, Precision("bf16"))``) products take dot products of channel pairs
or, in float32, Winograd's algorithm; maps between nodes take half the bytes, and so do weights.

Views cost nothing: the CPU target lays Reshape, Transpose and Split over the memory they read where
channels-last memory allows, and producers write their slice of a Concat in place.
``CostModel(hardware, copies=True)`` counts them as the copies that they are in runtimes such as
ONNX Runtime. An elementwise operator after a convolution or another elementwise operator is counted
as if it was fused already: only its arithmetic, and operands that come from elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from pwopt import cost
from pwopt.hardware import Hardware
from pwopt.ir.graph import KERNEL_DOMAIN, ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.program import Program
from pwopt.ir.types import NUMPY_DTYPES, TensorType
from pwopt.precision import Precision
from pwopt.traffic import (
    ELEMENTWISE,
    PRODUCTS,
    in_place,
    in_registers,
    is_constant,
    reorders,
    writes_slice,
)

VIEWS = frozenset(
    {
        *("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Split", "Slice", "Shape", "Size", "Constant", "ConstantOfShape", "Expand"),
    }
)
_ITEM_BYTES = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
_WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}

# Vector instructions of one element each, as full-rate ones; exp and its like are polynomials.
# Fitted to Map kernels on the machine that hardware.py names.
_INSTRUCTIONS: dict[str, float] = {
    **dict.fromkeys(("Exp", "Elu", "Selu", "Softplus", "Log", "Tanh"), 28.0),
    **dict.fromkeys(("Sigmoid", "Erf", "Gelu", "Pow"), 32.0),
    **dict.fromkeys(("Div", "Sqrt", "Reciprocal", "Softsign", "HardSigmoid", "HardSwish"), 4.0),
    "BatchNormalization": 2.0,
    "Softmax": 24.0,
    "LogSoftmax": 26.0,
    "LRN": 60.0,
    "LayerNormalization": 6.0,
    "InstanceNormalization": 6.0,
    "Resize": 4.0,
    "Upsample": 2.0,
}
# Winograd's algorithm by the side of a transformed tile: vector instructions per point of it, for
# input and output; kernels by size, with the sides of the output tiles that they can have. Fitted
# to the CPU target's kernels on Zen 4 (64 to 512 channels, 56x56 to 7x7: within 10 %).
_TRANSFORM = {4: 2.0, 6: 4.5}
_FROM_L2 = 1.12  # what products lose whose factors come from there
_WINOGRAD: dict[tuple[int, ...], tuple[int, ...]] = {(3, 3): (2, 4), (5, 5): (2,)}
_FEW_CHANNELS = 4  # of a group's input, that stay as a photo's lie
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_REDUCTIONS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a node's time is made of, microseconds; traffic by the level that it comes from."""

    compute: float = 0.0
    l2: float = 0.0
    l3: float = 0.0
    dram: float = 0.0
    launch: float = 0.0
    overlap: float = 1.0

    @property
    def total(self) -> float:
        """Predicted time: what does not overlap of the shorter of arithmetic and traffic adds."""
        memory = self.l2 + self.l3 + self.dram
        shorter, longer = sorted((self.compute, memory))
        return self.launch + longer + (1.0 - self.overlap) * shorter

    @property
    def bound(self) -> str:
        """The largest part: "compute", "l2", "l3", "dram" or "launch"."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "overlap"}
        return max(parts, key=lambda name: parts[name])


_NOTHING = Estimate()
_LEVELS = ("l2", "l3", "dram")


@dataclass(frozen=True, slots=True)
class _Work:
    """What a product multiplies.

    Attributes:
        macs: multiply-accumulates.
        reduction: of them, for one element of the result.
        channels: of the result.
        group: number of groups.
        pixels: of the result.
        taps: of the kernel.
        pairs: of bfloat16 in a reduction, each an instruction's operand; 0 for float32.
    """

    macs: int
    reduction: int
    channels: int
    group: int
    pixels: int
    taps: int
    pairs: int = 0

    @property
    def depthwise(self) -> bool:
        """Whether a channel of the result has one of the input."""
        return self.group > 1 and self.reduction == self.taps


class CostModel:
    """Predicts times for one machine; cheap enough to ask about every node of a large graph."""

    def __init__(
        self,
        hardware: Hardware,
        precision: Precision = Precision(),  # noqa: B008 - it is immutable
        *,
        copies: bool = False,
        winograd: bool = True,
    ) -> None:
        """A model of ``hardware``.

        Args:
            hardware: the machine.
            precision: number formats; what the machine lacks is float32.
            copies: count views and Concat as copies.
            winograd: convolutions may be computed by Winograd's algorithm.
        """
        self.hardware, self.copies, self.winograd = hardware, copies, winograd
        self.precision = precision.used(hardware)
        self._narrow = self.precision.compute == "bf16"

    @property
    def peak_gflops(self) -> float:
        """The machine's peak of what products are computed with: multiply-adds or dot products."""
        return self.hardware.peak_gflops * (self.hardware.bf16_gain if self._narrow else 1.0)

    @property
    def map_item_bytes(self) -> int:
        """Bytes of an element of a float32 map between two nodes."""
        return 2 if self._narrow else 4

    def node_us(self, graph: Graph, node: Node) -> float:
        """Predicted microseconds of a node on one core; what has no known shape counts nothing."""
        return self.estimate(graph, node).total

    def nodes_us(self, graph: Graph, nodes: Iterable[Node]) -> float:
        """The sum over nodes."""
        return sum(self.node_us(graph, node) for node in nodes)

    def graph_us(self, graph: Graph) -> float:
        """One inference."""
        return self.nodes_us(graph, graph.nodes())

    def bottleneck(self, graph: Graph, node: Node) -> str:
        """What bounds a node: "compute", "l2", "l3", "dram" or "launch"."""
        return self.estimate(graph, node).bound

    def peak_share(self, graph: Graph, node: Node) -> float:
        """Predicted share of :attr:`peak_gflops`; 0 for what multiplies nothing.

        More than 1 where Winograd's algorithm saves multiplications.
        """
        us = self.node_us(graph, node)
        macs = cost.node_macs(graph, node)
        return 2e-3 * macs / (us * self.peak_gflops) if us and macs else 0.0

    def operations(self, graph: Graph, node: Node) -> float:
        """Arithmetic of a node: two operations a multiply-accumulate, else vector instructions."""
        if macs := cost.node_macs(graph, node):
            return 2.0 * macs
        return 1e3 * self.estimate(graph, node).compute * self.hardware.peak_gflops / 2

    def moved_bytes(self, graph: Graph, node: Node) -> int:
        """Bytes of a node's operands, weights included, and of its results."""
        results = sum(self._bytes(graph, node[i]) for i in range(len(node.types)))
        return self._read_bytes(graph, graph.operands(node)) + results

    def winograd_tiles(self, graph: Graph, node: Node) -> Iterator[tuple[int, float, int]]:
        """What Winograd's algorithm can do for a node.

        Returns:
            for each side of its output tiles the arithmetic that it is predicted to save,
            microseconds, and the bytes that its weights take beyond those of the node.
        """
        operands = graph.operands(node)
        if len(operands) < 2 or not is_constant(operands[1]):
            return
        group = int(node.get("group", 1))
        model = CostModel(self.hardware, self.precision, winograd=False)
        direct = model.estimate(graph, node).compute
        size = self._read_bytes(graph, operands[1:2])
        for m, compute, growth in self._winograd(node, operands, group):
            yield m, direct - compute, int(size * (growth - 1))

    def matrix_us(
        self,
        pixels: int,
        inputs: int,
        outputs: int,
        *,
        residual: bool = False,
        weights: str = "l3",
    ) -> float:
        """Time of a 1x1 convolution or product that is in no graph yet.

        Args:
            pixels: of the result; rows of a product.
            inputs: channels read per pixel.
            outputs: channels written per pixel.
            residual: whether a map of the result's size is added to it.
            weights: the level that they come from: :meth:`weight_level`.
        """
        maps = self.map_item_bytes * pixels * (inputs + outputs * (2 if residual else 1))
        pairs = -(-inputs // 2) if self._narrow else 0
        work = _Work(pixels * inputs * outputs, inputs, outputs, 1, pixels, 1, pairs)
        each = self._weight_bytes(work)
        return self._estimate(self._product_us(work), maps, each * inputs * outputs, weights).total

    def copy_us(self, size: int) -> float:
        """Time to read and write ``size`` bytes."""
        return self._estimate(0.0, 2 * size, 0, "l3").total

    def weight_level(self, graph: Graph) -> str:
        """Where the weights of a graph come from in every run: "l2", "l3" or "dram"."""
        return self._level(graph.constant_bytes // (2 if self._narrow else 1))

    def estimate(self, graph: Graph, node: Node) -> Estimate:
        """The parts of a node's time."""
        if node.is_constant or node.is_input:
            return _NOTHING
        internal = node.domain == KERNEL_DOMAIN
        if not internal and node.domain != ONNX_DOMAIN:
            return Estimate(launch=self.hardware.launch_us)
        if node.op in VIEWS:
            copied = self.copies or reorders(graph, node)
            return self._copy(graph, node, graph.operands(node)[:1]) if copied else _NOTHING
        if node.op == "Concat":
            operands = graph.operands(node)
            if not self.copies:
                written = {v: writes_slice(graph, node, v) for v in set(operands)}
                operands = tuple(v for v in operands if not written[v])
            return self._copy(graph, node, operands)
        if node.op in PRODUCTS:
            return self._product(graph, node)
        return self._other(graph, node)

    # --- operators ------------------------------------------------------------------------------

    def _product(self, graph: Graph, node: Node) -> Estimate:
        """Convolutions and matrix products."""
        operands, macs = graph.operands(node), cost.node_macs(graph, node)
        outputs = cost.elements(node.types[0]) or 0
        if not macs or not outputs:
            return Estimate(launch=self.hardware.launch_us)
        shape = node.out.tensor.shape or (1,)  # the product of two vectors has no axis
        last = node.op in ("Gemm", "Linear", "MatMul", "MatMulInteger", "QLinearMatMul")
        channels = shape[-1 if last or len(shape) < 2 else 1]
        channels = channels if isinstance(channels, int) else 1
        group = int(node.get("group", 1))
        taps = 1
        if node.op in ("Conv", "ConvTranspose"):
            weight = operands[1].shape if operands[1] is not None else None
            taps = math.prod(weight[2:]) if weight else 1
        reduction, pixels = max(1, macs // outputs), outputs // channels
        pairs = self._pairs(node, operands, reduction, group, pixels)
        work = _Work(macs, reduction, channels, group, pixels, taps, pairs)
        compute = self._product_us(work)
        program = node.get("epilogue")
        after = self._vector_us(outputs, _instructions(program)) if internal_program(program) else 0
        maps = [v for v in operands if not is_constant(v)]
        activations = self._bytes(graph, node.out) + self._read_bytes(graph, maps)
        weights = self._read_bytes(graph, [v for v in operands if is_constant(v)])
        level, packed = self.weight_level(graph), weights * self._weight_bytes(work) // 4
        best = self._estimate(compute + after, activations, packed, level)
        for _, compute, growth in self._winograd(node, operands, group):
            grown = int(weights * growth)
            beyond = self._level(grown)  # alone they may outgrow what all weights fit into
            apart = max(level, beyond, key=_LEVELS.index)
            other = self._estimate(compute + after, activations, grown, apart)
            best = min(best, other, key=lambda estimate: estimate.total)
        return best

    def _winograd(
        self, node: Node, operands: Sequence[Value | None], group: int
    ) -> Iterator[tuple[int, float, float]]:
        """Winograd's algorithm: side of the tile, arithmetic, and growth of the weights."""
        weight = operands[1].shape if operands[1] is not None else None
        if not self.winograd or node.op != "Conv" or weight is None or weight[1] <= _FEW_CHANNELS:
            return
        if self._narrow and weight[1] % 2:
            return
        if {*node.get("strides", (1,)), *node.get("dilations", (1,))} != {1}:
            return
        batch, channels, *spatial = node.out.tensor.static_shape or (0, 0)
        for m in _WINOGRAD.get(weight[2:], ()):
            side = m + weight[2] - 1
            tiles = batch * math.prod(-(-e // m) for e in spatial) * side**2
            if tiles and min(spatial) >= m:
                macs = tiles * weight[1] * channels
                work = _Work(macs, weight[1], channels, group, tiles, 1)
                compute = _FROM_L2 * self._product_us(work)
                moved = tiles * (weight[1] * group + channels)
                compute += self._vector_us(moved, _TRANSFORM[side])
                yield m, compute, side**2 / weight[2] ** 2

    def _pairs(
        self,
        node: Node,
        operands: Sequence[Value | None],
        reduction: int,
        group: int,
        pixels: int,
    ) -> int:
        """Number of bfloat16 pairs that make an element of a product; 0 where it is float32."""
        if not self._narrow or (pixels == 1 and self.precision.fc_weights != "fp32"):
            return 0
        if len(operands) < 2 or not is_constant(operands[1]):
            return 0
        shape = (operands[1].shape if operands[1] and node.op == "Conv" else None) or ()
        taps = math.prod(shape[2:])
        inputs = reduction // taps
        if inputs * group > _FEW_CHANNELS:  # neighbouring channels
            return taps * -(-inputs // 2) if inputs > 1 else 0
        row = shape[-1] if len(shape) > 2 else 1  # of a kernel, with its channels
        return taps // row * -(-inputs * row // 2) if group == 1 else 0

    def _weight_bytes(self, work: _Work) -> int:
        """Bytes of a weight in memory."""
        if work.pixels == 1 and not work.depthwise and self.precision.fc_weights != "fp32":
            return _WEIGHT_BYTES[self.precision.fc_weights]
        return 2 if work.pairs else 4

    def _product_us(self, work: _Work) -> float:
        """Arithmetic of a product: the peak, less what idle lanes and short loops lose."""
        hardware = self.hardware
        per_group = work.channels if work.depthwise else max(1, work.channels // work.group)
        lanes = hardware.for_channels(per_group).lanes
        padded = math.ceil(per_group / lanes) * lanes
        efficiency = hardware.depthwise_efficiency if work.depthwise else hardware.efficiency
        us = 2e-3 * work.macs * padded / per_group / (hardware.peak_gflops * efficiency)
        if not work.depthwise:  # each tile clears its accumulators and stores them once
            steps = work.pairs or work.reduction
            us *= (steps + hardware.tile_overhead) / work.reduction
        if work.pairs:
            us *= 2 / hardware.bf16_gain
        if work.pixels == 1:  # a weight is loaded for a single multiply-add
            us *= 2.0
        return us

    def _other(self, graph: Graph, node: Node) -> Estimate:
        """Elementwise operators, pools, reductions and whatever else: instructions and bytes."""
        outputs = cost.elements(node.types[0]) if node.types else None
        if outputs is None:
            return Estimate(launch=self.hardware.launch_us)
        operands = [v for v in graph.operands(node) if v is not None]
        work, each = outputs, 1.0
        program = node.get("program")
        if isinstance(program, Program):
            each = _instructions(program)
        elif node.op in ELEMENTWISE:
            each = _INSTRUCTIONS.get(node.op, 1.0)
            apart = [v for v in operands if not in_registers(graph, v, outputs)]
            if len(apart) < len(operands):
                level_bytes = self._read_bytes(graph, [v for v in apart if not is_constant(v)])
                compute = self._vector_us(outputs, each)
                return Estimate(
                    compute, **self._traffic(level_bytes), overlap=self.hardware.overlap
                )
        elif node.op in _POOLS:
            each = float(math.prod(node.get("kernel_shape") or (1,)))
        elif node.op in _REDUCTIONS or node.op.startswith("Reduce"):
            work = (cost.elements(operands[0].type) if operands else None) or outputs
            each = 2.0  # few accumulators: the latency of an addition shows
        else:
            each = _INSTRUCTIONS.get(node.op, 2.0)
        moved = self._read_bytes(graph, operands)
        if not (node.op == "Map" and in_place(graph, node, operands)):
            moved += sum(self._bytes(graph, node[i]) for i in range(len(node.types)))
        return self._estimate(self._vector_us(work, each), moved, 0, "l2")

    def _copy(self, graph: Graph, node: Node, operands: Iterable[Value | None]) -> Estimate:
        size = self._read_bytes(graph, operands)
        return self._estimate(0.0, 2 * size, 0, "l2") if size else _NOTHING

    def _bytes(self, graph: Graph, value: Value) -> int:
        """What a value takes in memory: in bfloat16 maps between nodes are narrow."""
        of = value.node.types[value.index]
        if not isinstance(of, TensorType):
            return 0
        item = _ITEM_BYTES.get(of.dtype or "float32", 4)
        if self._narrow and of.dtype == "float32" and (of.rank or 0) > 1:
            ends = value.node.is_input or value.node.is_constant or graph.is_output(value)
            item = item if ends else self.map_item_bytes
        return (cost.elements(of) or 0) * item

    def _read_bytes(self, graph: Graph, values: Iterable[Value | None]) -> int:
        return sum([self._bytes(graph, v) for v in values if v is not None])

    # --- the machine ----------------------------------------------------------------------------

    def _vector_us(self, elements: int, instructions: float) -> float:
        """Time of full-rate vector instructions on so many elements; two of them a cycle."""
        return 2e-3 * elements * instructions / self.hardware.peak_gflops

    def _estimate(self, compute: float, activations: int, weights: int, level: str) -> Estimate:
        hardware = self.hardware
        parts = self._traffic(activations)
        parts[level] += 1e-3 * weights / self._bandwidth(level)
        return Estimate(compute, **parts, launch=hardware.launch_us, overlap=hardware.overlap)

    def _traffic(self, activations: int) -> dict[str, float]:
        parts = {"l2": 0.0, "l3": 0.0, "dram": 0.0}
        level = self._level(activations)
        parts[level] = 1e-3 * activations / self._bandwidth(level)
        return parts

    def _level(self, size: int) -> str:
        """The level that ``size`` bytes stay in between two visits."""
        if size <= self.hardware.l2_bytes:
            return "l2"
        return "l3" if size <= self.hardware.l3_bytes // 4 else "dram"  # other cores use it, too

    def _bandwidth(self, level: str) -> float:
        hardware = self.hardware
        return {
            "l2": hardware.l2_gbps,
            "l3": hardware.l3_gbps,
            "dram": hardware.bandwidth_gbps,
        }[level]


@functools.lru_cache(maxsize=8)
def cost_model(
    hardware: Hardware,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> CostModel:
    """The model of a machine and the number formats on it, made once."""
    return CostModel(hardware, precision)


def internal_program(program: object) -> bool:
    """Whether an attribute is an epilogue that computes something."""
    return isinstance(program, Program) and not program.is_identity


def _instructions(program: Program) -> float:
    return sum(_INSTRUCTIONS.get(i.op, 1.0) for i in program.instructions)
