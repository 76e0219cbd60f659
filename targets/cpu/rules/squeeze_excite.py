"""Squeeze-excite: a global mean and the two 1x1 convolutions behind it are one kernel."""

from __future__ import annotations

import functools

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node
from pwopt.ir.program import Program
from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.kernels.gates import Layer, gates, pack_layer, scratch_bytes
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.rules.weights import packed_weights
from pwopt.targets.plan import Buffer, Pointer, place
from pwopt.targets.values import image_tensor, is_float, require_float, static_shape

# Of more images, products of several rows read each weight once. On Zen 4 one kernel is as fast as
# the three that it replaces, within 1 % of blocks and networks; it is the memory that bounds both.
_MAX_BATCH = 4


def emit_gates(lowering: Lowering, node: Node) -> bool:
    """Lowers a global mean together with two 1x1 convolutions, if they are all that reads it.

    Returns:
        Whether they are, and their weights are such as the kernel takes.
    """
    value, layers = lowering.required(node, 0), _layers(lowering.graph, node)
    stored = {"fp32": "float32", "bf16": BFLOAT16}.get(lowering.precision.fc_weights)
    shape = static_shape(value)
    if len(layers) < 2 or stored is None or 0 in shape or shape[0] > _MAX_BATCH:
        return False
    require_float(value, layers[-1].out)
    stored = BFLOAT16 if lowering.hardware.bf16 else stored
    hardware, made = lowering.hardware, list[Layer]()
    weights: list[Pointer] = []
    for layer in layers:
        w, b = lowering.required(layer, 1), lowering.graph.operand(layer, 2)
        weight = lowering.constant_array(layer, 1, "weight")
        made.append(Layer(weight.shape[1], weight.shape[0], _program(layer), stored))
        key = (gates, w, b, hardware.lanes, stored)
        pack = functools.partial(pack_layer, weight, lowering.array(b), hardware.lanes, stored)
        weights += packed_weights(lowering, key, pack)
    xp, xv = place(image_tensor(lowering.tensor(value)))
    yp, yv = place(image_tensor(lowering.result(layers[-1].out)))
    scratch = Pointer(Buffer("workspace", scratch_bytes(xv, made), f"{node.label} squeezed"))
    pointers = (xp, *weights, scratch, yp)
    lowering.emit(
        gates,
        (xv, yv, tuple(made), hardware, lowering.threads),
        pointers,
        writes=(-2, -1),
        also=layers,
    )
    return True


def _layers(graph: Graph, node: Node) -> list[Node]:
    """The 1x1 convolutions behind a global mean of an image, each the only reader; at most two."""
    found: list[Node] = []
    shape = node.out.shape
    if shape is None or len(shape) not in (3, 4):
        return found
    while len(found) < 2:
        use = graph.only_use([node, *found][-1].out)
        if use is None or use.slot != 0 or not _is_layer(graph, use.node):
            break
        found.append(use.node)
    return found


def _is_layer(graph: Graph, node: Node) -> bool:
    """Whether a node is a 1x1 convolution with constant weights and an epilogue of one argument."""
    if (node.domain, node.op) != (KERNEL_DOMAIN, "Pointwise") or node.get("group", 1) != 1:
        return False
    _, weight, bias, *_ = (*graph.operands(node), None)
    constant = graph.constant_value(weight) is not None
    constant &= bias is None or graph.constant_value(bias) is not None
    return constant and _program(node).arity == 1 and is_float(node.out)


def _program(node: Node) -> Program:
    program: Program = node.get("epilogue", Program())
    return program
