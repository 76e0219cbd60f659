"""Recovery by training: what is trained, what stays, and that a stopped run goes on exactly."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pwopt
from pwopt import cli, recovery
from pwopt.approximation import NEW_LAYERS, outputs
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.frontend import load
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph
from pwopt.models.builder import ModelBuilder, Value
from pwopt.recovery import Recovered, RecoveryOptions, recover
from tests.passes.building import Build

torch = pytest.importorskip("torch")

from pwopt.training import GraphModule, Schedule  # noqa: E402
from pwopt.training.fit import Trainer  # noqa: E402

Capture = pytest.CaptureFixture[str]
Ends = Callable[[ModelBuilder, Value], list[Value]]
CLASSES = 4
MEANS = np.array([1.8, 1.6, 2.4, -0.5])  # of the teacher's scores, so that all classes occur
SPOILT = "conv_2"  # its weights are random in spoilt(), and right in teacher()


def logits(b: ModelBuilder, y: Value) -> list[Value]:
    return [y]


def network(spoilt: bool, batch: int | str = "n", ends: Ends = logits) -> onnx.ModelProto:
    """Means of rectified filters of 8x8 pictures, mixed, and the largest of them."""
    rng, b = np.random.default_rng(3), ModelBuilder("net", seed=1)
    x = b.conv(b.input((batch, 1, 8, 8)), weight=normal(rng, 8, 1, 3, 3))
    x = b.relu(x)
    right, wrong = normal(rng, 8, 8, 1, 1), normal(rng, 8, 8, 1, 1)
    x = b.batch_norm(b.relu(b.conv(x, weight=wrong if spoilt else right)))
    y = b.linear(b.global_pool(x), weight=3 * normal(rng, CLASSES, 8), bias=-MEANS)
    return b.build(*ends(b, y))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)


def teacher(batch: int | str = "n", ends: Ends = logits) -> Graph:
    """Knows the labels of :func:`pictures`."""
    return load(network(False, batch, ends))


def spoilt(batch: int | str = "n", ends: Ends = logits) -> Graph:
    return load(network(True, batch, ends))


def pictures(labels: bool = True, count: int = 300) -> Calibration:
    """Noise of any strength around any grey, and the teacher's classes for it."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((count, 1, 8, 8)) * rng.uniform(0.2, 2.0, (count, 1, 1, 1))
    x = (noise + rng.normal(0.0, 2.0, (count, 1, 1, 1))).astype(np.float32)
    data = Calibration({"input": x})
    classes = outputs(teacher(), data).argmax(axis=1)
    return Calibration({"input": x}, classes if labels else None)


def options(**values: object) -> RecoveryOptions:
    wanted = {"layers": (SPOILT,), "epochs": 6, "batch": 32, "rate": 0.03, **values}
    return RecoveryOptions(**wanted)  # type: ignore[arg-type]


FINETUNE = {"mode": "finetune", "layers": ()}


def weights(graph: Graph) -> dict[str, list[np.ndarray]]:
    """Constants of each node, by its name."""
    arrays = {
        node.name: [graph.constant_value(v) for v in graph.operands(node)]
        for node in graph.nodes()
        if node.name
    }
    return {n: [a for a in found if a is not None] for n, found in arrays.items()}


