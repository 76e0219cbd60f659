"""Rules for elementwise groups."""

from __future__ import annotations

from collections.abc import Sequence

from pwopt.ir.graph import Node, Value
from pwopt.targets.cuda.kernels.map import map_kernel
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.lowering import Rule, Unsupported, require_float, static_shape
from pwopt.targets.plan import Tensor, place
from pwopt.targets.reading import ELEMENTWISE, program_of
from pwopt.targets.resampling import repeated, split
from pwopt.targets.views import channels_last


def elementwise(lowering: CudaLowering, node: Node) -> None:
    """An internal Map, or a lone elementwise operator of ONNX."""
    program = program_of(lowering, node)
    values = lowering.operands(node)[: program.arity]
    require_float(node.out, *values)
    shape = static_shape(node.out)
    order = _order(lowering, values, shape)
    arguments: list[Tensor] = []
    factors: tuple[int, int] | None = None
    for value in values:
        if value is None:
            raise Unsupported("an operand is absent")
        if value in lowering.enlarged:
            tensor, factors = lowering.enlarged[value]
            arguments.append(tensor)
            continue
        rank = len(static_shape(value))
        own = [a - (len(shape) - rank) for a in order if a >= len(shape) - rank]
        tensor = lowering.ordered(value, own)
        arguments.append(tensor.with_view(tensor.view.broadcast(shape).permute(order)))
    result = lowering.result(node.out, order)
    if not result.view.elements:
        return
    placed = [place(t) for t in (*arguments, result.with_view(result.view.permute(order)))]
    views = [v for _, v in placed]
    if factors:
        views = [
            (repeated if value in lowering.enlarged else split)(view, factors)
            for view, value in zip(views, (*values, node.out), strict=True)
        ]
    lowering.emit(
        map_kernel,
        (program, tuple(views[:-1]), views[-1]),
        [p for p, _ in placed],
        in_place=lowering.replaceable(values, views),
    )


def _order(
    lowering: CudaLowering, values: Sequence[Value | None], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The layout of the largest operand, which then need not move; images are channels last."""
    best, order = -1, tuple(range(len(shape)))
    for value in values:
        if value is None or lowering.array(value) is not None or value in lowering.enlarged:
            continue
        view = lowering.tensor(value).view
        if len(view.shape) == len(shape) and view.elements > best:
            best = view.elements
            is_image = len(shape) > 2 and view.strides[1] == 1
            order = channels_last(len(shape)) if is_image else view.order
    return order


RULES: dict[tuple[str, str], Rule] = dict.fromkeys(ELEMENTWISE, elementwise)
