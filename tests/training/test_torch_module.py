"""A graph in PyTorch computes what ONNX Runtime computes, and its weights come back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pwopt import numerics
from pwopt.errors import UsageError
from pwopt.frontend import load
from pwopt.ir.graph import Graph, Node
from pwopt.models import BLOCKS
from pwopt.models.blocks import bottleneck
from pwopt.models.builder import ModelBuilder, Value
from pwopt.models.plain import convnet
from pwopt.ort import OrtModel

torch = pytest.importorskip("torch")

from pwopt.training import GraphModule, Schedule, fit, predict  # noqa: E402

Layers = Callable[[ModelBuilder, Value], Value]


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def built(
    layers: Layers, shape: tuple[int, ...] = (2, 4, 7, 6), opset: int = 17
) -> onnx.ModelProto:
    b = ModelBuilder("t", opset=opset)
    return b.build(layers(b, b.input(shape)))


def outputs(graph: Graph, *inputs: np.ndarray) -> list[np.ndarray]:
    module = GraphModule(graph).eval()
    with torch.inference_mode():
        return [y.numpy() for y in module(*map(torch.from_numpy, inputs))]


def check(model: onnx.ModelProto) -> None:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = normal(*shape)
    expected = OrtModel(model.SerializeToString(), threads=1).run({"input": x})
    for (name, e), actual in zip(expected.items(), outputs(load(model), x), strict=True):
        assert numerics.difference(name, e, actual).ok, name


@pytest.mark.parametrize("name", [n for n in BLOCKS if n not in ("chain", "wide")])
def test_blocks_agree_with_onnx_runtime(name: str) -> None:
    check(BLOCKS[name]())


OPERATORS: dict[str, Layers] = {
    "asymmetric_pads": lambda b, x: b.op(
        *("Conv", x, b.constant(normal(5, 4, 3, 2))), pads=[0, 1, 2, 0], strides=[2, 1]
    ),
    "same_upper": lambda b, x: b.op(
        *("Conv", x, b.constant(normal(5, 4, 2, 2))), auto_pad="SAME_UPPER", strides=[2, 2]
    ),
    "dilated_groups": lambda b, x: b.conv(x, 8, 3, groups=2, dilation=2),
    "leaky": lambda b, x: b.op("LeakyRelu", x, alpha=0.3),
    "prelu": lambda b, x: b.op("PRelu", x, b.constant(normal(4, 1, 1))),
    "clip_above": lambda b, x: b.op("Clip", x, "", b.constant(0.5)),
    "hard_swish": lambda b, x: b.op("HardSwish", x),
    "hard_sigmoid": lambda b, x: b.op("HardSigmoid", x, alpha=0.3, beta=0.4),
    "elu": lambda b, x: b.op("Elu", x, alpha=0.7),
    "silu": lambda b, x: b.op("Mul", x, b.op("Sigmoid", x)),
    "gelu": lambda b, x: b.op("Mul", x, b.op("Erf", b.op("Div", x, b.constant(1.4)))),
    "max_pool_padded": lambda b, x: b.pool(b.op("Tanh", x), 3, 2, 1),
    "max_pool_rounded_up": lambda b, x: b.op(
        "MaxPool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1
    ),
    "mean_pool_of_what_is_inside": lambda b, x: b.pool(x, 3, 2, 1, kind="AveragePool"),
    "mean_pool_with_pads": lambda b, x: b.op(
        *("AveragePool", x), kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1
    ),
    "global_max": lambda b, x: b.op("GlobalMaxPool", x),
    "reduce_mean": lambda b, x: b.op("ReduceMean", x, axes=[2, 3], keepdims=0),
    "local_response": lambda b, x: b.op("LRN", x, size=3, alpha=0.1, beta=0.6, bias=1.5),
    "softmax": lambda b, x: b.op("Softmax", x, axis=1),
    "log_softmax": lambda b, x: b.op("LogSoftmax", x, axis=-1),
    "split_and_concat": lambda b, x: b.concat(*reversed(b.split(x, [1, 3]))),
    "shuffle": lambda b, x: b.op(
        "Reshape",
        b.op(*("Transpose", b.op("Reshape", x, b.constant([2, 2, 2, 7, 6]))), perm=[0, 2, 1, 3, 4]),
        b.constant([0, -1, 7, 6]),
    ),
    "squeezed": lambda b, x: b.op(
        *("Unsqueeze", b.op("Squeeze", b.global_pool(x), b.constant([2, 3])), b.constant([1, 3]))
    ),
    "pad": lambda b, x: b.op("Pad", x, b.constant([0, 0, 1, 2, 0, 0, 0, 3]), b.constant(0.5)),
    "nearest": lambda b, x: b.op(
        *("Resize", x, "", b.constant([1.0, 1.0, 2.0, 3.0])),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "linear": lambda b, x: b.op(
        *("Resize", x, "", b.constant([1.0, 1.0, 2.0, 2.0])), mode="linear"
    ),
    "product": lambda b, x: b.op("MatMul", x, b.constant(normal(6, 3))),
    "arithmetic": lambda b, x: b.op(
        "Sub", b.op("Div", x, b.constant(2.5)), b.constant(normal(4, 1, 1))
    ),
    "gemm": lambda b, x: b.op(
        *("Gemm", b.op("Flatten", x), b.constant(normal(168, 3)), b.constant(normal(2, 3))),
        alpha=0.5,
        beta=2.0,
    ),
    "flatten_batch": lambda b, x: b.op("Flatten", x, axis=0),
    "dropout": lambda b, x: b.op("Dropout", b.op("Identity", x)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_agree_with_onnx_runtime(name: str) -> None:
    check(built(OPERATORS[name]))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_old_softmax_is_over_all_axes_from_one_on(op: str) -> None:
    check(built(lambda b, x: b.op(op, x, axis=1), opset=11))


def test_an_untrained_graph_comes_back_as_it_was() -> None:
    graph = load(bottleneck(project=True))
    assert GraphModule(graph).to_graph().to_onnx() == graph.to_onnx()


def batch_norm(mean: np.ndarray) -> onnx.ModelProto:
    operands = {"scale": np.ones(3), "bias": np.zeros(3), "mean": mean, "var": np.ones(3)}
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in operands.items()]
    node = helper.make_node("BatchNormalization", ["x", *operands], ["y"], name="norm")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 4, 4)) for n in "xy"]
    graph = helper.make_graph([node], "t", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def statistics(graph: Graph) -> dict[str, np.ndarray]:
    return {n.names[0]: n.attributes["value"] for n in graph.nodes() if n.is_constant}


def test_batch_statistics_are_used_and_kept() -> None:
    module = GraphModule(load(batch_norm(np.zeros(3)))).train()
    x = 2 * normal(8, 3, 4, 4) + 5
    (y,) = module(torch.from_numpy(x))
    assert abs(y.detach().numpy().mean()) < 1e-5
    after = statistics(module.to_graph())
    assert after["mean"] == pytest.approx(0.1 * x.mean(axis=(0, 2, 3)), rel=1e-5)
    variance = 0.9 + 0.1 * x.var(axis=(0, 2, 3), ddof=1)
    assert after["var"] == pytest.approx(variance, rel=1e-5)
    assert np.array_equal(after["scale"], np.ones(3))


def test_what_is_not_trained_keeps_weights_and_statistics() -> None:
    graph = load(bottleneck(project=True))
    convs = [n.id for n in graph.nodes() if n.is_op("Conv")]

    def last(node: Node) -> bool:
        return node.id == convs[-1]

    module = GraphModule(graph, last)
    assert len(list(module.parameters())) == 1
    x = torch.from_numpy(normal(4, 16, 8, 8))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module.train()(x)[0].square().sum().backward()
    optimizer.step()
    before, after = statistics(graph), statistics(module.to_graph())
    weight = graph.operand(next(n for n in graph.nodes() if n.id == convs[-1]), 1)
    assert weight is not None
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {weight.name}


def test_numbers_that_define_an_activation_are_not_weights() -> None:
    hard_swish = built(
        lambda b, x: b.op(
            "Mul", x, b.op("Div", b.clip(b.op("Add", x, b.constant(3.0))), b.constant(6.0))
        )
    )
    assert not list(GraphModule(load(hard_swish)).parameters())


def test_a_batch_may_be_longer_than_the_graph_says() -> None:
    model = built(lambda b, x: b.op("Reshape", x, b.constant([2, 168])))
    assert outputs(load(model), normal(10, 4, 7, 6))[0].shape == (10, 168)


def test_an_operator_without_translation_is_named() -> None:
    model = built(lambda b, x: b.op("Hardmax", x))
    with pytest.raises(UsageError, match=r"Hardmax 'hardmax_0'.*Add, AveragePool"):
        GraphModule(load(model))
    with pytest.raises(UsageError, match="2 inputs for a graph of 1"):
        outputs(load(built(lambda b, x: b.relu(x))), normal(1), normal(1))


def bright_or_dark(count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 2
    return normal(count, 3, 12, 12) + labels[:, None, None, None].astype(np.float32), labels


def test_training_fits_and_repeats() -> None:
    graph = load(convnet(12, 2, channels=3, width=8))
    inputs, labels = bright_or_dark(256)
    found = []
    for _ in range(2):
        module, lines = GraphModule(graph), list[str]()
        fit(module, inputs, labels, Schedule(3, 32, seed=5), progress=lines.append)
        assert len(lines) == 3
        found.append(module.to_graph().to_onnx())
        assert (predict(module, inputs).argmax(axis=1) == labels).mean() > 0.95
    assert found[0] == found[1]
    trained = OrtModel(found[0].SerializeToString(), threads=1).run({"input": inputs[:1]})
    assert np.allclose(next(iter(trained.values())), predict(module, inputs[:1]), atol=1e-5)
