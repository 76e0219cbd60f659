"""Operators without a kernel of ours, computed by TVM's own.

A node is exported as a model of its own, read by TVM's ONNX importer, legalized to TIR functions
and scheduled (:mod:`pwopt.targets.cpu.tvm_functions`). Whatever is not plainly a sequence of such
functions on static shapes is refused, and then ONNX Runtime runs the node.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm

from pwopt.cost import node_macs
from pwopt.errors import PwoptError
from pwopt.hardware import Hardware
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Opaque, Value
from pwopt.ir.types import TensorType
from pwopt.targets.cpu.codegen import target
from pwopt.targets.cpu.fallback_ops import refusal
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.tvm_functions import Function, calls_packed, from_tvm
from pwopt.targets.plan import Pointer, Tensor, place
from pwopt.targets.values import Unsupported, memory_dtype, static_shape
from pwopt.targets.views import View

MOST_MACS = 1 << 24  # of a convolution or product; TVM's loops for them are 10x off the peak
MOST_CONSTANT_BYTES = 1 << 22  # of a node's constants, which TVM copies and folds

# (dtype, shape) of a tensor in TVM
Kind = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Ref:
    """Where a function's operand comes from: an operand of the node, a constant, or a result."""

    slot: int = -1
    constant: bytes = b""
    call: int = -1
    result: int = 0


@dataclass
class Recipe:
    """A node as calls of TVM functions.

    Attributes:
        calls: (function, operands, kinds of the results).
        results: the node's results by index; those that nothing reads are absent.
        constants: by the digest that references name.
    """

    calls: list[tuple[Function, list[Ref], list[Kind]]] = field(default_factory=list)
    results: dict[int, Ref] = field(default_factory=dict)
    constants: dict[bytes, np.ndarray] = field(default_factory=dict)


class TvmFallback:
    """Lowers nodes through TVM; each distinct node is tried once.

    Attributes:
        hardware: the processor.
        threads: of one run.
    """

    def __init__(self, hardware: Hardware, threads: int = 1) -> None:
        self.hardware, self.threads = hardware, threads
        self._tried: dict[Any, Recipe | str] = {}

    def __call__(self, lowering: Lowering, node: Node) -> None:
        """Lowers a node.

        Raises:
            Unsupported: TVM cannot, or may not; the text says why.
        """
        _check(lowering, node)
        key = _key(lowering, node)
        if key not in self._tried:
            try:
                self._tried[key] = _recipe(lowering, node, self.hardware, self.threads)
            except Unsupported as reason:
                self._tried[key] = str(reason)
        recipe = self._tried[key]
        if isinstance(recipe, str):
            raise Unsupported(recipe)
        _emit(lowering, node, recipe)


def _check(lowering: Lowering, node: Node) -> None:
    """Raises Unsupported for nodes that TVM need not see."""
    if node.domain not in ("", KERNEL_DOMAIN):
        raise Unsupported(f"an operator of {node.domain}")
    operands = [v for v in lowering.operands(node) if v is not None]
    results = [node[i] for i in range(len(node.types)) if lowering.is_read(node[i])]
    dtypes = {v.tensor.dtype for v in (*operands, *results)}
    if node.domain == "" and (
        reason := refusal(node.op, {d for d in dtypes if d}, node.attributes)
    ):
        raise Unsupported(reason)
    if node.captures or any(isinstance(a, Opaque) for a in node.attributes.values()):
        raise Unsupported("it has subgraphs or attributes of its own kind")
    for value in (*operands, *results):
        memory_dtype(value.tensor.dtype or "unknown")
        if value.tensor.dtype == "bfloat16":
            raise Unsupported(f"{value.label} is bfloat16")
        if 0 in static_shape(value):
            raise Unsupported(f"{value.label} is empty")
    arrays = (lowering.array(v) for v in operands)
    if sum(a.nbytes for a in arrays if a is not None) > MOST_CONSTANT_BYTES:
        raise Unsupported("large constants")
    macs = node_macs(lowering.graph, node)
    if macs > MOST_MACS:
        raise Unsupported(f"TVM's kernel for {macs / 1e6:.0f} million products is slow")


