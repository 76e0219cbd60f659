"""What each pass that moves or merges convolutions is worth: work and latency without and with it.

For every network: the default pipeline without those passes, with each of them alone, and with all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx

from pwopt import compilation, driver, frontend, numerics, ort
from pwopt.errors import UsageError, nearest
from pwopt.models import blocks
from pwopt.models.suite import SUITE
from pwopt.passes import STRUCTURAL, default_pipeline
from pwopt.pipeline import Pass, PassReport
from pwopt.running import input_types
from pwopt.timing import Sample, Spread, interleaved

MAX_SLOWDOWN = 1.02  # of the optimized model in ONNX Runtime, and of a pass


@dataclass(frozen=True)
class PassRow:
    """One pass on one network, or all of them.

    Attributes:
        model: the network.
        name: the pass; "all" for the default pipeline.
        rewrites: made by the passes named.
        macs_before, macs_after: multiply-accumulates without and with them.
        compiled: latency with over without them, within one round; None where nothing changed.
        onnxruntime: latency of the optimized model over the original's, in ONNX Runtime.
    """

    model: str
    name: str
    rewrites: int
    macs_before: int
    macs_after: int
    compiled: Spread | None
    onnxruntime: Spread | None

    @property
    def passed(self) -> bool:
        """Whether nothing became slower than noise explains."""
        known = [each for each in (self.compiled, self.onnxruntime) if each is not None]
        return all(each.median <= MAX_SLOWDOWN for each in known)


def networks() -> dict[str, Callable[[], onnx.ModelProto]]:
    """The networks whose passes are measured, by name."""
    names = [
        *("densenet121", "inception_v1", "inception_v2", "resnet50", "squeezenet", "shufflenet"),
        *("mobilenet_v2", "ocr_det", "open_nsfw"),
    ]
    found = {name: SUITE[name].build for name in names}
    return found | {
        "resnet50_fpn": lambda: blocks.resnet_fpn(64, (3, 4, 6, 3), 224, pyramid=256),
        "naive": lambda: blocks.naive(width=32, size=224),
    }


def measure_passes(
    names: Sequence[str] | None = None,
    *,
    runs: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[PassRow]:
    """Measures the passes of :data:`pwopt.passes.STRUCTURAL` on the named networks, one thread.

    Args:
        names: among :func:`networks`; None for all.
        runs: interleaved samples; None for about ten seconds a network.
        progress: called with a network's name before it is measured.

    Raises:
        UsageError: an unknown network.
    """
    known = networks()
    for name in names or known:
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(f"no network {name}{hint}; there are {', '.join(known)}")
        progress(name)
        yield from _measure(name, known[name](), runs)


def _measure(name: str, model: onnx.ModelProto, runs: int | None) -> Iterator[PassRow]:
    graph = frontend.load(model)
    every = default_pipeline()
    plain = [each for each in every if type(each) not in STRUCTURAL]
    variants: dict[str, Sequence[Pass]] = {"": plain}
    for cls in STRUCTURAL:
        variants[cls.name] = [e for e in every if type(e) is cls or type(e) not in STRUCTURAL]
    variants["all"] = every
    results = {k: driver.optimize(graph, passes=v, verify=False) for k, v in variants.items()}
    counts = {k: _rewrites(v.report.passes) for k, v in results.items()}
    kept = [k for k in variants if k in ("", "all") or counts[k]]
    feeds = numerics.random_inputs(input_types(graph), seed=0)
    compiled = {k: compilation.compile(results[k].graph) for k in kept}
    wall, _ = interleaved(list(compiled.values()), feeds, runs)
    exported = [results[k].graph.to_onnx().SerializeToString() for k in kept]
    sessions = [ort.OrtModel(each, 1) for each in (model.SerializeToString(), *exported)]
    in_ort, _ = interleaved(sessions, feeds, runs)
    before = results[""].report.after.macs
    for k in list(variants)[1:]:
        after = results[k].report.after.macs
        speeds: list[Spread | None] = [None, None]
        if k in kept:
            i = kept.index(k)
            speeds = [_ratio(wall[i], wall[0]), _ratio(in_ort[i + 1], in_ort[0])]
        yield PassRow(name, k, counts[k], before, after, *speeds)


def _rewrites(passes: Sequence[PassReport]) -> int:
    names = {cls.name for cls in STRUCTURAL}
    return sum(r.applied and r.pass_name in names for row in passes for r in row.remarks)


def _ratio(samples: Sequence[Sample], base: Sequence[Sample]) -> Spread:
    return Spread.of([a.wall / b.wall for a, b in zip(samples, base, strict=True)])
