"""A small builder of ONNX models: seeded weights, one call a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pwopt.errors import UsageError

Value = str


class ModelBuilder:
    """Builds a float32 NCHW network one layer at a time.

    Every method returns the name of the value that it makes and knows its number of channels, so
    that layers chain without repeating sizes. Weights are drawn from one generator: the same seed
    and the same calls give the same bytes.

    Args:
        name: name of the graph.
        seed: of the weights.
        opset: version of the standard operator set.
    """

    def __init__(self, name: str, seed: int = 0, opset: int = 17) -> None:
        self.name = name
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.channels: dict[Value, int] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def input(self, shape: Sequence[int | str], name: str = "input") -> Value:
        """A graph input; a string makes that dimension symbolic."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if len(shape) > 1 and isinstance(shape[1], int):
            self.channels[name] = shape[1]
        return name

    def constant(self, array: Any, name: str | None = None) -> Value:
        """An initializer; floating-point data becomes float32, integers int64."""
        data = np.asarray(array)
        data = data.astype(np.float32 if data.dtype.kind == "f" else np.int64)
        name = name or f"constant_{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(data, name))
        return name

    def op(self, op_type: str, *inputs: Value, channels: int | None = None, **attrs: Any) -> Value:
        """Any operator with one output, which has the first input's channels unless told."""
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attrs))
        known = channels if channels is not None else self.channels.get(inputs[0])
        if known is not None:
            self.channels[name] = known
        return name

    def conv(
        self,
        x: Value,
        out_channels: int = 0,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        bias: bool = True,
        weight: np.ndarray | None = None,
        gain: float = 2.0,
    ) -> Value:
        """A square convolution, "same" padding by default; He weights unless ``weight`` is given.

        Args:
            x: input, NCHW.
            out_channels: number of filters (taken from ``weight`` if that is given).
            kernel: side of the kernel (taken from ``weight`` if that is given).
            stride: of both axes.
            groups: convolution groups; the number of channels makes it depthwise.
            dilation: of both axes.
            padding: on every side; None keeps the size at stride 1.
            bias: whether to add a seeded bias.
            weight: trained weights, (out_channels, in_channels / groups, kernel, kernel).
            gain: 2 keeps the variance in front of a ReLU, 1 without one.
        """
        if weight is None:
            weight = self._he((out_channels, self.channels[x] // groups, kernel, kernel), gain)
        out_channels, kernel = weight.shape[0], weight.shape[2]
        pad = dilation * (kernel - 1) // 2 if padding is None else padding
        operands = [x, self.constant(weight)]
        if bias:
            operands.append(self.constant(0.1 * self.rng.standard_normal(out_channels)))
        return self.op(
            "Conv",
            *operands,
            channels=out_channels,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            dilations=[dilation, dilation],
            pads=[pad] * 4,
            group=groups,
        )

    def batch_norm(self, x: Value, *, scale: float = 1.0) -> Value:
        """Batch normalization in inference form with seeded statistics around (0, 1)."""
        count = self.channels[x]
        noise = 0.1 * self.rng.standard_normal((4, count))
        scale_bias_mean_var = (scale * (1 + noise[0]), noise[1], noise[2], 1 + np.abs(noise[3]))
        operands = [self.constant(a) for a in scale_bias_mean_var]
        return self.op("BatchNormalization", x, *operands, epsilon=1e-5)

    def conv_norm(
        self,
        x: Value,
        out_channels: int,
        kernel: int = 1,
        *,
        batch_norm: bool = True,
        activation: str | None = "Relu",
        scale: float = 1.0,
        **conv: Any,
    ) -> Value:
        """A convolution, batch normalization or a bias in its place, and an activation.

        Args:
            x: input, NCHW.
            out_channels: number of filters.
            kernel: side of the kernel.
            batch_norm: whether to normalize; otherwise the convolution has a bias.
            activation: ``Relu``, ``Clip`` (ReLU6), ``HardSwish`` or None.
            scale: of the result's spread; below 1 where a residual is added.
            conv: further arguments of :meth:`conv`.
        """
        if batch_norm:
            y = self.conv(x, out_channels, kernel, bias=False, **conv)
            y = self.batch_norm(y, scale=scale)
        else:
            gain = (2.0 if activation else 1.0) * scale**2
            y = self.conv(x, out_channels, kernel, gain=gain, **conv)
        return self.clip(y) if activation == "Clip" else self.op(activation, y) if activation else y

    def relu(self, x: Value) -> Value:
        """ReLU."""
        return self.op("Relu", x)

    def clip(self, x: Value, low: float = 0.0, high: float = 6.0) -> Value:
        """Clip, ReLU6 by default."""
        return self.op("Clip", x, self.constant(low), self.constant(high))

    def pool(
        self, x: Value, kernel: int, stride: int, padding: int = 0, kind: str = "MaxPool"
    ) -> Value:
        """``MaxPool`` or ``AveragePool`` over a square window."""
        return self.op(kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)

    def global_pool(self, x: Value) -> Value:
        """Mean over the map, (N, C, 1, 1)."""
        return self.op("GlobalAveragePool", x)

    def split(self, x: Value, sizes: Sequence[int], axis: int = 1) -> list[Value]:
        """Parts of given sizes, by a Split in the form of the opset."""
        names = [f"split_{len(self._nodes)}_{i}" for i in range(len(sizes))]
        if self.opset < 13:
            node = helper.make_node("Split", [x], names, axis=axis, split=list(sizes))
        else:
            node = helper.make_node("Split", [x, self.constant(list(sizes))], names, axis=axis)
        node.name = names[0]
        self._nodes.append(node)
        for name, size in zip(names, sizes, strict=True):
            self.channels[name] = size if axis == 1 else self.channels[x]
        return names

    def concat(self, *values: Value) -> Value:
        """Concatenation over channels."""
        return self.op("Concat", *values, channels=sum(self.channels[v] for v in values), axis=1)

    def classifier(self, x: Value, classes: int) -> Value:
        """Global mean, Flatten and Gemm: the usual head, logits (N, classes)."""
        return self.linear(self.global_pool(x), classes, gain=1.0)

    def linear(
        self,
        x: Value,
        out_features: int = 0,
        in_features: int | None = None,
        *,
        gain: float = 2.0,
        weight: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ) -> Value:
        """Flatten and Gemm; ``in_features`` is needed when the map is larger than 1x1."""
        if weight is None:
            weight = self._he((out_features, in_features or self.channels[x]), gain)
        if bias is None:
            bias = 0.1 * self.rng.standard_normal(len(weight))
        flat = self.op("Flatten", x, axis=1)
        operands = (self.constant(weight), self.constant(bias))
        return self.op("Gemm", flat, *operands, channels=len(weight), transB=1)

    def build(self, *outputs: Value) -> onnx.ModelProto:
        """The checked model with inferred types; ``outputs`` in order.

        Raises:
            UsageError: the input is so small that a pool's window does not fit into its map.
        """
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, infos, self._initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="pwopt.models")
        model.ir_version = min(model.ir_version, 8)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        self._refuse_small_maps(inferred.graph)
        for info, known in zip(graph.output, inferred.graph.output, strict=True):
            info.CopyFrom(known)
        model.graph.CopyFrom(graph)
        onnx.checker.check_model(model)
        return model

    def _refuse_small_maps(self, inferred: onnx.GraphProto) -> None:
        # Shape inference gives such a pool an output of one pixel all the same.
        known = {info.name: info for info in (*inferred.input, *inferred.value_info)}
        for node in (n for n in self._nodes if n.op_type in ("MaxPool", "AveragePool")):
            options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            sides = [d.dim_value for d in known[node.input[0]].type.tensor_type.shape.dim][2:]
            padding = 2 * options.get("pads", [0])[0]
            if 0 < min(sides) + padding < options["kernel_shape"][0]:
                raise UsageError(
                    f"{self.name}: the input is too small, {node.name} has a map of "
                    f"{'x'.join(map(str, sides))}"
                )

    def _he(self, shape: tuple[int, ...], gain: float) -> np.ndarray:
        fan_in = int(np.prod(shape[1:]))
        return self.rng.standard_normal(shape, dtype=np.float32) * np.float32(
            (gain / fan_in) ** 0.5
        )
