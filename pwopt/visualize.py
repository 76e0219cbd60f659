"""What ``pwopt visualize`` does: read a model and what was made of it, and draw."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt import cost, limits, sources
from pwopt.approximation import Approximation, LayerChange
from pwopt.errors import PwoptError, UsageError, nearest
from pwopt.ir.graph import Graph, Node
from pwopt.output import GENERATOR, REPORT
from pwopt.pictures import style
from pwopt.pictures.channels import Chain, Channels, directions, draw_channels, singular_values
from pwopt.pictures.layers import LayerSize, draw_layers
from pwopt.pictures.sweep import draw_sweep
from pwopt.pipeline import Context, Pipeline
from pwopt.report import is_pointwise, plain_json
from pwopt.sweep import Sweep, run_sweep
from pwopt.units import human

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 6
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LISTED = 8  # names that a message shows


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        model: path of the original.
        out: folder that ``pwopt optimize`` wrote, or None.
        folder: for the pictures; what else is in it stays.
        format: "png" or "svg".
        layers: names of those whose channels are drawn; the largest if empty.
        top: how many of these: 1x1 convolutions, and as many replaced layers.
        sweep: budgets to optimize the model with; none for no such picture.
        calibration: a file or folder of examples for the sweep.
        preprocessing: of images and bytes among these.
        input_shapes: sizes for open dimensions, by input name.
    """

    model: Path
    out: Path | None = None
    folder: Path = Path("pictures")
    format: str = "png"
    layers: tuple[str, ...] = ()
    top: int = TOP
    sweep: tuple[float, ...] = ()
    calibration: Path | None = None
    preprocessing: str | None = None
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """What was drawn.

    Attributes:
        files: of the pictures, in order.
        channels: a layer for each picture of channels.
        layers: all of them.
        sweep: None where there is none.
    """

    files: tuple[Path, ...]
    channels: tuple[Channels, ...]
    layers: tuple[LayerSize, ...]
    sweep: Sweep | None

    def to_json(self) -> dict[str, Any]:
        """The figures behind the pictures as JSON's types; matrices by their singular values."""
        channels = []
        for each in self.channels:
            row = plain_json(replace(each, matrix=None))
            del row["matrix"]
            if each.matrix is not None:
                values = singular_values(each.matrix)
                row["singular_values"] = [float(value) for value in values]
                row["directions_of_99_percent"] = directions(values**2, 0.99)
            channels.append(row)
        rest = {"layers": self.layers, "sweep": self.sweep}
        return {"files": [str(f) for f in self.files], "channels": channels, **plain_json(rest)}


def visualize(request: Request, progress: Callable[[str], None] = lambda _: None) -> Pictures:
    """Draws ``channels-LAYER``, ``layers`` and, where budgets are given, ``sweep``.

    Batch normalization and the like are folded into the weights that are shown, as the lossy
    passes see them.

    Raises:
        UsageError: matplotlib is missing, or a name, number or folder is wrong.
        PwoptError: the model cannot be read, or a picture cannot be written.
    """
    _check(request)
    progress("reading")
    original, source = sources.read(request.model, request.input_shapes)
    limits.check_sizes(original)
    graph, names = cleaned(original), layer_names(original)
    made = read_approximations(request.out, source.sha256) if request.out else ()
    changes = [layer for each in made for layer in each.layers]
    channels = choose(find_channels(graph, changes, names), request.layers, request.top)
    if not channels and not changes and not request.sweep:
        raise PwoptError(
            f"{request.model}: has no 1x1 convolution to draw; give what `pwopt optimize "
            "--bottleneck` wrote, too, or --sweep"
        )
    sizes = layer_sizes(graph, changes, names)
    sweep = None
    if request.sweep:
        sweep = run_sweep(
            original,
            sorted(request.sweep),
            calibration=request.calibration,
            preprocessing=request.preprocessing,
            progress=progress,
        )
    progress("drawing")
    files = _write(request, channels, sizes, sweep)
    return Pictures(tuple(files), tuple(channels), tuple(sizes), sweep)


def cleaned(graph: Graph) -> Graph:
    """The graph as lossy passes see it, so that layers have the names of the report."""
    from pwopt.passes import CLEAN_UP

    graph = graph.copy()
    Pipeline([each() for each in CLEAN_UP]).run(graph, Context())
    return graph