def changed(before: Graph, after: Graph) -> set[str]:
    """Names of the nodes whose constants are not the same, bit by bit."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    pairs = {n: zip(old[n], new[n], strict=True) for n in old}
    return {n for n in old if any(a.tobytes() != b.tobytes() for a, b in pairs[n])}


def written(made: Recovered) -> bytes:
    found: bytes = made.graph.to_onnx().SerializeToString()
    return found


@pytest.mark.parametrize(("labels", "master"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("mode", recovery.MODES)
def test_a_spoilt_layer_is_learnt_again(mode: str, labels: bool, master: bool) -> None:
    how = options(mode=mode, layers=(SPOILT,) if mode == recovery.MODES[0] else ())
    before = spoilt()
    text = str(before), written_bytes(before)
    made = recover(before, pictures(labels), how, teacher=teacher() if master else None)
    assert (str(before), written_bytes(before)) == text
    assert made.best_epoch >= 1
    if labels:
        assert made.before.accuracy_after is not None
        assert made.after.accuracy_after is not None
        assert made.after.accuracy_after > made.before.accuracy_after + 0.1
    if master:
        assert made.before.agreement is not None
        assert made.after.agreement is not None
        assert made.after.agreement > made.before.agreement + 0.1
        assert made.after.kl is not None
        assert made.before.kl is not None
        assert made.after.kl < made.before.kl / 2


def written_bytes(graph: Graph) -> bytes:
    found: bytes = graph.to_onnx().SerializeToString()
    return found


def test_feature_extraction_changes_the_chosen_layers_alone() -> None:
    made = recover(spoilt(), pictures(), options(epochs=1))
    assert changed(spoilt(), made.graph) == {SPOILT}
    assert made.trained == (f"Conv '{SPOILT}'",)
    assert made.parameters == 8 * 8 + 8


def test_fine_tuning_changes_all_layers() -> None:
    made = recover(spoilt(), pictures(), options(**FINETUNE, epochs=1))
    layers = {n for n in weights(spoilt()) if n.split("_")[0] in ("conv", "gemm")}
    assert len(layers) == 3
    assert changed(spoilt(), made.graph) == layers | {"batchnormalization_4"}
    assert len(made.trained) == 3


def test_weights_that_others_share_stay_theirs() -> None:
    b = Build()
    weight = b.weight(4, 4, 1, 1)
    x = b.op("Relu", b.op("Conv", b.input("n", 4, 2, 2, name="input"), weight))
    x = b.op("GlobalAveragePool", b.op("Conv", x, weight))
    graph = b.output(b.op("Flatten", x))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 4, 2, 2)).astype(np.float32)
    data = Calibration({"input": images}, rng.integers(0, 4, 40))
    made = recover(graph, data, options(layers=("conv2",), epochs=2, rate=0.1))
    assert made.best_epoch > 0
    assert changed(graph, made.graph) == {"conv2"}


def test_the_whole_network_gives_what_the_part_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    part = recover(spoilt(), pictures(), options(epochs=2))
    monkeypatch.setattr(recovery, "_MAX_CACHED_BYTES", 0)
    whole = recover(spoilt(), pictures(), options(epochs=2))
    assert part.best_epoch == whole.best_epoch == 2
    for a, b in zip(weights(part.graph)[SPOILT], weights(whole.graph)[SPOILT], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert changed(spoilt(), whole.graph) == {SPOILT}


def test_the_part_begins_at_the_first_chosen_layer() -> None:
    part = recovery.Part(spoilt(), {SPOILT}, 300)
    operators = [n.op for n in part.graph.nodes() if not n.is_constant and not n.is_input]
    assert operators.count("Conv") == 1
    (features,) = part.inputs(pictures().take(7))
    assert features.shape == (7, 8, 8, 8)
    whole = recovery.Part(spoilt(), None, 300)
    assert whole.graph.inputs[0].out.tensor.shape == ("n", 1, 8, 8)


def test_what_is_the_same_for_all_examples_is_no_feature() -> None:
    b = Build()
    x = b.op("Relu", b.op("Flatten", b.input("n", 6, 1, 1, name="input")))
    y = b.op("Gemm", x, b.op("Transpose", b.weight(5, 6), perm=(1, 0)), b.weight(5))
    graph = b.output(y)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 6, 1, 1)).astype(np.float32)
    data = Calibration({"input": images}, rng.integers(0, 5, 40))
    made = recover(graph, data, options(layers=("gemm1",)))
    assert made.parameters == 5  # the bias; the matrix is computed
    assert changed(graph, made.graph) <= {"gemm1"}


def softmax(b: ModelBuilder, y: Value) -> list[Value]:
    return [b.op("Softmax", y, axis=1)]


def softmax_seen_otherwise(b: ModelBuilder, y: Value) -> list[Value]:
    maps = b.op("Unsqueeze", y, b.constant(np.array([2, 3])))
    return [b.op("Flatten", b.op("Identity", b.op("Softmax", maps, axis=1)), axis=1)]


def scores_of_one_pixel(b: ModelBuilder, y: Value) -> list[Value]:
    return [b.op("Unsqueeze", y, b.constant(np.array([2, 3])))]


@pytest.mark.parametrize("ends", [softmax, softmax_seen_otherwise, scores_of_one_pixel])
def test_class_scores_in_other_forms_are_trained_alike(ends: Ends) -> None:
    plain = recover(spoilt(), pictures(), options(epochs=2), teacher=teacher())
    made = recover(spoilt(ends=ends), pictures(), options(epochs=2), teacher=teacher(ends=ends))
    for a, b in zip(weights(plain.graph)[SPOILT], weights(made.graph)[SPOILT], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    found = outputs(made.graph, pictures())
    np.testing.assert_allclose(
        found.reshape(len(found), -1),
        after(ends, outputs(plain.graph, pictures())),
        atol=1e-3,
    )


def after(ends: Ends, scores: np.ndarray) -> np.ndarray:
    if ends is scores_of_one_pixel:
        return scores
    e = np.exp(scores)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def test_all_outputs_stay() -> None:
    def two(b: ModelBuilder, y: Value) -> list[Value]:
        return [y, b.op("Tanh", y), "conv_0"]

    made = recover(spoilt(ends=two), pictures(), options(epochs=1)).graph
    assert [n for n, _ in made.outputs] == [n for n, _ in spoilt(ends=two).outputs]
    assert len(made.outputs) == 3
    assert changed(spoilt(ends=two), made) == {SPOILT}


def test_layers_that_the_first_output_does_not_depend_on() -> None:
    def first(b: ModelBuilder, y: Value) -> list[Value]:
        return [b.op("Flatten", b.global_pool("relu_1"), axis=1), y]

    with pytest.raises(UsageError, match=r"^conv_2: no weights that the first output depends on$"):
        recover(spoilt(ends=first), pictures(), options())
    with pytest.raises(UsageError, match=r"^relu_1: no weights that"):
        recover(spoilt(), pictures(), options(layers=("relu_1",)))


@pytest.mark.parametrize("changes", [{}, FINETUNE])
def test_a_batch_of_one_trains_like_an_open_one(changes: dict[str, object]) -> None:
    found = [
        recover(spoilt(batch), pictures(), options(epochs=2, **changes), teacher=teacher(batch))
        for batch in ("n", 1)
    ]
    for name, arrays in weights(found[0].graph).items():
        for a, b in zip(arrays, weights(found[1].graph)[name], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)
    assert found[1].graph.inputs[0].out.shape == (1, 1, 8, 8)


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second, other = (
        recover(spoilt(), pictures(), options(epochs=2, seed=seed)) for seed in (1, 1, 2)
    )
    assert written(first) == written(second)
    assert written(first) != written(other)


def test_held_out_examples_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    inputs = recovery.Part.inputs

    def watched(part: recovery.Part, examples: Calibration) -> tuple[np.ndarray, ...]:
        seen.append(examples.inputs["input"])
        return inputs(part, examples)

    monkeypatch.setattr(recovery.Part, "inputs", watched)
    made = recover(spoilt(), pictures(), options(epochs=1))
    train, held_out = ({zlib.crc32(x.tobytes()) for x in arrays} for arrays in seen)
    assert not train & held_out
    assert (len(train), len(held_out)) == (made.examples, made.after.examples)
    assert made.examples + made.after.examples >= 299
    assert 28 <= made.after.examples <= 31


def test_weights_that_nothing_betters_stay() -> None:
    how = options(epochs=9, patience=2, rate=1.0)
    made = recover(teacher(), pictures(labels=False), how, teacher=teacher())
    assert (made.epochs, made.best_epoch) == (9 // 2 + 2, 0)  # patience counts from the middle on
    assert written_bytes(made.graph) == written_bytes(teacher())
    assert made.after == made.before


def test_the_share_that_is_done_rises_step_by_step_to_one() -> None:
    told: list[float] = []
    made = recover(spoilt(), pictures(), options(epochs=3, batch=32), done=told.append)
    assert len(told) == 3 * (made.examples // 32) > 6
    assert told == sorted(set(told))
    assert told[-1] == 1.0


def test_it_stops_early_and_keeps_the_best_weights() -> None:
    told: list[str] = []
    how = options(epochs=20, patience=2, rate=10.0)
    made = recover(spoilt(), pictures(), how, progress=told.append)
    assert 0 < made.best_epoch < made.epochs < 20
    assert made.epochs == max(made.best_epoch, 10) + 2
    losses = [float(s.rpartition(" ")[2]) for s in told if "held out" in s]
    assert len(losses) == made.epochs
    assert losses[made.best_epoch - 1] == min(losses) < min(losses[-2:])
    _, held_out = pictures().split(0.9, 0.1, seed=how.seed)
    assert held_out.labels is not None
    scores = torch.from_numpy(outputs(made.graph, held_out))
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(held_out.labels))
    assert float(loss) == pytest.approx(losses[made.best_epoch - 1], abs=1e-3)


class StopError(Exception):
    """Raised in the middle of a training."""


@pytest.mark.parametrize("changes", [{}, FINETUNE])
def test_a_stopped_training_goes_on_as_if_it_had_not(
    changes: dict[str, object], tmp_path: Path
) -> None:
    how, file = options(epochs=4, **changes), tmp_path / "c"
    told: list[str] = []

    def stop(step: str) -> None:
        told.append(step)
        if step.startswith("epoch 3 of 4"):  # which is not in the checkpoint yet
            raise StopError

    whole = recover(spoilt(), pictures(), how, teacher=teacher())
    with pytest.raises(StopError):
        recover(spoilt(), pictures(), how, teacher=teacher(), checkpoint=file, progress=stop)
    told.clear()
    made = recover(
        spoilt(), pictures(), how, teacher=teacher(), checkpoint=file, progress=told.append
    )
    assert [s.partition(":")[0] for s in told if "epoch" in s] == [
        "going on after epoch 2",
        "epoch 3 of 4",
        "epoch 4 of 4",
    ]
    assert written(made) == written(whole)
    assert (made.epochs, made.best_epoch) == (whole.epochs, whole.best_epoch)
    again = recover(
        spoilt(), pictures(), how, teacher=teacher(), checkpoint=file, progress=told.append
    )
    assert told[-1] == "going on after epoch 4"
    assert written(again) == written(whole)


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    file, data, how = tmp_path / "c", pictures(), options(epochs=1)
    recover(spoilt(), data, how, teacher=teacher(), checkpoint=file)
    fewer = pictures(count=200)
    others = [
        (spoilt(), data, options(epochs=2), teacher()),
        (spoilt(), fewer, how, teacher()),
        (spoilt(), data, how, None),
        (spoilt(), data, how, spoilt()),
        (teacher(), data, how, teacher()),  # of the same nodes and shapes
    ]
    for graph, examples, settings, master in others:
        with pytest.raises(UsageError, match="c: of another training; remove it, or name"):
            recover(graph, examples, settings, teacher=master, checkpoint=file)
    for content in (b"", b"garbage", file.read_bytes()[:500]):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"^[^\n]*c: no checkpoint: [^\n]*$"):
            recover(spoilt(), data, how, checkpoint=file)
    for wrong in ([1, 2], {"epoch": 3}, torch.zeros(2)):
        torch.save(wrong, file)
        with pytest.raises(UsageError, match="c: no checkpoint of recover"):
            recover(spoilt(), data, how, checkpoint=file)


@pytest.mark.parametrize("epochs", range(1, 7))
def test_few_steps_have_a_cycle_of_the_learning_rate(epochs: int) -> None:
    trainer = Trainer(GraphModule(spoilt()), Schedule(epochs, batch=32), examples=8)
    batch = [torch.zeros(8, 1, 8, 8)]
    for _ in range(epochs):
        loss = trainer.run_epoch([(batch, None)], lambda y, _: y.square().mean())
        assert np.isfinite(loss)
    assert trainer.epoch == epochs


def test_narrow_and_small_labels_of_a_callers_own() -> None:
    data = pictures()
    assert data.labels is not None
    small = Calibration(data.inputs, data.labels.astype(np.uint8))
    made = recover(spoilt(), small, options(epochs=1))
    assert written(made) == written(recover(spoilt(), data, options(epochs=1)))


def test_optimized_graphs_are_recovered_by_their_marks() -> None:
    b = ModelBuilder("wide", seed=2)
    x = b.relu(b.conv(b.input((1, 3, 8, 8)), 64, 3))
    x = b.relu(b.conv(x, 64, 3))
    model = b.build(b.linear(b.global_pool(x), 5))
    rng = np.random.default_rng(1)
    images = rng.standard_normal((60, 3, 8, 8)).astype(np.float32)
    lossy = pwopt.optimize(model, bottleneck=0.6, hardware=AVX512)
    how = RecoveryOptions(epochs=2, batch=16)
    found = [
        recover(each, Calibration({"input": images}), how, teacher=model)
        for each in (lossy.graph, lossy.graph.to_onnx())
    ]
    names = json.loads(lossy.graph.metadata["properties"][NEW_LAYERS])
    assert {t.split("'")[1] for t in found[0].trained} == set(names)
    assert len(names) >= 2
    assert written(found[0]) == written(found[1])
    assert changed(load(lossy.graph.to_onnx()), found[1].graph) <= set(names)
    assert load(written(found[0])).metadata["properties"][NEW_LAYERS] == json.dumps(names)


def test_a_report_names_a_teacher_only_where_there_was_one() -> None:
    alone = str(recover(spoilt(), pictures(), options(epochs=1)))
    assert "teacher" not in alone
    assert "accuracy    " in alone
    taught = str(recover(spoilt(), pictures(), options(epochs=1), teacher=teacher()))
    assert "held-out examples; teacher 100.00%" in taught
    assert "as the teacher, on" in taught
    unlabelled = str(recover(spoilt(), pictures(False), options(epochs=1), teacher=teacher()))
    assert "accuracy" not in unlabelled
    assert "same class  " in unlabelled


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A folder as optimize writes it, and options with data and a teacher."""
    folder, data = tmp_path / "out", pictures()
    folder.mkdir()
    model = network(True)
    onnx.helper.set_model_props(model, {NEW_LAYERS: json.dumps([SPOILT])})
    onnx.save(model, folder / "model.onnx")
    onnx.save(network(False), tmp_path / "teacher.onnx")
    assert data.labels is not None
    np.savez(tmp_path / "d.npz", images=data.inputs["input"], labels=data.labels)
    about = ["--data", str(tmp_path / "d.npz"), "--teacher", str(tmp_path / "teacher.onnx")]
    return [str(folder), *about, "--batch", "32", "--epochs", "2", "--threads", "1", "-q"]


