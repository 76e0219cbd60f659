"""Text and GraphViz forms of a graph."""

from __future__ import annotations

import numpy as np

from pwopt.ir.dot import to_dot
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Opaque
from pwopt.ir.printer import to_text
from pwopt.ir.program import Program
from pwopt.ir.types import OpaqueType, TensorType

EXPECTED = """\
graph "a \\"net\\"" {opset=17, vendor=2}
  %0: float32[Nx4x5x5] = Input()  # x
  @conv.weight: float32[4x4x1x1] = 06af6d6a
  @m: float32[4x4] = 92f0e513
  @c0: float32[] = 6
  @c1: int64[2] = [2, 2]
  @spare: float32[1] = [0.5]
  %1: float32[Nx4x5x5] = Conv(%0, @conv.weight) {group=1, strides=(1, 1)}  # y
  %2: float32[Nx4x5x5] = pwopt.Pointwise(%1, @m, _, %0) {epilogue=Relu(Add(%0, %1))}
  %3: float32[Nx4x5x5] = Clip(%2, _, @c0)
  %4: (float32[Nx2x5x5], float32[Nx2x5x5]) = Split(%3, @c1) {axis=1}  # a, "b b"
  %5: float32[Nx2x5x5] = Sub(%4#0, %4#1)
  %6: opaque = vendor.Frobnicate(%5, "a b"=%0) {alpha=0.1, body=<3 bytes>, k=int64[1] [7], s=text}
  return y=%5, "x\\n"=%0, z=%6
"""


def network() -> Graph:
    graph = Graph('a "net"', {"": 17, "vendor": 2})
    x = graph.add_input("x", TensorType("float32", ("N", 4, 5, 5)))
    w = np.arange(16, dtype=np.float32)
    y = graph.add(
        "Conv",
        [x, graph.constant(w.reshape(4, 4, 1, 1), "conv.weight")],
        {"strides": (1, 1), "group": 1},
        names=("y",),
        name="conv1",
    ).out
    erased = graph.add("Relu", [y])
    graph.erase(erased)  # numbers must not show it
    y = graph.add(
        "Pointwise",
        [y, graph.constant(w.reshape(4, 4), "m"), None, x],
        {"epilogue": Program().then_with_argument("Add").then("Relu")},
        domain=KERNEL_DOMAIN,
        origin=("pw",),
    ).out
    y = graph.add("Clip", [y, None, graph.constant(np.array(6, np.float32))]).out
    graph.constant(np.array([0.5], np.float32), "spare")
    half = TensorType("float32", ("N", 2, 5, 5))
    sizes = graph.constant(np.array([2, 2]))
    split = graph.add("Split", [y, sizes], {"axis": 1}, types=[half, half], names=("a", "b b"))
    y = graph.add("Sub", [split[0], split[1]]).out
    z = graph.add(
        "Frobnicate",
        [y, x],
        {"s": "text", "alpha": 0.1, "body": Opaque(b"abc"), "k": np.array([7])},
        domain="vendor",
        types=[OpaqueType(b"")],
        captures=("a b",),
    ).out
    graph.add_output("y", y)
    graph.add_output("x\n", x)
    graph.add_output("z", z)
    return graph


def test_text() -> None:
    assert str(network()) == EXPECTED


def test_text_depends_on_values_only_if_asked() -> None:
    graph, other = Graph(), Graph()
    graph.add_output("w", graph.constant(np.arange(9.0)))
    other.add_output("w", other.constant(np.arange(9.0) + 1e-9))
    assert to_text(graph) != to_text(other)
    assert to_text(graph, hashes=False) == to_text(other, hashes=False)


def test_text_of_equal_names_and_strings() -> None:
    graph = Graph()
    a = graph.constant(np.array(["a\nb"], object), "c0")
    b = graph.constant(np.array([True]), "c0")
    c = graph.constant(np.zeros((0, 3), np.float32))
    for name, value in (("a", a), ("b", b), ("c", c)):
        graph.add_output(name, value)
    assert str(graph).splitlines()[1:] == [
        '  @c0: string[1] = ["a\\nb"]',
        "  @c0': bool[1] = [True]",
        "  @c0'': float32[0x3] = []",
        "  return a=@c0, b=@c0', c=@c0''",
    ]


def test_dot() -> None:
    graph = Graph('a"b')
    x = graph.add_input('x"\\', TensorType("float32", (1, 4, 5, 5)))
    w = graph.constant(np.ones((4, 4, 1, 1), np.float32))
    y = graph.add("Conv", [x, w], name="one\nby one").out
    w = graph.constant(np.ones((4, 4, 3, 3), np.float32))
    y = graph.add("Conv", [y, w], {"pads": (1, 1, 1, 1)}).out
    w = graph.constant(np.ones((4, 4), np.float32))
    relu = {"epilogue": Program().then("Relu")}
    y = graph.add("Pointwise", [y, w], relu, domain=KERNEL_DOMAIN).out
    graph.add_output("y", y)
    assert to_dot(graph) == (
        'digraph "a\\"b" {\n'
        '  node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=10];\n'
        '  edge [fontname="sans-serif", fontsize=8];\n'
        '  n0 [label="x\\"\\\\", fillcolor="#d9ead3"];\n'
        '  n2 [label="Conv\\none\\nby one\\nfloat32[4x4x1x1]", fillcolor="#ffd27f"];\n'
        '  n0 -> n2 [label="float32[1x4x5x5]"];\n'
        '  n4 [label="Conv\\nfloat32[4x4x3x3]", fillcolor="#cfe2f3"];\n'
        '  n2 -> n4 [label="float32[1x4x5x5]"];\n'
        '  n6 [label="Pointwise\\nfloat32[4x4]\\nRelu(%0)", fillcolor="#ffd27f"];\n'
        '  n4 -> n6 [label="float32[1x4x5x5]"];\n'
        '  out0 [label="y", shape=oval, fillcolor="#d9ead3"];\n'
        '  n6 -> out0 [label="float32[1x4x5x5]"];\n'
        "}\n"
    )


def test_dot_draws_a_constant_that_is_an_output() -> None:
    graph = Graph()
    graph.add_output("y", graph.constant(np.ones(2, np.float32), "c"))
    assert 'n0 [label="c"' in to_dot(graph)
