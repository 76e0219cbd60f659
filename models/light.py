"""The onnx package's nine backend networks with real-looking weights.

The files hold the true topologies, but every weight is a ConstantOfShape node. Constant weights
make all channels equal and hide errors, so each generator is replaced by seeded noise of a scale
that keeps activations near their input's: He for convolutions and fully connected layers, near
identity for normalization, and a damped last BN in residual branches, which would otherwise grow
with depth.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

RESIDUAL_GAIN = 0.4


def load_light(name: str, seed: int = 0) -> onnx.ModelProto:
    """One of the nine networks by its file name's stem, e.g. ``resnet50``.

    Returns:
        a checked model (opset 9) with initializers in place of the generators.
    """
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    graph = model.graph
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    generators = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    kept = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    uses = _uses(kept)
    weights = [_weight(n.output[0], shapes[n.input[0]], uses, seed) for n in generators]

    made = {w.name for w in weights}
    read = {name for n in kept for name in n.input}
    constants = [i for i in graph.initializer if i.name in read and i.name not in made]
    inputs = [i for i in graph.input if i.name not in shapes and i.name not in made]
    for field, values in (("node", kept), ("initializer", constants), ("input", inputs)):
        copies = [type(v).FromString(v.SerializeToString()) for v in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    graph.initializer.extend(weights)
    model.ir_version = 8  # version 3 would want every initializer repeated as a graph input
    onnx.checker.check_model(model)
    return model


Uses = dict[str, list[tuple[onnx.NodeProto, int]]]


def _uses(nodes: list[onnx.NodeProto]) -> Uses:
    uses: Uses = {}
    for node in nodes:
        for slot, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, slot))
    return uses


def _weight(name: str, dims: np.ndarray, uses: Uses, seed: int) -> onnx.TensorProto:
    """Noise whose scale fits what the value is used for."""
    shape = tuple(int(d) for d in dims)
    # Seeded by name, so that no tensor depends on the order of the others.
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise: np.ndarray = rng.standard_normal(shape, dtype=np.float32)
    node, slot = uses[name][0]
    if node.op_type == "Unsqueeze":  # a per-channel constant on its way to Mul or Add
        node, slot = uses[node.output[0]][0]
    if node.op_type in ("Conv", "Gemm") and slot == 1:
        gain = 2.0 if _feeds_relu(node, uses) else 1.0
        noise *= np.float32((gain / np.prod(shape[1:])) ** 0.5)
    elif node.op_type == "BatchNormalization" and slot == 1:
        noise = _residual_gain(node, uses) * (1 + 0.1 * noise)
    elif node.op_type == "BatchNormalization" and slot == 4:
        noise = 1 + 0.1 * np.abs(noise)
    elif node.op_type == "Mul":
        noise = 1 + 0.1 * noise
    else:
        noise *= np.float32(0.1)
    return numpy_helper.from_array(noise.astype(np.float32), name)


def _feeds_relu(node: onnx.NodeProto, uses: Uses) -> bool:
    """Whether a ReLU, which halves the variance, follows, possibly after normalization."""
    while True:
        users = [user for user, _ in uses.get(node.output[0], [])]
        if any(user.op_type == "Relu" for user in users):
            return True
        if len(users) != 1 or users[0].op_type not in ("BatchNormalization", "Mul", "Add"):
            return False
        node = users[0]


def _residual_gain(node: onnx.NodeProto, uses: Uses) -> np.float32:
    adds = any(user.op_type in ("Sum", "Add") for user, _ in uses.get(node.output[0], []))
    scales = any(user.op_type == "Mul" for user, _ in uses.get(node.output[0], []))
    return np.float32(RESIDUAL_GAIN if adds and not scales else 1.0)
