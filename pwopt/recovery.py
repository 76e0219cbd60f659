"""Training a network's accuracy back after lossy passes: the new layers alone, or all of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pwopt import approximation, sources
from pwopt.approximation import Judge, Loss
from pwopt.calibration import Calibration
from pwopt.errors import UsageError, nearest
from pwopt.ir.extraction import extract
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Use, Value
from pwopt.ir.internal import expand
from pwopt.lossy import Examples, load_examples
from pwopt.running import input_types

MODES = ("feature-extraction", "finetune")
_RATES = {"feature-extraction": 1e-2, "finetune": 5e-4}  # peaks of the learning rate
_HELD_OUT = 0.1  # of the examples
_SOFTMAX = ("Softmax", "LogSoftmax")
_VIEWS = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze")  # that may stand behind it
_MAX_CACHED_BYTES = 2 << 30  # of features in front of the trained layers


@dataclass(frozen=True)
class RecoveryOptions:
    """How to train.

    Attributes:
        mode: "feature-extraction" trains the layers that lossy passes put in, "finetune" all.
        layers: names of the nodes to train in the place of those.
        epochs: at most.
        patience: epochs without a better held-out loss, in the second half, after which it ends.
        rate: peak of the learning rate; by mode if left out.
        batch: examples a step.
        seed: of the split and of the order.
        threads: of PyTorch.
    """

    mode: str = "feature-extraction"
    layers: tuple[str, ...] = ()
    epochs: int = 10
    patience: int = 3
    rate: float | None = None
    batch: int = 128
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is none."""
        if self.mode not in MODES:
            hint = nearest(self.mode, MODES)
            raise UsageError(f"mode {self.mode!r}{hint}; one of {', '.join(MODES)}")
        if self.layers and self.mode == "finetune":
            raise UsageError("finetune trains all layers: leave out --layer")
        numbers = {"epochs": self.epochs, "patience": self.patience, "batch": self.batch}
        for name, value in {**numbers, "threads": self.threads}.items():
            if value < 1:
                raise UsageError(f"{name} {value}: at least 1")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"rate {self.rate:g}: it is positive and finite")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed}: from 0 to 2**63 - 1")


@dataclass(frozen=True)
class Recovered:
    """A trained network.

    Attributes:
        graph: the network.
        options: how it was trained.
        trained: nodes whose weights were trained.
        parameters: how many numbers that are.
        epochs: that were run.
        best_epoch: whose weights these are; 0 for those from before.
        examples: that were trained on.
        teacher: whether there was one.
        before, after: on held-out examples, against the teacher, or else the network from before.
    """

    graph: Graph = field(repr=False)
    options: RecoveryOptions
    trained: tuple[str, ...]
    parameters: int
    epochs: int
    best_epoch: int
    examples: int
    teacher: bool
    before: Loss
    after: Loss

    def to_json(self) -> dict[str, Any]:
        """Everything but the graph, as JSON's types."""
        from pwopt.report import plain_json

        plain = plain_json({k: v for k, v in vars(self).items() if k != "graph"})
        assert isinstance(plain, dict)
        return plain

    def __str__(self) -> str:
        lines = [
            f"trained     {len(self.trained)} layers, {self.parameters} parameters, "
            f"{self.epochs} epochs on {self.examples} examples; best after {self.best_epoch}"
        ]
        count = self.after.examples
        if self.before.accuracy_after is not None and self.after.accuracy_after is not None:
            step = f"{self.before.accuracy_after:.2%} -> {self.after.accuracy_after:.2%}"
            lines.append(f"accuracy    {step} on {count} held-out examples")
            if self.teacher:
                lines[-1] += f"; teacher {self.after.accuracy_before:.2%}"
        if self.teacher:
            step = f"{self.before.agreement:.2%} -> {self.after.agreement:.2%}"
            lines.append(f"same class  {step} as the teacher, on {count} held-out examples")
        return "\n".join(lines)


