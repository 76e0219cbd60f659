"""The report as a page: what stands in it, and that what comes from a model is only text."""

from __future__ import annotations

import dataclasses
import html.parser
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import cli, compilation, driver, page, profiling
from pwopt.models import blocks
from pwopt.ort import OperatorTiming
from pwopt.page import charts, content
from pwopt.page.render import verdict

MODEL = Path(__file__).parents[2] / "models" / "data" / "mnist-conv.onnx"
NASTY = "</script><script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp; ' \" `"

Capture = pytest.CaptureFixture[str]


class Page(html.parser.HTMLParser):
    """The elements and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def nasty_model() -> onnx.ModelProto:
    """A block all of whose names are markup."""
    model = blocks.bottleneck()
    renamed = {"": ""}
    graph = model.graph
    for node in graph.node:
        node.name = f"{NASTY} {node.name}"
        for names in (node.input, node.output):
            names[:] = [renamed.setdefault(n, f"{NASTY} {n}") for n in names]
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = renamed.setdefault(value.name, f"{NASTY} {value.name}")
    return model


@pytest.fixture(scope="module")
def made() -> pwopt.Optimized:
    optimized = driver.optimize(MODEL)
    executable, optimized = compilation.compile_optimized(optimized)
    return compilation.profiled(optimized, executable, MODEL)


@pytest.fixture(scope="module")
def known(made: pwopt.Optimized) -> content.Content:
    return page.of_optimization(made)


def test_the_page_needs_nothing_else(made: pwopt.Optimized) -> None:
    found = Page(made.html())
    assert "mnist-conv.onnx takes" in found.text
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert found.tags.count("link") == 1
    assert {"h1", "svg", "table", "style"} <= set(found.tags)


def test_names_from_the_model_are_only_text(tmp_path: Path) -> None:
    path = tmp_path / "<b>model & co.onnx"
    onnx.save(nasty_model(), path)
    optimized = driver.optimize(path)
    text = optimized.html()
    found = Page(text)
    assert found.tags.count("script") == 2
    assert not {"img", "b"} & (set(found.tags) - {"b"}) or found.tags.count("img") == 0
    assert 'onerror="alert(1)"' in found.text
    assert "<img" not in text
    file = tmp_path / "report.html"
    file.write_text(text)
    again = page.read(file)
    assert again is not None
    assert any(n["name"].startswith(NASTY) for n in again["graphs"]["before"]["nodes"])


def test_a_page_is_read_as_it_was_written(
    made: pwopt.Optimized, known: content.Content, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(made.html())
    assert page.read(file) == json.loads(json.dumps(known))
    for other in ("", "<html></html>", made.html().replace('"schema":1', '"schema":9')):
        file.write_text(other)
        assert page.read(file) is None
    assert page.read(tmp_path / "none.html") is None


def test_nodes_know_what_became_of_them(known: content.Content) -> None:
    before, after = (known["graphs"][side]["nodes"] for side in ("before", "after"))
    relu = next(n for n in before if n["name"] == "ReLU32")
    (into,) = relu["into"]
    assert after[into]["op"] == "Conv"
    assert {before[i]["name"] for i in after[into]["from"]} == {"Convolution28", "Plus30", "ReLU32"}
    assert before[0]["op"] == "Input"
    assert after[before[0]["into"][0]]["op"] == "Input"
    gone = {n["name"] for n in before if not n["into"]}
    assert "Times212_reshape1" in gone
    notes = {known["passes"][i]: text for i, text in after[into]["notes"]}
    assert "folded" in notes["fold-affine"]
    assert "fuse-epilogue" in notes


def test_all_measured_time_stands_in_the_waterfall(
    made: pwopt.Optimized, known: content.Content
) -> None:
    profile = made.report.profile
    assert profile is not None
    rows = known["waterfall"]
    for side, parts in (("before", profile.operators), ("after", profile.kernels)):
        assert sum(row[side] for row in rows) == pytest.approx(sum(each.us for each in parts))
    drawn = charts.waterfall(rows)
    last = drawn["bars"][-1]
    longest = max(drawn["before"], drawn["after"])
    for side in ("before", "after"):
        end = last[f"{side}_at"] + last[f"{side}_width"]
        assert end == pytest.approx(100 * drawn[side] / longest, abs=0.1)


def test_short_layers_share_a_row() -> None:
    long, short = ({"node": 0, "label": "l", "before": us, "after": us} for us in (1e3, 0.1))
    rows = [long, *[short] * 40, long]
    bars = charts.waterfall(rows)["bars"]
    assert len(bars) == 3
    assert bars[1]["label"].startswith("40 short ones")
    assert bars[1]["before"] == pytest.approx(4.0)


def test_what_onnxruntime_fused_is_found_by_its_names() -> None:
    names = {n: n for n in ("conv", "relu_out", "conv_nchwc", "gemm", "r8")}
    given = [
        "conv",
        "relu_out_nchwc",
        "conv_nchwc",
        "gemm/MatMulAddFusion",
        "r8_bn_nchwc",
        "fused r8",
    ]
    found = ["conv", "relu_out", "conv_nchwc", "gemm", "r8", "r8"]
    operators = [OperatorTiming(name, "Conv", 1.0) for name in [*given, "ReorderInput_token_3"]]
    assert profiling.original_nodes(operators, names) == [*found, None]


def test_kernels_lie_under_the_roofs(known: content.Content) -> None:
    nodes = known["graphs"]["after"]["nodes"]
    plot = charts.roofline(nodes, 100.0, {"memory": 10.0}, 1.0)
    assert plot is not None
    box = plot["box"]
    assert all(box["left"] <= p["x"] <= box["right"] for p in plot["points"])
    assert all(box["top"] <= p["y"] <= box["bottom"] for p in plot["points"])
    (roof,) = plot["roofs"]
    assert roof["ends"][3] == pytest.approx(plot["peak"]["y"])
    assert charts.roofline([], 100.0, {}, 1.0) is None


def test_the_verdict_says_what_was_measured(made: pwopt.Optimized, known: content.Content) -> None:
    profile = made.report.profile
    assert profile is not None
    fixed = dataclasses.replace(profile, onnxruntime_ms=0.2, compiled_ms=0.1, ratio=0.5)
    measured = known | {"report": known["report"] | {"profile": dataclasses.asdict(fixed)}}
    start = "mnist-conv.onnx takes 100 \u00b5s instead of 200 \u00b5s: 2.00 times as fast"
    assert verdict(measured).startswith(start)
    assert "25.4 kB instead of 26.5 kB" in verdict(measured)
    predicted = known | {"report": known["report"] | {"profile": None}}
    assert "is predicted to take" in verdict(predicted)
    assert "Nothing was measured" in verdict(predicted)


def test_a_graph_that_is_too_large_is_left_out_with_a_reason() -> None:
    made = driver.optimize(blocks.chain(length=content.MAX_NODES + 400), verify=False)
    found = page.of_optimization(made)
    assert found["graphs"]["before"] is None
    assert "4,000 nodes are drawn, and this one has 4,4" in Page(page.render(found)).text


def test_an_open_model_without_an_executable_has_a_page() -> None:
    model = blocks.bottleneck()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "h"
    assert "predicted" in Page(driver.optimize(model).html()).text


def test_compare_completes_the_page(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    flags = ["-o", str(out), "--no-profile", "-q"]
    assert cli.run(["optimize", str(MODEL), *flags]) == 0
    first = (out / "report.html").read_text()
    assert "Nothing was measured" in first
    assert cli.run(["compare", str(MODEL), str(out), "--runs", "2", "-q"]) == 0
    assert f"written {out / 'report.html'}" in capsys.readouterr().out
    shown = Page((out / "report.html").read_text()).text
    assert "instead of" in shown
    assert "fold-affine" in shown
    assert "2 interleaved samples each" in shown
    assert f"pwopt compare {MODEL} {out}" in shown
    assert f"pwopt optimize {MODEL}" in shown
    assert sorted(p.name for p in out.iterdir()) == [
        "model.onnx",
        "model.so",
        "report.html",
        "report.json",
    ]
    alone = tmp_path / "elsewhere.so"
    alone.write_bytes((out / "model.so").read_bytes())
    assert cli.run(["compare", str(MODEL), str(alone), "--runs", "2", "-q"]) == 0
    assert "written" not in capsys.readouterr().out
    own = tmp_path / "own.html"
    command = ["compare", str(MODEL), str(alone), "--runs", "2", "-q", "--html", str(own)]
    assert cli.run(command) == 0
    assert "Not drawn: no report of the optimization" in Page(own.read_text()).text


def test_a_comparison_is_a_page_in_python(made: pwopt.Optimized) -> None:
    executable = pwopt.compile(made.graph)
    x = np.zeros((1, 1, 28, 28), np.float32)
    table = pwopt.compare(MODEL, executable, runs=2, inputs={"Input3": x})
    assert "2 interleaved samples" in Page(table.html()).text
