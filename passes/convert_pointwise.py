"""Turns 1x1 convolutions into GEMMs over pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pwopt.ir.graph import KERNEL_DOMAIN, ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.program import Program
from pwopt.passes import convolution as convolutions
from pwopt.passes.convolution import Convolution
from pwopt.passes.estimate import constant_growth
from pwopt.pipeline import Applied, Context, Missed, Rewrite


@dataclass(frozen=True)
class ConvertPointwise(Rewrite):
    """Turns 1x1 convolutions into ``Pointwise``: a GEMM over pixels that needs no transpose.

    Rewrite:
        ``Conv(X, W[M, C/g, 1, 1], B)`` → ``pwopt.Pointwise(X, W[M, C/g], B)`` with the strides and
        the group; a depthwise one of stride 1 → ``Mul(X, W[C, 1, 1])``, ``Add(·, B[C, 1, 1])``.
        Convolutions that share weights go on sharing them.
    Shapes:
        any batch, spatial rank and size, known or not.
    Numerics:
        exact; the sums may be taken in another order.
    Misses when:
        pads are not zero (pixels of the border would be the bias alone; as a convolution with a
        1x1 kernel it needs no padded copy); weights or bias are not constant; not float32.
    Source:
        ONNX Conv-1 to Conv-22; a 1x1 kernel has SAME pads of zero at every stride.
    """

    name: ClassVar[str] = "convert-pointwise"
    lowers: ClassVar[bool] = True
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({(ONNX_DOMAIN, "Conv")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        found = _pointwise(graph, node)
        if found is None or isinstance(found, str):
            return found if found is None else Missed(found)
        matrix: Value | None = None
        sharing = dict.fromkeys(use.node for use in graph.uses(found.weight) if use.slot == 1)
        read = {each: _pointwise(graph, each) for each in sharing}
        converted = {n: c for n, c in read.items() if isinstance(c, Convolution)}
        what = f"its weight {found.weight.label!r} in another shape"
        if (why := context.growth().refuse(graph, _added(graph, converted), what)) is not None:
            return Missed(why)
        for each in converted:
            convolution = _pointwise(graph, each)  # what it reads may be new by now
            assert isinstance(convolution, Convolution)
            if _is_scaling(graph, convolution):
                _replace_by_scaling(graph, each, convolution)
                continue
            if matrix is None:
                weight = found.weight.node
                array = found.kernel.reshape(found.kernel.shape[:2])
                matrix = graph.constant(array, found.weight.name, weight.origin)
            new = graph.add(
                "Pointwise",
                (convolution.x, matrix, convolution.bias),
                {
                    "strides": convolution.strides,
                    "group": convolution.group,
                    "epilogue": Program(),
                },
                domain=KERNEL_DOMAIN,
                types=each.types,
                names=each.names,
                name=each.name,
                origin=each.origin,
            )
            _replace(graph, each, new)
        shared = f" with the {len(converted) - 1} others that share its weights"
        return Applied("converted" + (shared if len(converted) > 1 else ""))


def _pointwise(graph: Graph, node: Node) -> Convolution | str | None:
    """The 1x1 convolution, why it cannot be converted, or None for any other."""
    weight = graph.operand(node, 1)
    if not node.is_op("Conv") or weight is None:
        return None
    shape = weight.tensor.shape
    if shape is None or len(shape) < 3 or any(d != 1 for d in shape[2:]):
        return None
    convolution = convolutions.read(graph, node)
    if isinstance(convolution, Convolution) and convolution.x.tensor.shape is None:
        return f"the rank of {convolution.x.label!r} is not known"
    if isinstance(convolution, Convolution) and any(convolution.pads):
        return f"its pads {list(convolution.pads)} are not zero"
    return convolution


def _added(graph: Graph, converted: Mapping[Node, Convolution]) -> int:
    """Bytes by which the constants grow: a weight that others read, too, or that splits up."""
    new, kept, matrix = 0, set(), 0
    for convolution in converted.values():
        bias = convolution.bias
        if _is_scaling(graph, convolution):
            new += convolution.kernel.nbytes + ((bias.tensor.bytes or 0) if bias else 0)
        else:
            matrix = convolution.kernel.nbytes
            kept.add(bias)
    return constant_growth(graph, converted, new + matrix, kept)


def _is_scaling(graph: Graph, convolution: Convolution) -> bool:
    """Whether every channel is scaled by itself, and the opset can say so."""
    return (
        graph.opset >= 7  # broadcasting
        and convolution.kernel.shape[:2] == (convolution.group, 1)
        and all(s == 1 for s in convolution.strides)
    )


def _replace_by_scaling(graph: Graph, node: Node, convolution: Convolution) -> None:
    value, shape = convolution.x, (-1, *(1,) * len(convolution.strides))
    steps = [("Mul", convolution.kernel)]
    if convolution.bias is not None:
        bias = graph.constant_value(convolution.bias)
        assert bias is not None
        steps.append(("Add", bias))
    for i, (op, array) in enumerate(steps):
        last = i == len(steps) - 1
        new = graph.add(
            op,
            (value, graph.constant(array.reshape(shape))),
            types=node.types,
            names=node.names if last else (),
            name=node.name if last else "",
            origin=node.origin,
        )
        value = new.out
    _replace(graph, node, value.node)


def _replace(graph: Graph, old: Node, new: Node) -> None:
    graph.replace_uses(old.out, new.out)
    graph.erase_dead([old])
