"""The small networks trained on Fashion-MNIST: which builder and options each one is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from pwopt.errors import UsageError
from pwopt.models import branching, plain, residual, store


@dataclass(frozen=True)
class Trained:
    """A network whose trained file comes with pwopt.

    Attributes:
        name: its name, ``fashion_...``.
        builder: makes the network with seeded weights, from which training starts.
        options: of the builder, beside 28x28 pictures of one channel and ten classes.
        epochs: of training.
        rate: peak of the learning rate.
    """

    name: str
    builder: Callable[..., onnx.ModelProto]
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 4
    rate: float = 0.01

    @property
    def file(self) -> str:
        """Path of the trained file in this folder."""
        return f"data/{self.name.replace('_', '-')}.onnx"

    def untrained(self, seed: int = 0) -> onnx.ModelProto:
        """The network before training."""
        return self.builder(size=28, classes=10, channels=1, seed=seed, **self.options)

    def build(self) -> onnx.ModelProto:
        """The trained network, checked against the manifest."""
        return onnx.load(store.vendored(self.file))


_NETWORKS = (
    Trained("fashion_nin", plain.nin, {"width": 48, "batch_norm": True}, 5),
    Trained(
        "fashion_inception",
        branching.googlenet,
        {"width": 0.25, "modules": (2, 2, 0), "stem": 2},
        epochs=6,
    ),
    Trained("fashion_resnet", residual.resnet, {"width": 16, "depths": (2, 2, 2), "stem": 2}, 5),
    Trained(
        "fashion_mobilenet",
        residual.mobilenet_v2,
        {"width": 0.5, "depths": (1, 2, 3, 3, 2), "stem": 2, "head": 320},
        7,
    ),
    Trained(
        "fashion_senet",
        residual.resnet,
        {"width": 16, "depths": (1, 1, 1), "stem": 2, "reduction": 8},
        5,
    ),
    Trained(
        "fashion_squeezenet",
        branching.squeezenet_v1_1,
        {"width": 0.5, "stem": 2, "batch_norm": True},
        6,
    ),
    Trained(
        "fashion_densenet",
        branching.densenet,
        {"growth": 12, "depths": (4, 4, 4), "stem": 2},
        5,
    ),
    Trained(
        "fashion_lenet", plain.lenet, {"width": 12, "hidden": (112, 84), "batch_norm": True}, 6
    ),
    Trained(
        "fashion_vgg",
        plain.vgg,
        {"width": 24, "depths": (2, 2, 2), "hidden": (), "batch_norm": True},
        7,
    ),
    Trained("fashion_cnn", plain.cnn, epochs=14),
)

TRAINED: dict[str, Trained] = {network.name: network for network in _NETWORKS}


def trained(name: str) -> Trained:
    """The network of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in TRAINED:
        raise UsageError(f"no trained network {name}; there are {', '.join(TRAINED)}")
    return TRAINED[name]