def test_the_command_writes_a_model(files: list[str], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "new" / "r.onnx"
    assert cli.run(["recover", *files, "-o", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["trained"] == [f"Conv '{SPOILT}'"]
    assert made["options"]["epochs"] == made["epochs"] == 2
    assert made["teacher"] is True
    assert made["after"]["accuracy_after"] > made["before"]["accuracy_after"]
    assert "graph" not in made
    assert [f.name for f in out.parent.iterdir()] == ["r.onnx"]
    model = onnx.load(out)
    old = {t.name: t for t in network(True).graph.initializer}
    differing = [
        t.name
        for t in model.graph.initializer
        if t.name not in old
        or numpy_helper.to_array(t).tobytes() != numpy_helper.to_array(old[t.name]).tobytes()
    ]
    conv = next(n for n in model.graph.node if n.name == SPOILT)
    assert set(differing) == set(conv.input[1:])
    onnx.checker.check_model(model)


def test_the_command_shows_what_was_gained(
    files: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "r.onnx"
    assert cli.run(["recover", *files, "-o", str(out), "--mode", "finetune"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("trained     3 layers, ")
    assert "accuracy    " in shown
    assert f"written     {out}" in shown


def test_a_result_that_cannot_be_written_is_not_lost(
    files: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.onnx"
    with monkeypatch.context() as patch:
        patch.setattr("pwopt.frontend.save", lambda *_: (_ for _ in ()).throw(OSError("full")))
        assert cli.run(["recover", *files, "-o", str(out)]) == 1
    assert (tmp_path / "r.onnx.checkpoint").exists()
    loud = [each for each in files if each != "-q"]
    assert cli.run(["recover", *loud, "-o", str(out)]) == 0
    assert "going on after epoch 2" in capsys.readouterr().err
    assert not (tmp_path / "r.onnx.checkpoint").exists()