def layer_names(original: Graph) -> frozenset[str]:
    """Names of the nodes that multiply, which those that absorb others go by."""
    return frozenset(n.name for n in original.nodes() if n.op in _LAYERS)


def read_approximations(out: Path, sha256: str) -> tuple[Approximation, ...]:
    """What lossy passes did, from the report in a folder.

    Args:
        out: folder that ``pwopt optimize`` wrote.
        sha256: of the model that it was made from.

    Raises:
        UsageError: it is no such folder, of another model, or nothing lossy was done.
    """
    try:
        report = json.loads((out / REPORT).read_text())
        if report["generator"] != GENERATOR:
            raise ValueError("another program wrote it")
        found, made_from = report["approximations"], report["source"]
        made = tuple(Approximation.from_json(each) for each in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{out / REPORT}: no report of `pwopt optimize` ({type(error).__name__}: {error})"
        ) from error
    if made_from["sha256"] != sha256:
        raise UsageError(f"{out}: was made from another model, {made_from['path']}")
    if not made:
        raise UsageError(
            f"{out}: nothing in it was approximated; optimize with --bottleneck or "
            "--replace-fc-head, or leave it out"
        )
    return made


def find_channels(
    graph: Graph, changes: Sequence[LayerChange], names: Collection[str] = ()
) -> list[Channels]:
    """The 1x1 convolutions, and other layers that narrower ones took the place of.

    Args:
        graph: see :func:`cleaned`.
        changes: of its layers.
        names: see :func:`layer_names`.
    """
    by_node = {each.node: each for each in changes if not each.others}
    found = []
    for node in graph.topological():
        change = by_node.get(node.label)
        weight = graph.constant_value(graph.operand(node, 1)) if node.is_op("Conv") else None
        if weight is not None and is_pointwise(graph, node):
            matrix = _mixing(weight.reshape(weight.shape[:2]), node.get("group", 1))
            widths = (matrix.shape[1], matrix.shape[0])
            kernel = "x".join(map(str, weight.shape[2:]))
            before, macs = Chain(widths, (kernel,)), cost.node_macs(graph, node)
            layer = Channels(node.label, _name(node, names), macs, before, None, matrix)
            found.append(_changed(layer, change))
        elif change is not None and change.spectrum:
            widths = (change.channels_in, change.channels_out)
            kernel = "x".join(map(str, weight.shape[2:])) if weight is not None else "FC"
            before, macs = Chain(widths, (kernel,)), change.macs_before
            layer = Channels(node.label, _name(node, names), macs, before)
            found.append(_changed(layer, change))
    return found


def choose(found: Sequence[Channels], names: Sequence[str], top: int) -> list[Channels]:
    """Layers by name, or the largest 1x1 convolutions and as many of the replaced layers.

    Raises:
        UsageError: no such layer; names the nearest.
    """
    if not names:
        groups = [c for c in found if c.matrix is not None], [c for c in found if c.after]
        largest = [sorted(group, key=lambda c: -c.macs)[:top] for group in groups]
        return [each for each in found if any(each in some for some in largest)]
    known = {key: c for c in found for key in (c.node, style.bare(c.node), c.name)}
    for name in names:
        if name not in known:
            every = [each.name for each in found]
            more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
            raise UsageError(
                f"--layers {name}: no 1x1 convolution or replaced layer{nearest(name, every)}; "
                f"there are {', '.join(every[:_LISTED]) or 'none'}{more}"
            )
    return list(dict.fromkeys(known[name] for name in names))


def layer_sizes(
    graph: Graph, changes: Sequence[LayerChange], names: Collection[str] = ()
) -> list[LayerSize]:
    """The layers that multiply, each with what stands in its place after the changes.

    Args:
        graph: see :func:`cleaned`.
        changes: of its layers.
        names: see :func:`layer_names`.
    """
    sizes: dict[str, LayerSize] = {}
    for node in graph.topological():
        macs = cost.node_macs(graph, node)
        if not macs:
            continue
        own = _parameters(graph, node)
        pointwise = is_pointwise(graph, node)
        name = _name(node, names)
        sizes[node.label] = LayerSize(node.label, name, pointwise, own, macs, own, macs)
    rows = {label: label for label in sizes}
    for change in changes:
        row = rows[_known(change.node, rows)]
        gone = [sizes.pop(label) for label in change.others if label in sizes]
        rows |= dict.fromkeys(change.others, row)
        old = [sizes[row], *gone]
        parameters = change.parameters_after - change.parameters_before
        macs = change.macs_after - change.macs_before
        name = sizes[row].name + (f" and {len(gone)} more" if gone else "")
        sizes[row] = replace(
            sizes[row],
            name=name,
            parameters=sum(each.parameters for each in old),
            macs=sum(each.macs for each in old),
            parameters_after=sum(each.parameters_after for each in old) + parameters,
            macs_after=sum(each.macs_after for each in old) + macs,
        )
    return list(sizes.values())