def _key(lowering: Lowering, node: Node) -> Any:
    """Equal for nodes that TVM lowers alike."""

    def frozen(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return (item.dtype.str, item.shape, hashlib.sha256(item.tobytes()).digest())
        return (type(item).__name__, item if item.__hash__ else repr(item))

    values = lowering.operands(node)
    first = {v: i for i, v in reversed(list(enumerate(values)))}
    operands = tuple(
        None
        if v is None
        else frozen(a)
        if (a := lowering.array(v)) is not None
        else (first[v], v.tensor.dtype, v.shape)
        for v in values
    )
    results = tuple((str(t), lowering.is_read(node[i])) for i, t in enumerate(node.types))
    attributes = tuple((k, frozen(v)) for k, v in sorted(node.attributes.items()))
    opset = lowering.graph.opsets.get("", 1)
    return (node.domain, node.op, opset, attributes, operands, results)


def _recipe(lowering: Lowering, node: Node, hardware: Hardware, threads: int) -> Recipe:
    """Builds a recipe; whatever goes wrong in TVM is a reason."""
    graph, wanted = _alone(lowering, node)
    try:
        model = graph.to_onnx()
    except PwoptError as error:
        raise Unsupported(str(error)) from None
    dtypes = {v.tensor.dtype or "" for v in lowering.operands(node) if v is not None}
    for part in model.graph.node if node.domain else ():  # what an internal op consists of
        if reason := refusal(part.op_type, dtypes, {}):
            raise Unsupported(reason)
    with _quiet():  # TVM's parts also talk when they are thrown away
        made = _attempt(model, wanted, hardware, threads)
    if isinstance(made, str):
        raise Unsupported(made)
    return made


def _attempt(
    model: Any, wanted: list[tuple[int, Kind]], hardware: Hardware, threads: int
) -> Recipe | str:
    """A recipe, or why there is none; keeps no exception, nor what it refers to."""
    try:
        return _Walk(_legalized(model, target(hardware)), hardware, threads).recipe(wanted)
    except Unsupported as reason:
        return str(reason)
    except Exception as error:
        lines = str(error).strip().splitlines()
        text = lines[-1].strip() if lines else ""
        traceback.clear_frames(error.__traceback__)
        return f"TVM: {type(error).__name__}: {text[:120]}"


def _alone(lowering: Lowering, node: Node) -> tuple[Graph, list[tuple[int, Kind]]]:
    """The node as a graph, and the results that it must give: (index, kind)."""
    graph = Graph("node", lowering.graph.opsets)
    mapped: dict[Value, Value] = {}
    for slot, value in enumerate(lowering.operands(node)):
        if value is None or value in mapped:
            continue
        array = lowering.array(value)
        mapped[value] = (
            graph.add_input(f"x{slot}", TensorType(value.tensor.dtype, static_shape(value)))
            if array is None
            else graph.constant(array, f"c{slot}")
        )
    copy = graph.add(
        node.op,
        [None if v is None else mapped[v] for v in lowering.operands(node)],
        node.attributes,
        domain=node.domain,
        types=node.types,
        names=[f"y{i}" for i in range(len(node.types))],
    )
    wanted: list[tuple[int, Kind]] = []
    for i in range(len(node.types)):
        if lowering.is_read(node[i]):
            graph.add_output(f"y{i}", copy[i])
            wanted.append((i, (str(node[i].tensor.dtype), static_shape(node[i]))))
    return graph, wanted


def _legalized(model: Any, for_target: Any) -> Any:
    """A model as a module of functions and calls of them."""
    from tvm.relax import transform as relax  # half a second that most models need not spend
    from tvm.relax.backend import DispatchSortScan
    from tvm.relax.frontend.onnx import from_onnx

    passes = [
        relax.DecomposeOpsForInference(),
        DispatchSortScan(),
        relax.LegalizeOps(),
        relax.FoldConstant(),
        relax.AnnotateTIROpPattern(),
        relax.FuseOps(),
        relax.FuseTIR(),
        relax.DeadCodeElimination(),
    ]
    with for_target:
        return tvm.ir.transform.Sequential(passes)(from_onnx(model))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what TVM says of what it then raises, in Python and from C++."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
    ):
        warnings.simplefilter("ignore")
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


