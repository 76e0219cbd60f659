"""A model under construction that knows the shape of every value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pwopt.models.builder import ModelBuilder, Value

Shape = tuple[int, ...]


class Network(ModelBuilder):
    """A :class:`ModelBuilder` with shapes, for random networks.

    Attributes:
        shapes: of every value that is no constant.
        types: ONNX's numbers of the element types that are not float32.
        maps: values of rank 3 to 5 with channels on axis 1, in order.
        arrays: the constants' arrays.
    """

    def __init__(self, seed: int, opset: int, constant_nodes: bool = False) -> None:
        """Starts an empty network; ``constant_nodes`` puts weights in Constant nodes."""
        super().__init__("fuzz", seed, opset)
        self.shapes: dict[Value, Shape] = {}
        self.types: dict[Value, int] = {}
        self.maps: list[Value] = []
        self.arrays: dict[Value, np.ndarray] = {}
        self._constant_nodes = constant_nodes

    def add_input(self, shape: Shape, name: str = "input") -> Value:
        """A graph input, which is a map."""
        self.shapes[name] = shape
        self.maps.append(name)
        return self.input(shape, name)

    def constant(self, array: Any, name: str | None = None) -> Value:
        """A constant, in an initializer or a node."""
        name = super().constant(array, name or f"constant_{len(self.arrays)}")
        self.arrays[name] = numpy_helper.to_array(self._initializers[-1])
        if self._constant_nodes:
            tensor = self._initializers.pop()
            self._nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def weights(self, *shape: int, scale: float = 1.0) -> Value:
        """Seeded weights that keep the magnitude of what they multiply."""
        fan_in = max(1, int(np.prod(shape[1:], dtype=np.int64)))
        return self.constant(self.rng.standard_normal(shape) * scale / fan_in**0.5)

    def vector(self, size: int, low: float = -0.5, high: float = 0.5) -> Value:
        """Seeded numbers between two bounds."""
        return self.constant(self.rng.uniform(low, high, size))

    def per_channel(self, x: Value, low: float = -0.5, high: float = 0.5) -> Value:
        """A number for each channel of a map, shaped to broadcast against it."""
        shape = (self.shapes[x][1],) + (1,) * (len(self.shapes[x]) - 2)
        return self.constant(self.rng.uniform(low, high, shape))

    def op(self, op_type: str, *inputs: Value, channels: int | None = None, **attrs: Any) -> Value:
        """Any operator with one output."""
        name = super().op(op_type, *inputs, channels=channels, **attrs)
        self._learn(self._nodes[-1])
        if len(self.shapes[name]) > 1:
            self.channels[name] = self.shapes[name][1]
        return name

    def reshape_to(self, x: Value, target: Value, shape: Shape) -> Value:
        """A Reshape by computed integers, which are known to ask for ``shape``."""
        name = self.op("Reshape", x, target)
        self.shapes[name] = shape
        self.channels[name] = shape[1]
        return name

    def split(self, x: Value, sizes: Sequence[int], axis: int = 1) -> list[Value]:
        """Parts of given sizes, by a Split in the form of the opset."""
        names = super().split(x, sizes, axis)
        self._learn(self._nodes[-1])
        return names

    def finish(self, outputs: Sequence[Value], *, old_inputs: bool, batch: str) -> onnx.ModelProto:
        """The model.

        Args:
            outputs: in order.
            old_inputs: list initializers among the inputs, as files of before 2019 do.
            batch: a name for the first dimension of the inputs, or "" to leave its number.
        """
        float32 = TensorProto.FLOAT
        infos = [helper.make_tensor_value_info(n, float32, self.shapes[n]) for n in outputs]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, infos, self._initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model)
        if batch:
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_param = batch
        if old_inputs:
            model.ir_version = 3
            for tensor in model.graph.initializer:
                info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                model.graph.input.append(info)
        return model

    def _learn(self, node: onnx.NodeProto) -> None:
        """Remembers the types of a node's results, by ONNX's own inference."""
        inputs = [
            helper.make_tensor_value_info(n, self.types.get(n, TensorProto.FLOAT), self.shapes[n])
            for n in dict.fromkeys(node.input)
            if n in self.shapes
        ]
        constants = [
            numpy_helper.from_array(self.arrays[n], n)
            for n in dict.fromkeys(node.input)
            if n in self.arrays
        ]
        outputs = [onnx.ValueInfoProto(name=n) for n in node.output]
        graph = helper.make_graph([node], "node", inputs, outputs, constants)
        # Before 22 ONNX counts a window behind the image that no runtime does.
        ceil = any(a.name == "ceil_mode" and a.i for a in node.attribute)
        opset = max(self.opset, 22) if ceil else self.opset
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        known = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        for value in known.graph.output:
            kind = value.type.tensor_type
            self.shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
            if kind.elem_type != TensorProto.FLOAT:
                self.types[value.name] = kind.elem_type
