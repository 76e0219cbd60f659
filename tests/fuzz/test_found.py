"""Networks that random ones led to, and that once failed."""

from __future__ import annotations

import pytest

from pwopt.hardware import AVX2
from pwopt.models.builder import Value
from tests.fuzz.checking import Machine, Oracle, check_compiled, check_export, optimized
from tests.fuzz.generator import Example
from tests.fuzz.network import Network, Shape


def check(net: Network, *outputs: Value, plain: bool = False) -> None:
    """Compares the network, optimized unless ``plain``, and compiled."""
    model = net.finish(outputs, old_inputs=False, batch="")
    inputs = {value.name: net.shapes[value.name] for value in model.graph.input}
    oracle, machine = Oracle(Example(model, inputs)), Machine(AVX2, 1)
    graph = oracle.graph
    if not plain:
        graph = optimized(oracle, machine)
        check_export(oracle, graph)
    check_compiled(oracle, graph, machine)


def start(shape: Shape, opset: int = 17) -> tuple[Network, Value]:
    net = Network(0, opset)
    return net, net.add_input(shape)


def test_dead_code_that_runs_elsewhere_makes_no_segment_of_its_own() -> None:
    net, x = start((1, 3, 4, 4))
    net.op("Det", x)  # has no kernel
    check(net, net.relu(x), plain=True)


@pytest.mark.parametrize("rows", [1, 9])
def test_product_with_one_column(rows: int) -> None:
    net, x = start((1, 5, rows))
    y = net.op("Transpose", x, perm=[0, 2, 1])
    check(net, net.op("MatMul", y, net.weights(5, 1)))


@pytest.mark.parametrize("opset", [11, 21, 22])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_ceil_mode_whose_last_window_starts_behind_the_image(op: str, opset: int) -> None:
    net, x = start((1, 3, 17, 6), opset)
    y = net.op(op, x, kernel_shape=[1, 2], strides=[3, 3], pads=[0, 0, 0, 1], ceil_mode=1)
    check(net, net.op("Conv", y, net.weights(2, 3, 3, 1)))