class _Walk:
    """Reads the main function of a legalized module as a recipe."""

    def __init__(self, module: Any, hardware: Hardware, threads: int) -> None:
        self._module, self._hardware, self._threads = module, hardware, threads
        self._recipe = Recipe()
        self._known: dict[Any, list[Ref]] = {}  # the parts of each variable

    def recipe(self, wanted: list[tuple[int, Kind]]) -> Recipe:
        """The recipe, whose results are those wanted."""
        main = self._module["main"]
        for parameter in main.params:
            name = str(parameter.name)
            if not name.startswith("x") or not name[1:].isdigit():
                raise Unsupported(f"TVM renamed operands ({name})")
            self._known[parameter] = [Ref(slot=int(name[1:]))]
        for block in main.body.blocks:
            for binding in block.bindings:
                self._known[binding.var] = self._parts(binding.value)
        self._check(main.body.body.ty, [kind for _, kind in wanted])
        results = self._parts(main.body.body)
        self._recipe.results = {i: r for (i, _), r in zip(wanted, results, strict=True)}
        return self._recipe

    def _check(self, given: Any, wanted: list[Kind]) -> None:
        got = [_kind(t) for t in getattr(given, "fields", [given])]
        if got != wanted:
            raise Unsupported(f"TVM gives {got}, where {wanted} is declared")

    def _parts(self, value: Any) -> list[Ref]:
        from tvm import relax

        if value in self._known:
            return self._known[value]
        if isinstance(value, tvm.ir.GenericConst):
            return [self._constant(np.asarray(value.value.numpy()))]
        if isinstance(value, relax.Tuple):
            return [part for item in value.fields for part in self._parts(item)]
        if isinstance(value, relax.TupleGetItem):
            return [self._parts(value.tuple_value)[value.index]]
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
            return self._call(value)
        what = getattr(getattr(value, "op", None), "name", type(value).__name__)
        raise Unsupported(f"TVM has no loops for {what}")

    def _call(self, call: Any) -> list[Ref]:
        if len(call.args) > 2:
            raise Unsupported("sizes that TVM takes at run time")
        function = self._module[call.args[0]]
        operands = self._parts(call.args[1])
        if calls_packed(function):
            raise Unsupported("TVM's function calls a library")
        given = call.ty_args[0]
        kinds = [_kind(t) for t in getattr(given, "fields", [given])]
        if len(function.params) != len(operands) + len(kinds):
            raise Unsupported("a function of TVM with extra parameters")
        made = Function(function, self._hardware, self._threads)
        self._recipe.calls.append((made, operands, kinds))
        index = len(self._recipe.calls) - 1
        return [Ref(call=index, result=i) for i in range(len(kinds))]

    def _constant(self, array: np.ndarray) -> Ref:
        text = f"{array.dtype} {array.shape} ".encode()
        digest = hashlib.sha256(text + array.tobytes()).digest()
        self._recipe.constants[digest] = np.array(array)
        return Ref(constant=digest)


def _kind(given: Any) -> Kind:
    try:
        return str(given.dtype.dtype), tuple(int(e) for e in given.shape.values)
    except (AttributeError, TypeError):
        raise Unsupported("a shape that TVM does not know at build time") from None


def _emit(lowering: Lowering, node: Node, recipe: Recipe) -> None:
    """Emits a recipe's calls; its results become the node's."""
    made: dict[Ref, Tensor] = {}
    after: list[Callable[[], None]] = []
    for index, ref in recipe.results.items():
        if ref.call >= 0 and ref not in made:
            made[ref] = _result(lowering, node[index], after)
    values = lowering.operands(node)

    def tensor(ref: Ref) -> Tensor:
        if ref.constant:
            return lowering.constant(recipe.constants[ref.constant], key=("tvm", ref.constant))
        if ref.slot >= 0:
            value = values[ref.slot]
            assert value is not None
            return _aligned(lowering, lowering.dense(value))
        return made[ref]

    for index, (function, operands, kinds) in enumerate(recipe.calls):
        for i, (dtype, shape) in enumerate(kinds):
            if Ref(call=index, result=i) not in made:
                view = View.dense(shape, memory_dtype(dtype))
                made[Ref(call=index, result=i)] = Tensor(lowering.workspace(view), view)
        results = [made[Ref(call=index, result=i)] for i in range(len(kinds))]
        pointers: list[Pointer] = [place(tensor(r))[0] for r in operands]
        pointers += [place(t)[0] for t in results]
        writes = range(len(operands), len(pointers))
        lowering.emit(from_tvm, (function,), pointers, writes=tuple(writes))
    for finish in after:
        finish()
    first: dict[Ref, int] = {}
    for index, ref in recipe.results.items():
        if ref.call < 0 or ref in first:
            lowering.alias(node[index], tensor(ref))
        first.setdefault(ref, index)


def _result(lowering: Lowering, value: Value, after: list[Callable[[], None]]) -> Tensor:
    """Memory that a result is computed into; where it belongs elsewhere, a copy comes after."""
    wanted = lowering.result(value, tuple(range(len(static_shape(value)))))
    if wanted.view.is_row_major and place(wanted)[1].offset == 0:
        return wanted
    view = View.dense(wanted.view.shape, wanted.view.dtype)
    own = Tensor(lowering.workspace(view, value.label), view)
    after.append(lambda: lowering.copy_into(own, wanted))
    return own


def _aligned(lowering: Lowering, tensor: Tensor) -> Tensor:
    if place(tensor)[1].offset == 0:
        return tensor
    return lowering.copied(tensor, View.dense(tensor.view.shape, tensor.view.dtype))