def recover(
    model: sources.Model,
    data: Examples,
    options: RecoveryOptions | None = None,
    *,
    teacher: sources.Model | None = None,
    preprocessing: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    done: Callable[[float], None] = lambda _: None,
) -> Recovered:
    """Trains a classifier of one input against labels, a teacher's class scores, or both.

    Args:
        model: a path, a model's bytes, an ``onnx.ModelProto`` or a :class:`Graph`; not changed.
        data: examples, or a file or folder of them; a tenth of them is held out.
        options: mode, epochs, learning rate.
        teacher: the original network, whose class probabilities are to be met.
        preprocessing: of images and bytes.
        input_shapes: sizes for open dimensions, by input name.
        checkpoint: a file that every epoch is saved to, and from which training goes on. It stays:
            who has saved the result removes it.
        progress: called with a few words at the start of each step.
        done: called with the share of the training that is done; an early end comes before 1.

    Raises:
        UsageError: no PyTorch, no labels and no teacher, data or a teacher that do not fit, layers
            that are not there, or an operator that cannot be trained through.
        FrontendError: a model cannot be read.
        OrtError: a model cannot be run.
    """
    options = options or RecoveryOptions()
    graph = _standard(sources.read(model, input_shapes, batch=None)[0])
    if len(graph.inputs) != 1:
        raise UsageError(
            f"the model has {len(graph.inputs)} inputs; classifiers of one are trained"
        )
    chosen = _chosen(graph, options)
    graph = _unshared(graph, chosen)
    progress("reading data")
    examples = load_examples(data, graph, preprocessing)
    if examples.labels is None and teacher is None:
        raise UsageError(
            "there is nothing to train against: give labels with the data, or --teacher"
        )
    master = (
        None if teacher is None else _standard(sources.read(teacher, input_shapes, batch=None)[0])
    )
    _check_classes(graph, master, examples)
    from pwopt.training import GraphModule, Schedule
    from pwopt.training.recover import recover as train

    part = Part(graph, chosen, len(examples))
    module = GraphModule(part.graph, None if chosen is None else lambda n: n.name in chosen)
    weights = [p for p in module.parameters() if p.requires_grad]
    if not weights:
        what = "the model" if chosen is None else ", ".join(sorted(chosen))
        raise UsageError(f"{what}: no weights that the first output depends on")
    kept, held_out = examples.split(1 - _HELD_OUT, _HELD_OUT, seed=options.seed)
    judge = Judge(graph if master is None else master, held_out)
    progress("running what stays as it is, and the teacher")
    taught, judging = (_taught(part, each, master) for each in (kept, held_out))
    rate = options.rate or _RATES[options.mode]
    schedule = Schedule(
        options.epochs, options.batch, rate, seed=options.seed, threads=options.threads
    )
    epochs, best = train(
        module,
        taught,
        judging,
        schedule,
        patience=options.patience,
        checkpoint=checkpoint,
        key=f"{_digest(graph, master, examples)} {options}",
        progress=progress,
        done=done,
    )
    made = part.put_back(module.to_graph())
    return Recovered(
        graph=made,
        options=options,
        trained=tuple(n.label for n in _trainable(part.graph, chosen)),
        parameters=sum(p.numel() for p in weights),
        epochs=epochs,
        best_epoch=best,
        examples=len(kept),
        teacher=master is not None,
        before=judge(graph),
        after=judge(made),
    )


def _standard(graph: Graph) -> Graph:
    """The graph in ONNX's operators."""
    if any(node.domain == KERNEL_DOMAIN for node in graph.nodes()):
        return expand(graph)
    return graph


def _unshared(graph: Graph, chosen: Collection[str] | None) -> Graph:
    """A copy in which the chosen nodes' weights are not those of others, too."""
    graph = graph.copy()
    if chosen is None:
        return graph
    for node in graph.nodes():
        for slot, value in enumerate(graph.operands(node)):
            if node.name not in chosen or value is None or not value.node.is_constant:
                continue
            if any(use.node.name not in chosen for use in graph.uses(value)):
                own = graph.constant(value.node.attributes["value"], value.name, value.node.origin)
                graph.replace_operand(Use(node, slot), own)
    return graph


def _check_classes(graph: Graph, teacher: Graph | None, examples: Calibration) -> None:
    """Raises UsageError unless models and labels are about the same classes."""
    count = _classes(graph, examples, "model")
    if teacher is not None:
        wanted, have = ([*input_types(each)] for each in (graph, teacher))
        if wanted != have:
            raise UsageError(f"the teacher's inputs are {have}, the model's {wanted}")
        if (taught := _classes(teacher, examples, "teacher")) != count:
            raise UsageError(f"the teacher has {taught} classes, the model {count}")
    labels = examples.labels
    if labels is not None and not 0 <= labels.min() <= labels.max() < count:
        found = f"{labels.min()} to {labels.max()}"
        raise UsageError(f"{examples.source}: labels are {found}; the model has {count} classes")


def _classes(graph: Graph, examples: Calibration, who: str) -> int:
    """How many class scores the first output has."""
    found = approximation.outputs(graph, examples.take(1))
    if found.ndim < 2 or found.shape[1] < 2 or found[0].size != found.shape[1]:
        raise UsageError(f"the {who}'s first output is of {found.shape[1:]}: no class scores")
    return int(found.shape[1])


def _chosen(graph: Graph, options: RecoveryOptions) -> frozenset[str] | None:
    """Names of the nodes whose weights are trained, None for all."""
    if options.mode == "finetune":
        return None
    names = {node.name for node in graph.nodes() if node.name}
    for name in options.layers:
        if name not in names:
            raise UsageError(f"--layer {name}: no such node{nearest(name, sorted(names))}")
    chosen = frozenset(options.layers or approximation.new_layers(graph)) & names
    if not chosen:
        raise UsageError(
            "the model does not say which layers lossy passes put in: name them with --layer, "
            "or train all with --mode finetune"
        )
    return chosen


