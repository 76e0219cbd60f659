"""Every reference network: valid at any size, the same for a seed, right when compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from pwopt import compilation, driver
from pwopt.errors import UsageError
from pwopt.models import BLOCKS, REGISTRY, SUITE, TRAINED, entry
from pwopt.models.registry import parse
from pwopt.ort import OrtModel

PHOTO: dict[str, Any] = {"size": 32, "classes": 10}
# Small enough to be compiled in about a second each; every kind of block is still there.
SMALL: dict[str, dict[str, Any]] = {
    "convnet": {},
    "cnn": {},
    "nin": {"width": 24},
    "lenet": {},
    "vgg": {**PHOTO, "width": 8, "hidden": (32,)},
    "mobilenet_v1": {**PHOTO, "width": 0.25},
    "mobilenet_v2_seeded": {**PHOTO, "width": 0.25, "depths": (1, 2, 2), "head": 64},
    "googlenet": {**PHOTO, "width": 0.125, "modules": (1, 2, 1)},
    "squeezenet_v1_1": {**PHOTO, "width": 0.25},
    "densenet": {**PHOTO, "growth": 8, "depths": (2, 2, 2)},
    "resnet": {**PHOTO, "width": 8, "depths": (1, 2, 1)},
    "se_resnet": {**PHOTO, "width": 8, "depths": (1, 1, 1)},
}
# Other sizes and options: what the first ones have left out.
OTHER: dict[str, dict[str, Any]] = {
    "convnet": {"size": 13, "classes": 3, "channels": 2, "batch_norm": False},
    "cnn": {"size": 13, "widths": (5, 7), "kernel": 3, "batch_norm": False},
    "nin": {"size": 19, "width": 12, "batch_norm": True, "batch": 2},
    "lenet": {"size": 20, "hidden": (), "batch_norm": True},
    "vgg": {
        "size": 24,
        "classes": 7,
        "width": 4,
        "depths": (1, 2),
        "hidden": (),
        "batch_norm": True,
    },
    "mobilenet_v1": {"size": 45, "classes": 7, "width": 0.25, "batch_norm": False},
    "mobilenet_v2_seeded": {
        "size": 21,
        "classes": 7,
        "stem": 1,
        "depths": (1, 1),
        "batch_norm": False,
    },
    "googlenet": {"size": 23, "classes": 7, "width": 0.0625, "stem": 1, "batch_norm": False},
    "squeezenet_v1_1": {"size": 29, "classes": 7, "width": 0.25, "stem": 2, "batch_norm": True},
    "densenet": {
        "size": 21,
        "classes": 7,
        "growth": 4,
        "depths": (2, 1),
        "stem": 2,
        "batch_norm": False,
    },
    "resnet": {"size": 27, "width": 4, "depths": (1, 1), "stem": 1, "stride_on": "1x1", "batch": 2},
    "se_resnet": {"size": 27, "width": 4, "depths": (1, 1), "stem": 2, "batch_norm": False},
    "bottleneck": {"size": 9, "stride": 2, "stride_on": "1x1", "batch_norm": False, "batch": 2},
    "fc_head": {"size": 16, "classes": 3, "batch": 2},
    "chain": {"length": 40, "size": 3},
}
NETWORKS = [e.name for e in REGISTRY.values() if e.kind == "network"]
BUILT = [e.name for e in REGISTRY.values() if e.kind in ("block", "network")]


def options(name: str, which: str) -> dict[str, Any]:
    if which == "small":
        return {"length": 40} if name == "chain" else SMALL.get(name, {})
    known = REGISTRY[name].options
    size = min(known["size"] + 4, 32) if name != "resnet_fpn" else 32
    norm = {"batch_norm": not known["batch_norm"]} if "batch_norm" in known else {}
    return OTHER.get(name, {"size": size, "batch": 2, **norm})


@pytest.mark.parametrize("which", ["small", "other"])
@pytest.mark.parametrize("name", BUILT)
def test_valid_and_runs(name: str, which: str) -> None:
    chosen = entry(name)
    given = options(name, which)
    model = chosen.build(**given)
    onnx.checker.check_model(model, full_check=True)
    wanted = chosen.options | given
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert (dims[0], *dims[2:]) == (wanted["batch"], wanted["size"], wanted["size"])
    outputs = OrtModel(model.SerializeToString(), threads=1).run(chosen.inputs(model))
    for y in outputs.values():
        assert np.isfinite(y).all()
        assert 1e-3 < np.abs(y).max() < 1e3
    if "classes" in wanted:
        assert [y.shape for y in outputs.values()] == [(wanted["batch"], wanted["classes"])]
    kinds = {node.op_type for node in model.graph.node}
    if "batch_norm" in wanted:
        assert ("BatchNormalization" in kinds) == wanted["batch_norm"]


@pytest.mark.parametrize("name", BUILT)
def test_the_seed_decides(name: str) -> None:
    given = options(name, "small")
    first, same, other = (entry(name).build(**given, seed=s) for s in (3, 3, 4))
    assert first == same
    assert first != other


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compiled_agree_with_onnx_runtime(name: str) -> None:
    result = driver.optimize(entry(name).build(**SMALL[name]))
    _, made = compilation.compile_optimized(result)  # raises where the executable differs
    assert made.report.compilation is not None
    assert made.report.compilation.verification is not None
    assert made.report.compilation.verification.status == "passed"


@pytest.mark.parametrize("name", BUILT)
def test_everything_is_optimized_without_change_of_result(name: str) -> None:
    verification = driver.optimize(entry(name).build(**options(name, "other"))).report.verification
    assert verification is not None
    assert verification.status == "passed"


def kernels_and_strides(name: str, **given: Any) -> list[tuple[int, int]]:
    convs = [n for n in entry(name).build(**given).graph.node if n.op_type == "Conv"]
    values = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in convs]
    return [(v["kernel_shape"][0], v["strides"][0]) for v in values]


def test_the_place_of_a_bottlenecks_stride() -> None:
    assert kernels_and_strides("bottleneck", stride=2)[:3] == [(1, 1), (3, 2), (1, 1)]
    first = kernels_and_strides("bottleneck", stride=2, stride_on="1x1")[:3]
    assert first == [(1, 2), (3, 1), (1, 1)]
    with pytest.raises(UsageError, match="stride_on '5x5': one of 3x3, 1x1"):
        entry("bottleneck").build(stride_on="5x5")


@pytest.mark.parametrize(
    ("name", "layers", "millions"),
    [  # convolutions and FC layers, parameters, both as published (running statistics included)
        ("resnet", 50, 25.6),
        ("googlenet", 58, 7.0),
        ("mobilenet_v1", 28, 4.2),
        ("mobilenet_v2_seeded", 53, 3.5),
        ("squeezenet_v1_1", 26, 1.24),
        ("densenet", 121, 8.0),
    ],
)
def test_published_sizes(name: str, layers: int, millions: float) -> None:
    model = entry(name).build()
    nodes = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    shortcuts = 4 if name == "resnet" else 0  # which "50" does not count
    assert len(nodes) - shortcuts == layers
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    assert sum(sizes.values()) == pytest.approx(millions * 1e6, rel=0.02)


def test_one_name_is_one_network() -> None:
    names = [*BLOCKS, *TRAINED, *SUITE]
    assert len(set(names)) == len(names)
    assert set(names) <= set(REGISTRY)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("resnet", {"widht": 3}, "no option widht, did you mean 'width'.*it has size, classes"),
        ("squeezenet", {"size": 64}, "squeezenet has no option size; it is fixed"),
        ("fire", {"classes": 3}, "fire has no option classes; it has channels"),
        (
            "vgg",
            {"size": 8, "width": 4},
            "vgg: the input is too small, .* has a map of 1x1",
        ),
        ("resnet", {"stem": 3}, "stem=3: one of 1, 2, 4"),
        ("googlenet", {"modules": (2, 5)}, "googlenet cannot be built with modules="),
        ("nin", {"classes": 0}, "nin: classes=0 is below 1"),
        ("nin", {"width": "8"}, "nin: width='8' is not like width=192"),
        ("nin", {"batch_norm": 1}, "nin: batch_norm=1 is not like batch_norm=False"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        entry(name).build(**given)


def test_values_of_a_command_line() -> None:
    assert parse("width", "8", 64) == 8
    assert parse("width", "0.5", 1.0) == 0.5
    assert parse("depths", "1,2", (3, 4)) == (1, 2)
    assert parse("hidden", "", (3, 4)) == ()
    assert parse("hard", "true", False) is True
    assert parse("stride_on", "1x1", "3x3") == "1x1"
    with pytest.raises(UsageError, match="depths=a: write it like depths=3,4"):
        parse("depths", "a", (3, 4))
