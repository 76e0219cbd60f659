"""--verify-passes: wrong rewrites are found, named, shown by a small model, and taken back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import cli
from pwopt.bisection import MAX_FOUND
from pwopt.driver import Optimized
from pwopt.errors import NumericsError, PassError, UsageError
from pwopt.frontend import export
from pwopt.ir.graph import Graph, Node, Use
from pwopt.ir.types import TensorType
from pwopt.models import blocks
from pwopt.passes import PASSES, default_pipeline
from pwopt.passes.rewriting import replace_node
from pwopt.pipeline import Applied, Context, Missed, Pass, Rewrite
from pwopt.reproducer import reduced
from tests.passes.building import Build
from tests.test_driver import AddIdentity, ScaleConstants

MNIST = Path(__file__).parents[1] / "models" / "data" / "mnist-conv.onnx"

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class FoldScale(Rewrite):
    """Folds a factor into the convolution before it; with faults at the nodes that are named.

    Attributes:
        forgets: Mul nodes, separated by spaces, at which the bias is not scaled.
        crashes: the same, at which the pass fails.
        mistypes: the same, at which the graph that it leaves is not valid.
    """

    name: ClassVar[str] = "fold-scale"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Mul")})

    faulty: ClassVar[bool] = True  # until it is repaired

    forgets: str = ""
    crashes: str = ""
    mistypes: str = ""

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        conv, factor = graph.operands(node)
        assert conv is not None
        scale = graph.constant_value(factor)
        if scale is None or not conv.node.is_op("Conv"):
            return None
        if self._is(node, self.crashes):
            raise ValueError(f"no factor {float(scale)}")
        x, w, b = graph.operands(conv.node)
        weight, bias = graph.constant_value(w), graph.constant_value(b)
        assert weight is not None
        assert bias is not None
        scaled = bias if self._is(node, self.forgets) else bias * scale
        operands = [x, graph.constant(weight * scale), graph.constant(scaled)]
        types = [TensorType("float32", (1, 2, 3))] if self._is(node, self.mistypes) else None
        replace_node(
            graph, node, "Conv", operands, conv.node.attributes, absorbed=[conv.node], types=types
        )
        return Applied(f"folded {float(scale)}")

    def _is(self, node: Node, names: str) -> bool:
        return self.faulty and node.name in names.split()


@dataclass(frozen=True)
class ClipToRelu(Rewrite):
    """Forgets an upper bound, which few inputs reach."""

    name: ClassVar[str] = "clip-to-relu"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Clip")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        replace_node(graph, node, "Relu", graph.operands(node)[:1])
        return Applied("dropped the bounds")


@dataclass(frozen=True)
class HalvePointwise(Rewrite):
    """Halves the weights of internal ops, which stand in no file."""

    name: ClassVar[str] = "halve-pointwise"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({("pwopt", "Pointwise")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        x, w, *rest = graph.operands(node)
        weight = graph.constant_value(w)
        if weight is None or float(np.abs(weight).max()) < 1e-3:
            return None
        halved = graph.constant(weight * np.float32(1e-6))
        replace_node(graph, node, node.op, [x, halved, *rest], node.attributes, domain=node.domain)
        return Applied("halved the weights")


@dataclass(frozen=True)
class NeverSettles(Rewrite):
    """Replaces a node by its like, for ever."""

    name: ClassVar[str] = "never-settles"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Relu")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        replace_node(graph, node, "Relu", graph.operands(node))
        return Applied("replaced")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (FoldScale, ClipToRelu, HalvePointwise, ScaleConstants):
        monkeypatch.setitem(PASSES, each.name, each)


def scaled_convolutions(count: int = 4) -> Graph:
    """Convolutions of biases that matter, each followed by a factor and an activation."""
    b = Build()
    x = b.input(1, 3, 6, 6)
    for i in range(count):
        x = b.op("Relu", b.op("Mul", b.conv(x, 4), 1.5 + i))
    return b.output(x)


def optimize(graph: Graph, *passes: Pass) -> Optimized:
    return pwopt.optimize(graph, passes=passes, verify_passes=True)


def computes_the_same(graph: Graph, result: Graph) -> bool:
    found = pwopt.optimize(graph, passes=[]).reference
    assert found is not None
    from pwopt import checks

    return not checks.disagreement(found, result)


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.topological() if not n.is_constant and not n.is_input]


def test_one_wrong_rewrite_of_several_is_named_and_taken_back() -> None:
    graph = scaled_convolutions()
    result = optimize(graph, FoldScale(forgets="mul2"))
    (found,) = result.report.taken_back
    assert found.spec == "fold-scale{forgets=mul2}"
    assert found.node == "Mul 'mul2'"
    assert found.rewrite == "folded 2.5"
    assert "tolerance" in found.problem
    assert found.tensor == "mul2_out"
    assert found.error is not None
    assert found.tolerance == 1e-4 < found.error
    assert ops(result.graph) == ["Conv", "Relu", "Conv", "Mul", *["Relu", "Conv"] * 2, "Relu"]
    assert computes_the_same(graph, result.graph)
    assert result.report.verification.status == "passed"
    remarks = [r for row in result.report.passes for r in row.remarks]
    assert [r.node for r in remarks if r.applied] == ["Mul 'mul1'", "Mul 'mul3'", "Mul 'mul4'"]
    (missed,) = [r for r in remarks if not r.applied]
    assert missed.node == "Mul 'mul2'"
    assert missed.text.startswith("taken back: output")


def test_reproducer_is_the_rewritten_part_alone() -> None:
    graph = scaled_convolutions()
    result = optimize(graph, FoldScale(forgets="mul3"))
    assert list(result.reproducers) == ["repro-1.onnx"]
    model = export(result.reproducers["repro-1.onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [n.name for n in model.graph.node] == ["conv3", "mul3"]
    (x,) = model.graph.input
    assert (x.name, [d.dim_value for d in x.type.tensor_type.shape.dim]) == (
        "relu2_out",
        [1, 4, 6, 6],
    )
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    conv = next(n for n in graph.nodes() if n.name == "conv3")
    weight = graph.constant_value(graph.operand(conv, 1))
    assert weight is not None
    assert np.array_equal(stored[model.graph.node[0].input[1]], weight)


def test_every_wrong_rewrite_of_a_pass_is_found() -> None:
    graph = scaled_convolutions(6)
    result = optimize(graph, FoldScale(forgets="mul2 mul5 mul6"))
    assert [t.node for t in result.report.taken_back] == ["Mul 'mul2'", "Mul 'mul5'", "Mul 'mul6'"]
    assert [t.tensor for t in result.report.taken_back] == ["mul2_out", "mul5_out", "mul6_out"]
    assert list(result.reproducers) == [f"repro-{i}.onnx" for i in (1, 2, 3)]
    assert ops(result.graph).count("Mul") == 3
    assert computes_the_same(graph, result.graph)


def test_a_pass_with_too_many_wrong_rewrites_is_left_out() -> None:
    b = Build()
    x = b.input(1, 3, 6, 6)
    graph = b.output(*(b.op("Mul", b.conv(x, 4), 1.5) for _ in range(MAX_FOUND + 2)))
    result = optimize(graph, FoldScale(forgets=" ".join(f"mul{i + 1}" for i in range(20))))
    *found, last = result.report.taken_back
    assert [t.node for t in found] == [f"Mul 'mul{i + 1}'" for i in range(MAX_FOUND)]
    assert (last.node, last.rewrite) == ("", "")
    assert last.problem.endswith(f"(after {MAX_FOUND} wrong rewrites that were taken back)")
    assert ops(result.graph) == ops(graph)


def test_a_wrong_pass_that_makes_no_single_rewrites_is_left_out() -> None:
    graph = scaled_convolutions(2)
    result = optimize(graph, AddIdentity(), ScaleConstants(), FoldScale())
    (found,) = result.report.taken_back
    assert (found.spec, found.node) == ("scale-constants", "")
    assert found.tensor == "conv1_out"
    assert ops(result.graph) == ["Identity", "Conv", "Relu", "Conv", "Relu"]
    assert len(ops(result.reproducers["repro-1.onnx"])) == 1
    assert computes_the_same(graph, result.graph)


def test_a_failing_rewrite_is_named_and_left_out() -> None:
    graph = scaled_convolutions()
    guilty = FoldScale(crashes="mul3")
    with pytest.raises(PassError, match=r"pass fold-scale: ValueError: no factor 3\.5"):
        pwopt.optimize(graph, passes=[guilty])
    result = optimize(graph, guilty)
    (found,) = result.report.taken_back
    assert (found.node, found.rewrite, found.tensor) == ("Mul 'mul3'", "", "")
    assert found.problem == "pass fold-scale: ValueError: no factor 3.5"
    assert ops(result.graph).count("Mul") == 1
    assert ops(result.reproducers["repro-1.onnx"]) == ["Conv", "Mul"]
    assert computes_the_same(graph, result.graph)


def test_a_rewrite_that_leaves_an_invalid_graph_is_named() -> None:
    graph = scaled_convolutions()
    result = optimize(graph, FoldScale(mistypes="mul2"))
    (found,) = result.report.taken_back
    assert (found.node, found.rewrite) == ("Mul 'mul2'", "folded 2.5")
    assert "invariant 5" in found.problem
    assert ops(result.graph).count("Mul") == 1


def test_a_pass_that_never_settles_is_left_out() -> None:
    graph = scaled_convolutions(2)
    result = optimize(graph, NeverSettles(), FoldScale())
    (found,) = result.report.taken_back
    assert (found.spec, found.node) == ("never-settles", "")
    assert "still rewriting after" in found.problem
    assert ops(result.graph) == ["Conv", "Relu"] * 2


def clipped(bound: float, gain: float) -> Graph:
    b = Build()
    x = b.op("Clip", b.op("Mul", b.input(1, 4, 5, 5), gain), 0.0, bound)
    return b.output(b.op("Add", x, 1.0))


def test_further_inputs_show_what_the_usual_ones_do_not() -> None:
    graph = clipped(6.0, 1.0)
    assert pwopt.optimize(graph, passes=[ClipToRelu()]).report.verification.status == "passed"
    result = optimize(graph, ClipToRelu())
    (found,) = result.report.taken_back
    assert found.node == "Clip 'clip1'"
    assert found.tensor == "clip1_out"
    assert result.report.verification.seeds == (0, 1, 2, 3, 4, 6)
    assert not any("default" in n.attributes for n in result.reproducers["repro-1.onnx"].inputs)


def test_reproducer_holds_the_values_that_random_ones_do_not_reach() -> None:
    graph = clipped(1000.0, 500.0)
    result = optimize(graph, ClipToRelu())
    (small,) = result.reproducers.values()
    assert ops(small) == ["Clip"]
    assert small.inputs[0].get("default").max() > 1000


def test_reproducer_of_an_internal_op_names_the_passes_that_make_it() -> None:
    graph = scaled_convolutions(3)
    passes = [FoldScale(), *default_pipeline(), HalvePointwise()]
    result = optimize(graph, *passes)
    assert [t.spec for t in result.report.taken_back] == ["halve-pointwise"] * 3
    for found in result.report.taken_back:
        words = shlex.split(found.replay)
        assert words[words.index("--passes") + 1] == "convert-pointwise,halve-pointwise"
    for small in result.reproducers.values():
        assert [n.op_type for n in export(small).graph.node] == ["Conv", "Relu"]


def replay(command: str, folder: Path, *more: str) -> int:
    """Runs a command of the report in the output folder, as its reader would."""
    program, *words = shlex.split(command)
    assert program == "pwopt"
    words[words.index("-o") + 1] = str(folder.parent / "replay")
    model = words.index("optimize") + 1
    words[model] = str(folder / words[model])
    return cli.run([*words, "--quiet", *more])


@pytest.mark.parametrize("fault", ["forgets", "crashes", "mistypes"])
def test_command_line(
    fault: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out"
    pwopt.save(scaled_convolutions(), model)
    command = ["optimize", str(model), "-o", str(out), "--no-compile", "--quiet"]
    spec = f"fold-scale{{{fault}=mul3}}"
    assert cli.run([*command, "--passes", spec]) == 1
    assert "fold-scale" in capsys.readouterr().err
    assert not out.exists()

    command += ["--passes", spec, "--verify-passes"]
    assert cli.run(command) == 0
    shown = capsys.readouterr()
    assert shown.err == "pwopt: warning: 1 wrong rewrite was taken back\n"
    assert f"warning     taken back: {spec} at Mul 'mul3'" in shown.out
    assert ("first different tensor 'mul3_out': error" in shown.out) == (fault == "forgets")
    names = {"model.onnx", "report.html", "report.json", "repro-1.onnx", "repro-1.txt"}
    assert {p.name for p in out.iterdir()} == names
    onnx.checker.check_model(out / "repro-1.onnx", full_check=True)
    assert cli.run([*command, "--json"]) == 0  # the folder is pwopt's to replace
    report = json.loads(capsys.readouterr().out)
    (found,) = report["taken_back"]
    assert report == json.loads((out / "report.json").read_text())
    assert (found["node"], found["reproducer"]) == ("Mul 'mul3'", "repro-1.onnx")
    assert found["replay"] + "\n" == (out / "repro-1.txt").read_text()
    assert found["replay"] in " ".join(shown.out.split())

    assert replay(found["replay"], out, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert [t["node"] for t in again["taken_back"]] == ["Mul 'mul3'"]
    plain = found["replay"].replace(" --verify-passes", "")
    assert replay(plain, out) == 1
    capsys.readouterr()

    monkeypatch.setattr(FoldScale, "faulty", False)
    assert replay(found["replay"], out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["taken_back"] == []
    assert replay(plain, out) == 0


@dataclass(frozen=True)
class CopyWeights(Rewrite):
    """Lets every Mul read a wrong copy of its factor, if there is room for copies."""

    name: ClassVar[str] = "copy-weights"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Mul")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        factor = graph.operand(node, 1)
        array = graph.constant_value(factor)
        if array is None or factor is None or factor.name == "copy":
            return None
        if (why := context.growth().refuse(graph, 8192, "a copy")) is not None:
            return Missed(why)
        graph.replace_operand(Use(node, 1), graph.constant(array * np.float32(2), "copy"))
        return Applied("copied")


def test_replay_gives_the_room_that_the_rewrite_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, CopyWeights.name, CopyWeights)
    b = Build()
    large = b.op("MatMul", b.op("Mul", b.input(1, 512), 1.5), b.weight(512, 512))
    result = optimize(b.output(large), CopyWeights())
    (found,) = result.report.taken_back
    assert found.node == "Mul 'mul1'"
    assert "--max-growth inf" in found.replay
    assert ops(result.reproducers["repro-1.onnx"]) == ["Mul"]


OWN_PASS = """
from dataclasses import dataclass
from typing import ClassVar
from pwopt import Applied, Rewrite, register_pass
from pwopt.passes.rewriting import replace_node

