"""The classic claims about 1x1 convolutions, each layer alone and measured on this machine.

Texts praise a 1x1 convolution by how much faster it is than the 3x3 or 5x5 in its place. The ratio
of the multiply-adds is one thing; what is left of it in a runtime is another, because the larger
kernel reuses what it reads, Winograd's algorithm saves most of its work, and what both pay alike
(calls, layouts of the input and the output) weighs more on the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from pwopt import compilation, cost, driver, frontend, hardware, numerics, ort
from pwopt.compilation import CodeOptions
from pwopt.models.builder import ModelBuilder
from pwopt.running import Runner, input_types
from pwopt.timing import interleaved

HOLDS = 0.95  # share of the claimed ratio that must be measured
_TILES = {3: 4, 5: 2}  # of Winograd's algorithm, by the kernel's side


@dataclass(frozen=True)
class Claim:
    """Two ways from one map to another of the same shape.

    Attributes:
        channels, side: of the input.
        slow, fast: convolutions in a row, as (out_channels, kernel).
        reported: how many times as fast texts call the second; None where they count the work.
    """

    channels: int
    side: int
    slow: tuple[tuple[int, int], ...]
    fast: tuple[tuple[int, int], ...]
    reported: float | None = None

    @property
    def title(self) -> str:
        """For example "512->32 @12x12: 1x1 for 3x3"."""
        out = self.slow[-1][0]
        ways = " for ".join(_way(layers) for layers in (self.fast, self.slow))
        return f"{self.channels}->{out} @{self.side}x{self.side}: {ways}"

    def models(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """The slow and the fast one, seeded weights with bias."""
        return self._model(self.slow), self._model(self.fast)

    def _model(self, layers: Sequence[tuple[int, int]]) -> onnx.ModelProto:
        builder = ModelBuilder("claim")
        x = builder.input((1, self.channels, self.side, self.side))
        for out_channels, kernel in layers:
            x = builder.conv(x, out_channels, kernel)
        return builder.build(x)


CLAIMS = (
    Claim(512, 12, slow=((32, 3),), fast=((32, 1),), reported=23.0),
    Claim(64, 32, slow=((128, 3),), fast=((128, 1),)),
    Claim(192, 28, slow=((32, 3),), fast=((32, 1),)),
    Claim(192, 28, slow=((32, 5),), fast=((16, 1), (32, 5))),  # Inception's reduction
)


@dataclass(frozen=True)
class Pair:
    """Both ways, run by one runtime.

    Attributes:
        slow_ms, fast_ms: medians.
        speedup: the first over the second, median of the ratios of neighbours in time.
    """

    slow_ms: float
    fast_ms: float
    speedup: float


@dataclass(frozen=True)
class ClaimRow:
    """One claim and what was measured.

    Attributes:
        title: of the claim.
        parameters, macs: of the slow and the fast one.
        measured: by runtime. As a model: "ONNX Runtime", "compiled, direct" and "compiled,
            Winograd". As they are inside of a network, where no other layouts are in between:
            "kernels, direct" and "kernels, Winograd".
        reported: by texts; None where they count the work.
    """

    title: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    measured: Mapping[str, Pair]
    reported: float | None

    @property
    def by_work(self) -> float:
        """The ratio of the multiply-adds."""
        return self.macs[0] / self.macs[1]

    @property
    def claimed(self) -> float:
        """What is claimed: as reported, else by the work."""
        return self.reported or self.by_work

    @property
    def holds_in(self) -> list[str]:
        """The runtimes in which the claim is true."""
        return [n for n, pair in self.measured.items() if pair.speedup >= HOLDS * self.claimed]


def measure_claims(
    threads: int = 1,
    runs: int | None = None,
    claims: Sequence[Claim] = CLAIMS,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[ClaimRow]:
    """Measures each claim.

    A model is the layer alone, from an NCHW input to an NCHW output: what a runtime does to bring
    them into another layout counts, as it does in the texts' measurements. Models take turns;
    kernels, on one thread, take turns with the multiply-add peak, and are compared by their shares.

    Args:
        threads: of one inference.
        runs: interleaved samples; None for about ten seconds a claim.
        claims: what to measure.
        progress: called with a claim's title before it is measured.
    """
    for claim in claims:
        progress(claim.title)
        slow, fast = (frontend.load(model) for model in claim.models())
        yield ClaimRow(
            title=claim.title,
            parameters=(cost.parameters(slow), cost.parameters(fast)),
            macs=(cost.graph_macs(slow), cost.graph_macs(fast)),
            measured=_measure_models(claim, threads, runs) | _measure_kernels(claim, runs),
            reported=claim.reported,
        )


def _measure_models(claim: Claim, threads: int, runs: int | None) -> dict[str, Pair]:
    models = claim.models()
    optimized = [driver.optimize(model, verify=False) for model in models]
    runners: dict[str, Sequence[Runner]] = {
        "ONNX Runtime": [ort.OrtModel(m.SerializeToString(), threads) for m in models]
    }
    for name, way in (("direct", "off"), ("Winograd", "auto")):
        options = CodeOptions(threads, way)
        runners[f"compiled, {name}"] = [
            compilation.compile_optimized(each, options)[0] for each in optimized
        ]
    feeds = numerics.random_inputs(input_types(frontend.load(models[0])), seed=0)
    samples, _ = interleaved([r for pair in runners.values() for r in pair], feeds, runs)
    return {
        name: _pair([s.wall for s in slow], [s.wall for s in fast])
        for name, slow, fast in zip(runners, samples[::2], samples[1::2], strict=True)
    }


def _pair(slow: Sequence[float], fast: Sequence[float]) -> Pair:
    ratios = np.array(slow) / np.array(fast)
    return Pair(
        1e3 * float(np.median(slow)), 1e3 * float(np.median(fast)), float(np.median(ratios))
    )


def _measure_kernels(claim: Claim, runs: int | None) -> dict[str, Pair]:
    found = {}
    for name, tiles in (("direct", {}), ("Winograd", _TILES)):
        slow, fast = (
            _kernels_ms(claim, layers, tiles, runs) for layers in (claim.slow, claim.fast)
        )
        found[f"kernels, {name}"] = Pair(slow[0], fast[0], slow[1] / fast[1])
    return found


def _kernels_ms(
    claim: Claim, layers: Sequence[tuple[int, int]], tiles: Mapping[int, int], runs: int | None
) -> tuple[float, float]:
    """Time of layers in a row: in milliseconds, and in multiply-adds of the peak meanwhile."""
    from pwopt.targets.cpu.measure import Layer, measure_layers

    inputs = [claim.channels, *(out for out, _ in layers)]
    made = [
        Layer(i, out, claim.side, claim.side, size=kernel, m=tiles.get(kernel, 0))
        for i, (out, kernel) in zip(inputs, layers, strict=False)
    ]
    speeds = list(measure_layers(made, hardware.host(), runs or 40))
    return (
        sum(1e3 * layer.gflop / speed.gflops for layer, speed in zip(made, speeds, strict=True)),
        sum(layer.gflop / speed.share for layer, speed in zip(made, speeds, strict=True)),
    )


def _way(layers: Sequence[tuple[int, int]]) -> str:
    """Convolutions in words: "1x1", or with the channels between them "1x1 to 16, 5x5"."""
    *first, (_, last) = layers
    return ", ".join([*(f"{k}x{k} to {out}" for out, k in first), f"{last}x{last}"])
