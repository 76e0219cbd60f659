"""Training a network's accuracy back after lossy passes: the new layers alone, or all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pwopt import approximation, driver
from pwopt.approximation import Judge, Loss
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.ir.extraction import extract
from pwopt.ir.graph import Graph, Node, Value
from pwopt.lossy import Examples, load_examples
from pwopt.pipeline import nearest

MODES = ("feature-extraction", "finetune")
_RATES = {"feature-extraction": 1e-2, "finetune": 5e-4}  # peaks of the learning rate
_HELD_OUT = 0.1  # of the examples
_SOFTMAX = ("Softmax", "LogSoftmax")
_MAX_CACHED_BYTES = 2 << 30  # of features in front of the trained layers


@dataclass(frozen=True)
class RecoveryOptions:
    """How to train.

    Attributes:
        mode: "feature-extraction" trains the layers that lossy passes put in, "finetune" all.
        layers: names of the nodes to train in the place of those.
        epochs: at most.
        patience: epochs without a better held-out loss, after which it ends.
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
        if self.rate is not None and not self.rate > 0:
            raise UsageError(f"rate {self.rate:g}: it is positive")


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
        before, after: on held-out examples, against the teacher, or else the network from before.
    """

    graph: Graph = field(repr=False)
    options: RecoveryOptions
    trained: tuple[str, ...]
    parameters: int
    epochs: int
    best_epoch: int
    examples: int
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
            if self.after.accuracy_before is not None:
                lines[-1] += f"; teacher {self.after.accuracy_before:.2%}"
        if self.before.agreement is not None and self.after.agreement is not None:
            step = f"{self.before.agreement:.2%} -> {self.after.agreement:.2%}"
            lines.append(f"same class  {step} as the teacher, on {count} held-out examples")
        return "\n".join(lines)


def recover(
    model: driver.Model,
    data: Examples,
    options: RecoveryOptions | None = None,
    *,
    teacher: driver.Model | None = None,
    preprocessing: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Recovered:
    """Trains a classifier of one input against labels, a teacher's class scores, or both.

    Args:
        model: a path, a model's bytes, an ``onnx.ModelProto`` or a :class:`Graph`; not changed.
        data: examples, or a file or folder of them; a tenth of them is held out.
        options: mode, epochs, learning rate.
        teacher: the original network, whose class probabilities are to be met.
        preprocessing: of images and bytes.
        input_shapes: sizes for open dimensions, by input name.
        checkpoint: a file that every epoch is saved to, and from which training goes on; it is
            removed when training is done.
        progress: called with a few words at the start of each step.

    Raises:
        UsageError: no PyTorch, no labels and no teacher, data that do not fit, layers that are not
            there, or an operator that cannot be trained through.
        FrontendError: a model cannot be read.
    """
    options = options or RecoveryOptions()
    graph, source = driver.read(model, input_shapes)
    progress("reading data")
    examples = load_examples(data, graph, preprocessing)
    if examples.labels is None and teacher is None:
        raise UsageError(
            "there is nothing to train against: give labels with the data, or --teacher"
        )
    if len(graph.inputs) != 1:
        raise UsageError(
            f"the model has {len(graph.inputs)} inputs; classifiers of one are trained"
        )
    from pwopt.training import GraphModule, Schedule
    from pwopt.training.recover import recover as train

    chosen = _chosen(graph, options)
    kept, held_out = examples.split(1 - _HELD_OUT, _HELD_OUT, seed=options.seed)
    original = graph if teacher is None else driver.read(teacher, input_shapes)[0]
    judge = Judge(original, held_out)
    part = Part(graph, chosen, len(examples))
    master = None if teacher is None else original
    progress("running what stays as it is, and the teacher")
    taught, judging = (_taught(part, each, master) for each in (kept, held_out))
    module = GraphModule(part.graph, None if chosen is None else lambda n: n.name in chosen)
    rate = options.rate or _RATES[options.mode]
    schedule = Schedule(
        options.epochs, options.batch, rate, seed=options.seed, threads=options.threads
    )
    key = f"{_digest(source.sha256 or str(graph), examples)} {options}"
    epochs, best = train(
        module,
        taught,
        judging,
        schedule,
        patience=options.patience,
        checkpoint=checkpoint,
        key=key,
        progress=progress,
    )
    made = part.put_back(module.to_graph())
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    weights = [p for p in module.parameters() if p.requires_grad]
    return Recovered(
        graph=made,
        options=options,
        trained=tuple(n.label for n in _trainable(graph, chosen)),
        parameters=sum(p.numel() for p in weights),
        epochs=epochs,
        best_epoch=best,
        examples=len(kept),
        before=judge(graph),
        after=judge(made),
    )


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
        name, scores = original.outputs[0]
        if scores.node.is_op(*_SOFTMAX):
            operand = original.operand(scores.node, 0)
            assert operand is not None
            name, scores = f"{name} scores", operand
        self.graph.set_outputs([(name, scores)])
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
        whole, inside = self.graph, set[Node]()
        for node in whole.topological():
            operands = [v for v in whole.operands(node) if v is not None]
            if node.name in chosen or any(v.node in inside for v in operands):
                inside.add(node)
        read = dict.fromkeys(
            v
            for node in whole.topological()
            if node in inside
            for v in whole.operands(node)
            if v is not None and v.node not in inside and not v.node.is_constant
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
        self.graph = extract(whole, inside, samples)


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
        if found.ndim < 2 or found[0].size != found.shape[1] or found.shape[1] < 2:
            raise UsageError(f"the teacher's first output is {found.shape[1:]}: no class scores")
        flat = found.reshape(len(found), -1).astype(np.float64)
        scores = approximation.log_probabilities(flat).astype(np.float32)
    return Taught(part.inputs(examples), examples.labels, scores)


def _digest(model: str, examples: Calibration) -> str:
    """What a checkpoint belongs to: the model and the data."""
    found = hashlib.sha256(model.encode())
    for array in (*examples.inputs.values(), examples.labels):
        if array is not None:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