@register_pass
@dataclass(frozen=True)
class Silence(Rewrite):
    \"\"\"Replaces Relu by Identity.\"\"\"

    name: ClassVar[str] = "silence"
    ops: ClassVar[frozenset] = frozenset({("", "Relu")})

    def rewrite(self, graph, node, context):
        replace_node(graph, node, "Identity", graph.operands(node))
        return Applied("silenced")
"""


def test_replay_loads_passes_from_their_files(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PASSES, "silence", FoldScale)  # taken out again at the end
    del PASSES["silence"]
    model, own, out = tmp_path / "model.onnx", tmp_path / "own.py", tmp_path / "out"
    own.write_text(OWN_PASS)
    pwopt.save(scaled_convolutions(1), model)
    command = ["optimize", str(model), "-o", str(out), "--no-compile", "--quiet", "--json"]
    spec = ["--load", str(own), "--passes", "silence", "--verify-passes"]
    assert cli.run([*command, *spec]) == 0
    (found,) = json.loads(capsys.readouterr().out)["taken_back"]
    assert found["node"] == "Relu 'relu1'"
    assert f"--load {own}" in found["replay"]
    del PASSES["silence"]
    assert replay(found["replay"], out, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["taken_back"]) == 1


def test_the_usual_error_hints_at_the_search(capsys: Capture) -> None:
    with pytest.raises(NumericsError, match=r"pass fold-scale .* --verify-passes finds"):
        pwopt.optimize(scaled_convolutions(), passes=[FoldScale(forgets="mul1")])


def test_search_needs_the_check(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --no-verify"):
        pwopt.optimize(MNIST, verify=False, verify_passes=True)
    out = str(tmp_path / "out")
    assert cli.run(["optimize", str(MNIST), "-o", out, "--verify-passes", "--no-verify"]) == 2


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "bottleneck": blocks.bottleneck,
    "dense": blocks.dense_block,
    "fire": blocks.fire,
    "fpn": blocks.fpn_head,
    "inception": blocks.inception,
    "naive": blocks.naive,
    "squeeze-excite": blocks.squeeze_excite,
}


@pytest.mark.parametrize("name", MODELS)
def test_right_passes_stay_as_they_are(name: str) -> None:
    model = MODELS[name]()
    plain = pwopt.optimize(model, verify=False)
    checked = pwopt.optimize(model, verify_passes=True)
    assert checked.report.taken_back == ()
    assert export(checked.graph) == export(plain.graph)


@pytest.mark.parametrize("name", MODELS)
def test_runs_from_copies_of_a_graph_number_nodes_alike(name: str) -> None:
    graph = pwopt.load(MODELS[name]())
    for each in (*default_pipeline(), *(PASSES[n]() for n in sorted(PASSES))):
        first, second = graph.copy(), graph.copy()
        all_, limited = Context(), Context()
        each.run(first, all_)
        each.run(second, Context())
        assert [n.id for n in first.nodes()] == [n.id for n in second.nodes()]
        assert str(first) == str(second)
        anchors = [n.id for n in all_.anchors]
        for count in {0, 1, len(anchors) // 2, len(anchors)}:
            part, limited = graph.copy(), Context(max_rewrites=count)
            each.run(part, limited)
            assert [n.id for n in limited.anchors] == anchors[:count]
        graph = first


def test_reduced_keeps_what_is_needed() -> None:
    assert reduced(range(100), lambda kept: {17, 63} <= set(kept)) == [17, 63]
    assert reduced([1], lambda kept: True) == [1]