def _known(label: str, labels: Collection[str]) -> str:
    """The original layer that a change is about: parts are called LAYER/PART.

    Raises:
        PwoptError: there is none.
    """
    if label in labels:
        return label
    names, name = {style.bare(each): each for each in labels}, style.bare(label)
    while name not in names and "/" in name:
        name = name.rpartition("/")[0]
    if name not in names:
        raise PwoptError(f"{label}: the report says that it was replaced, but it is not there")
    return names[name]


def _name(node: Node, names: Collection[str]) -> str:
    """What a node is called in pictures: by the layer in it, not by what it absorbed."""
    return next((name for name in node.origin if name in names), style.bare(node.label))


def _changed(layer: Channels, change: LayerChange | None) -> Channels:
    """A layer with what took its place."""
    if change is None:
        return layer
    inputs, outputs = layer.before.widths
    kernel = layer.before.kernels[0]
    widths, kernels = [inputs], [kernel]
    if change.rank_in is not None:
        widths, kernels = [inputs, change.rank_in], ["1x1", kernel]
    if change.rank_out is not None:
        widths, kernels = [*widths, change.rank_out], [*kernels, "1x1"]
    return replace(
        layer,
        after=Chain((*widths, outputs), tuple(kernels)),
        rank_in=change.rank_in,
        rank_out=change.rank_out,
        spectrum=change.spectrum,
        spectrum_in=change.spectrum_in,
    )


def _mixing(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights (outputs, inputs / groups) as one matrix, with zeros between the groups."""
    if groups == 1:
        return weight
    outputs, inputs = weight.shape
    whole = np.zeros((groups, outputs // groups, groups, inputs), weight.dtype)
    parts = np.arange(groups)
    whole[parts, :, parts] = weight.reshape(groups, -1, inputs)
    return whole.reshape(outputs, -1)


def _parameters(graph: Graph, node: Node) -> int:
    constants = {v for v in graph.operands(node) if v is not None and v.node.is_constant}
    return sum(v.tensor.elements or 0 for v in constants)


def _check(request: Request) -> None:
    """Everything that can be known to fail before the work starts."""
    style.require_matplotlib("pwopt visualize")
    if request.format not in style.FORMATS:
        hint = nearest(request.format, style.FORMATS)
        raise UsageError(f"--format {request.format}{hint}: one of {', '.join(style.FORMATS)}")
    if not request.sweep and (request.calibration or request.preprocessing):
        raise UsageError("calibration data are for a sweep of budgets: give --sweep, too")
    if request.folder.exists() and not request.folder.is_dir():
        raise UsageError(f"{request.folder}: is a file; name a folder for the pictures")


def _write(
    request: Request,
    channels: Sequence[Channels],
    sizes: Sequence[LayerSize],
    sweep: Sweep | None,
) -> list[Path]:
    files: list[Path] = []

    def write(figure: Figure, name: str) -> None:
        path = request.folder / f"{name}.{request.format}"
        number = 2
        while path in files:
            path = request.folder / f"{name}-{number}.{request.format}"
            number += 1
        style.save(figure, path)
        files.append(path)

    try:
        request.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PwoptError(f"{request.folder}: cannot be written: {error.strerror}") from error
    for each in channels:
        write(draw_channels(each, _title(each)), f"channels-{_slug(each.name)}")
    if sizes:
        write(draw_layers(sizes, request.model.stem), "layers")
    if sweep is not None:
        title = f"{request.model.stem}: bottlenecks within budgets"
        write(draw_sweep(sweep, title), "sweep")
    return files


def _title(layer: Channels) -> str:
    kernel, macs = layer.before.kernels[0], f"{human(layer.macs)} MACs"
    kind = "fully connected" if kernel == "FC" else f"{kernel} convolution"
    return f"{style.short(layer.name, 60)}: {kind}, {macs}"


def _slug(name: str) -> str:
    """A name that is safe in a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-80:] or "layer"
