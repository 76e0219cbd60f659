"""Every reference network by name: blocks, networks, the trained ones, the suite."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from pwopt.errors import UsageError, nearest
from pwopt.models import branching, fashion, plain, residual
from pwopt.models.blocks import BLOCKS, pointwise
from pwopt.models.suite import SUITE, SuiteModel
from pwopt.models.trained import TRAINED, Trained

BLOCK, NETWORK, FASHION, SUITE_KIND = "block", "network", "fashion", "suite"


@dataclass(frozen=True)
class Entry:
    """One reference network.

    Attributes:
        name: the key in :data:`REGISTRY`.
        kind: ``block`` and ``network`` have seeded weights and options, ``fashion`` is trained on
            Fashion-MNIST and comes with pwopt, ``suite`` is what pwopt is measured on.
        summary: what it is, in a line.
        make: the builder.
        preset: options in which it differs from its builder's defaults.
        package: that its files are taken from, or None if nothing has to be fetched.
    """

    name: str
    kind: str
    summary: str
    make: Callable[..., onnx.ModelProto]
    preset: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults; none where weights are given."""
        if self.kind not in (BLOCK, NETWORK):
            return {}
        parameters = inspect.signature(self.make).parameters
        return {name: p.default for name, p in parameters.items()} | dict(self.preset)

    def build(self, **options: Any) -> onnx.ModelProto:
        """The network.

        Raises:
            UsageError: it has no such option, options do not fit each other, or it has to be
                fetched first.
        """
        known = self.options
        for name, value in options.items():
            if name not in known:
                there = f"it has {', '.join(known)}" if known else "it is fixed, with its weights"
                raise UsageError(f"{self.name} has no option {name}{nearest(name, known)}; {there}")
            _check(self.name, name, value, known[name])
        try:
            return self.make(**{**self.preset, **options})
        except (InferenceError, ValidationError, ValueError, ZeroDivisionError) as error:
            given = ", ".join(f"{k}={v}" for k, v in options.items())
            reason = str(error).splitlines()[0]
            raise UsageError(f"{self.name} cannot be built with {given}: {reason}") from error

    def inputs(self, model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
        """Representative inputs for what :meth:`build` made, seeded."""
        if self.kind == SUITE_KIND:
            return SUITE[self.name].inputs(seed)
        if self.kind == FASHION:
            inputs = fashion.subset("test").inputs()
            return {"input": inputs[seed % len(inputs)][None]}
        (only,) = model.graph.input
        shape = [d.dim_value for d in only.type.tensor_type.shape.dim]
        return {only.name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def entry(name: str) -> Entry:
    """The reference network of a name.

    Raises:
        UsageError: there is none; the nearest name is part of the message.
    """
    if name not in REGISTRY:
        raise UsageError(
            f"no model {name!r}{nearest(name, REGISTRY)}; `pwopt models list` shows all"
        )
    return REGISTRY[name]


def measured(names: Iterable[str]) -> list[SuiteModel]:
    """Reference networks as the benchmark takes them.

    Args:
        names: of networks, or of kinds of them: ``block``, ``network``, ``fashion``, ``suite``.

    Raises:
        UsageError: there is no such network.
    """
    kinds = {each.kind for each in REGISTRY.values()}
    found: dict[str, Entry] = {}
    for name in names:
        group = [each for each in REGISTRY.values() if each.kind == name]
        found.update((each.name, each) for each in (group if name in kinds else [entry(name)]))
    return [_suite_model(each) for each in found.values()]


def _suite_model(each: Entry) -> SuiteModel:
    if each.kind == SUITE_KIND:
        return SUITE[each.name]
    build = functools.cache(each.build)

    def picture(seed: int) -> np.ndarray:
        return next(iter(each.inputs(build(), seed).values()))

    return SuiteModel(each.name, each.summary, each.kind == FASHION, build, picture, "input")


def parse(name: str, text: str, default: Any) -> Any:
    """An option's value from a command line, of its default's type.

    Raises:
        UsageError: the text is none.
    """
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split(",") if part)
        return type(default)(text)
    except (KeyError, ValueError):
        raise UsageError(f"{name}={text}: write it like {name}={_shown(default)}") from None


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _check(owner: str, name: str, value: Any, default: Any) -> None:
    """Refuses what no builder can make anything of: other types, sizes below one."""
    alike = {float: (int, float), tuple: (list, tuple)}
    kinds = alike.get(type(default), (type(default),))
    if not isinstance(value, kinds) or (isinstance(value, bool) != isinstance(default, bool)):
        raise UsageError(f"{owner}: {name}={value!r} is not like {name}={default!r}")
    least = 0 if name in ("seed", "reduction") else 1
    if isinstance(value, int) and not isinstance(value, bool) and value < least:
        raise UsageError(f"{owner}: {name}={value} is below {least}")


def _summary(function: Callable[..., Any]) -> str:
    first = (function.__doc__ or "").strip().splitlines()[0]
    return first.removesuffix(".").replace("`", "")


def _blocks() -> Iterator[Entry]:
    for source, to, size in ((192, 32, 28), (32, 192, 28), (512, 32, 12), (32, 512, 12)):
        verb = "reduce" if source > to else "expand"
        text = f"1x1 convolution, {source} to {to} channels at {size}x{size}"
        preset = {"channels": source, "out_channels": to, "size": size}
        yield Entry(f"{verb}_{source}_{to}", BLOCK, text, pointwise, preset)
    for name, make in BLOCKS.items():
        yield Entry(name, BLOCK, _summary(make), make)


def _networks() -> Iterator[Entry]:
    builders: dict[str, Callable[..., onnx.ModelProto]] = {
        "convnet": plain.convnet,
        "cnn": plain.cnn,
        "nin": plain.nin,
        "lenet": plain.lenet,
        "vgg": plain.vgg,
        "mobilenet_v1": plain.mobilenet_v1,
        "mobilenet_v2_seeded": residual.mobilenet_v2,
        "googlenet": branching.googlenet,
        "squeezenet_v1_1": branching.squeezenet_v1_1,
        "densenet": branching.densenet,
        "resnet": residual.resnet,
    }
    for name, make in builders.items():
        yield Entry(name, NETWORK, _summary(make), make)
    text = "ResNet with squeeze-excite, 50 layers deep with the default depths"
    yield Entry("se_resnet", NETWORK, text, residual.resnet, {"reduction": 16})


def _trained(network: Trained) -> Entry:
    text = f"{network.builder.__name__}, small, trained on Fashion-MNIST"
    return Entry(network.name, FASHION, text, network.build)


def _of_suite(model: SuiteModel) -> Entry:
    return Entry(model.name, SUITE_KIND, model.description, model.build, package=model.package)


REGISTRY: dict[str, Entry] = {
    e.name: e
    for e in (
        *_blocks(),
        *_networks(),
        *map(_trained, TRAINED.values()),
        *map(_of_suite, SUITE.values()),
    )
}
