"""The lossy part of an optimization, before the exact one: on examples, within budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pwopt import calibration, layers
from pwopt.approximation import Approximation, mark_new_layers
from pwopt.calibration import Calibration, Preprocessing
from pwopt.errors import CodegenError, UsageError
from pwopt.growth import Budget
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.pipeline import AfterPass, Context, KernelTime, Pass, PassReport, Pipeline
from pwopt.running import input_types

Examples = Calibration | str | Path  # or a file or folder of them


@dataclass(frozen=True)
class Approximated:
    """A model that computes nearly the same.

    Attributes:
        graph: the model.
        passes: what each pass did.
        approximations: what each lossy pass did.
    """

    graph: Graph
    passes: tuple[PassReport, ...]
    approximations: tuple[Approximation, ...]


def approximate(
    original: Graph,
    passes: Sequence[Pass],
    machine: Hardware,
    target: str = "cpu",
    *,
    examples: Examples | None = None,
    preprocessing: str | None = None,
    measured: bool = True,
    room: Budget | None = None,
    after_pass: AfterPass | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Approximated:
    """Runs lossy passes, each once, on a model that was cleaned up before.

    Args:
        original: is not changed.
        passes: lossy ones.
        machine: to make it faster on.
        target: "cpu" or "cuda".
        examples: calibration data, or a file or folder; random numbers if left out.
        preprocessing: of images and bytes: see :meth:`Preprocessing.parse`.
        measured: whether layers may be measured, where ``machine`` is this one.
        room: what the constants may take; without a limit if left out.
        after_pass: see :class:`pwopt.pipeline.Pipeline`.
        progress: called with a few words at the start of each step.

    Raises:
        UsageError: the examples cannot be read or do not fit the model.
        PassError: a pass failed.
    """
    from pwopt.passes import CLEAN_UP

    data = None
    if examples is None and preprocessing is not None:
        raise UsageError("a preprocessing is that of calibration data: give --calibration, too")
    if examples is not None:
        progress("reading calibration data")
        data = load_examples(examples, original, preprocessing)
    context = Context(machine, target, calibration=data, budget=room or Budget())
    if measured:
        context.measure = lambda graph: kernel_times(graph, machine, target)
    graph = original.copy()
    rows = Pipeline([each() for each in CLEAN_UP], after_pass=after_pass).run(graph, context)
    clean = graph.copy()
    for each in passes:
        progress(each.name)
        rows += Pipeline([each], rounds=1, after_pass=after_pass).run(graph, context)
    if graph.version != clean.version:
        mark_new_layers(graph, clean)
    return Approximated(graph, tuple(rows), tuple(context.approximations))


def load_examples(examples: Examples, graph: Graph, preprocessing: str | None) -> Calibration:
    """Calibration data for a model's inputs.

    Raises:
        UsageError: they cannot be read or do not fit the model.
    """
    if isinstance(examples, Calibration):
        if examples.inputs.keys() != input_types(graph).keys():
            raise UsageError(
                f"calibration data for {', '.join(examples.inputs)}; "
                f"the model's inputs are {', '.join(input_types(graph))}"
            )
        return examples
    how = None if preprocessing is None else Preprocessing.parse(preprocessing)
    return calibration.load(examples, input_types(graph), how)


def kernel_times(graph: Graph, machine: Hardware, target: str) -> Sequence[KernelTime]:
    """Measures the kernels of a graph after the exact passes.

    Returns:
        nothing where a node has no kernel, or a dimension is open.
    """
    from pwopt.passes import default_pipeline

    if any(node.out.tensor.static_shape is None for node in graph.inputs):
        return ()
    graph = graph.copy()
    Pipeline(default_pipeline()).run(graph, Context(machine, target))
    try:
        times = layers.measure(graph, machine)
    except CodegenError:
        return ()
    return [KernelTime(frozenset(node.origin), us) for node, us in times.items()]
