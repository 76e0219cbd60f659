"""What an executable says of itself: inputs, outputs, segments, and where its code lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pwopt.errors import CodegenError
from pwopt.targets.launches import LaunchList

FORMAT = 2


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: ONNX name.
        dtype: ONNX element type in lower case, None if only known at run time.
        shape: extents, None or a symbol where only known at run time; None if the rank is unknown.
        key: the value's name inside the executable.
        optional: whether an input may be left out.
    """

    name: str
    dtype: str | None
    shape: tuple[Any, ...] | None
    key: str
    optional: bool = False

    def __str__(self) -> str:
        shape = "?" if self.shape is None else "x".join(str(d or "?") for d in self.shape)
        return f"{self.name!r} {self.dtype or '?'}[{shape}]"


@dataclass(frozen=True)
class SegmentSpec:
    """Machine code, GPU kernels, or a model for ONNX Runtime.

    Attributes:
        inputs, outputs: names are those inside the executable.
        entry: symbol of the machine code.
        workspace_bytes: of the machine code.
        model: range of bytes among the models.
        launches: of GPU kernels, by architecture.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    entry: str = ""
    workspace_bytes: int = 0
    model: tuple[int, int] = (0, 0)
    launches: Mapping[str, LaunchList] = field(default_factory=dict)


@dataclass
class Manifest:
    """Everything about an executable but its code, constants and models; stored as JSON.

    Attributes:
        inputs, outputs: of the graph, in order.
        segments: in the order of execution.
        threads: of one run.
        lanes: float32 elements of the vectors in the machine code.
        bf16: whether the machine code has AVX512-BF16's instructions.
        triple: LLVM's name of the machine, empty for the one that it was built on.
        cubins: by architecture and symbol of a kernel, its range of bytes among the cubins.
        metadata: pwopt's version, the source model's hash, target, passes and the like.
        report: one entry per kernel call: label, kernel, origin, macs, predicted_us, and how its
            weights are stored; and the fallback reasons.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    segments: tuple[SegmentSpec, ...]
    threads: int = 1
    lanes: int = 16
    bf16: bool = False
    triple: str = ""
    cubins: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as text."""
        plain = asdict(replace(self, segments=()))
        plain["segments"] = [
            asdict(replace(s, launches={}))
            | {"launches": {arch: each.to_json() for arch, each in s.launches.items()}}
            for s in self.segments
        ]
        return json.dumps({"format": FORMAT, **plain})

    @staticmethod
    def from_json(text: str) -> Manifest:
        """The manifest from its text."""
        fields = json.loads(text)
        if fields.pop("format", None) != FORMAT:
            raise CodegenError("the executable was written by another version of pwopt; rebuild it")

        def port(p: dict[str, Any]) -> Port:
            shape = None if p["shape"] is None else tuple(p["shape"])
            return Port(p["name"], p["dtype"], shape, p["key"], p["optional"])

        def ports(items: list[dict[str, Any]]) -> tuple[Port, ...]:
            return tuple(port(p) for p in items)

        segments = tuple(
            SegmentSpec(
                ports(s["inputs"]),
                ports(s["outputs"]),
                s["entry"],
                s["workspace_bytes"],
                tuple(s["model"]),
                {arch: LaunchList.from_json(each) for arch, each in s["launches"].items()},
            )
            for s in fields.pop("segments")
        )
        fields["cubins"] = {
            arch: {name: tuple(place) for name, place in kernels.items()}
            for arch, kernels in fields["cubins"].items()
        }
        return Manifest(
            ports(fields.pop("inputs")), ports(fields.pop("outputs")), segments, **fields
        )