def _trainable(graph: Graph, chosen: Collection[str] | None) -> list[Node]:
    layers = (n for n in graph.topological() if n.is_op("Conv", "ConvTranspose", "Gemm", "MatMul"))
    return [n for n in layers if chosen is None or n.name in chosen]


class Part:
    """The part of a network that training runs: what depends on trained weights.

    What it reads of the rest does not change, and is computed once, where it fits into memory.

    Attributes:
        graph: the part; its only output are class scores, the argument of a final softmax.
    """

    def __init__(self, original: Graph, chosen: Collection[str] | None, examples: int) -> None:
        """Cuts a network in front of the first trained nodes; None trains all."""
        self._original = original
        self.graph = original.copy()
        self.graph.set_outputs(original.outputs[:1])
        scores = original.outputs[0][1]
        while scores.node.is_op(*_VIEWS):
            scores = _first_operand(original, scores)
        if scores.node.is_op(*_SOFTMAX):
            self.graph.replace_uses(scores, _first_operand(original, scores))
        self.graph.erase_dead()
        self._before: Graph | None = None
        if chosen is not None:
            self._cut(chosen, examples)

    def inputs(self, examples: Calibration) -> tuple[np.ndarray, ...]:
        """What the part reads, for all examples."""
        if self._before is None:
            arrays = list(examples.inputs.values())
        else:
            arrays = approximation.all_outputs(self._before, examples)
        return tuple(np.ascontiguousarray(array, np.float32) for array in arrays)

    def put_back(self, trained: Graph) -> Graph:
        """The whole network with the weights of the trained part."""
        made = self._original.copy()
        nodes = {node.id: node for node in made.nodes()}
        for node in trained.nodes():
            twin = nodes.get(node.id)
            if twin is None or node.is_constant or node.is_input:
                continue
            for old, new in zip(made.operands(twin), trained.operands(node), strict=True):
                array, before = trained.constant_value(new), made.constant_value(old)
                if array is None or before is None or np.array_equal(array, before):
                    continue
                assert old is not None
                made.replace_uses(old, made.constant(array, old.name, old.node.origin))
                made.erase(old.node)
        return made

    def _cut(self, chosen: Collection[str], examples: int) -> None:
        whole, inside, moving = self.graph, set[Node](), set[Node]()
        for node in whole.topological():
            operands = [v for v in whole.operands(node) if v is not None]
            if node.is_input or any(v.node in moving for v in operands):
                moving.add(node)
            if node.name in chosen or any(v.node in inside for v in operands):
                inside.add(node)
        # What is the same for all examples is no feature.
        still = {n for n in whole.nodes() if n not in moving and not n.is_constant}
        read = dict.fromkeys(
            v
            for node in whole.topological()
            if node in inside
            for v in whole.operands(node)
            if v is not None and v.node in moving - inside
        )
        shapes = {v: _one_example(v) for v in read}
        if any(shape is None for shape in shapes.values()):
            return
        samples = {v: np.zeros(shape, np.float32) for v, shape in shapes.items() if shape}
        if sum(a.nbytes for a in samples.values()) * examples > _MAX_CACHED_BYTES:
            return
        self._before = whole.copy()
        self._before.set_outputs([(f"features {i}", v) for i, v in enumerate(read)])
        self._before.erase_dead()
        scores = whole.outputs[0][1]
        self.graph = extract(whole, inside | still, samples)
        self.graph.set_outputs([each for each in self.graph.outputs if each[1] == scores])
        self.graph.erase_dead()


def _first_operand(graph: Graph, value: Value) -> Value:
    operand = graph.operand(value.node, 0)
    assert operand is not None
    return operand


def _one_example(value: Value) -> tuple[int, ...] | None:
    """The shape of a float32 value for a batch of one; None where it is not known."""
    shape = value.tensor.shape
    if not shape or value.tensor.dtype != "float32":
        return None
    sizes = tuple(d for d in shape[1:] if isinstance(d, int))
    return (1, *sizes) if len(sizes) == len(shape) - 1 else None


def _taught(part: Part, examples: Calibration, teacher: Graph | None) -> Any:
    """Examples as the part reads them, with the teacher's class probabilities."""
    from pwopt.training.recover import Examples as Taught

    scores = None
    if teacher is not None:
        found = approximation.outputs(teacher, examples)
        flat = found.reshape(len(found), -1).astype(np.float64)
        scores = approximation.log_probabilities(flat).astype(np.float32)
    labels = None if examples.labels is None else examples.labels.astype(np.int64)
    return Taught(part.inputs(examples), labels, scores)


def _digest(model: Graph, teacher: Graph | None, examples: Calibration) -> str:
    """What a checkpoint belongs to: the models and the data."""
    found = hashlib.sha256()
    arrays = [*examples.inputs.values(), examples.labels]
    for graph in (model, teacher):
        found.update(str(graph).encode())
        if graph is not None:
            arrays += [n.attributes["value"] for n in graph.topological() if n.is_constant]
    for array in arrays:
        if array is not None:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
