"""Baselines on a GPU, as far as they go without one; test_gpu.py has the rest."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import pwopt
from pwopt import UsageError, ort, timing
from pwopt.gpu_baselines import GPU_BASELINES, check_gpu_baseline
from pwopt.running import Runner

MODEL = Path(__file__).parents[1] / "models" / "data" / "fashion-resnet.onnx"


def missing() -> list[str]:
    found = []
    for name in GPU_BASELINES:
        try:
            check_gpu_baseline(name)
        except UsageError:
            found.append(name)
    return found


@pytest.mark.parametrize("name", missing())
def test_a_baseline_that_cannot_run_says_why(name: str) -> None:
    with pytest.raises(UsageError, match=f"--baseline {name}: "):
        pwopt.compare(MODEL, MODEL, baselines=[name])


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of PyTorch, of itself
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_graph_in_pytorch_computes_the_same() -> None:
    from pwopt.training.torch_gpu import TorchGpuModel

    graph = pwopt.load(MODEL)
    (node,) = graph.inputs
    x = np.random.default_rng(0).random(node.out.shape, np.float32)
    feeds = {node.names[0]: x}
    for precision, bound in (("fp32", 1e-5), ("bf16", 5e-2)):
        model = TorchGpuModel(graph, precision, "cpu", mode=None)
        for name, wanted in ort.OrtModel(MODEL).run(feeds).items():
            given = model.run(feeds)[name]
            assert given.dtype == wanted.dtype
            assert np.abs(given - wanted).max() <= bound * np.abs(wanted).max()


class Timed:
    """A contender that runs on a GPU."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}

    def seconds_on_device(self, feeds: Mapping[str, np.ndarray], calls: int = 1) -> float:
        return self._seconds / calls


class Plain:
    """One that does not."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}


def test_time_on_the_device_is_taken_of_those_that_have_it() -> None:
    runners: list[Runner] = [Plain(), Timed(2.0), Timed(6.0)]
    samples = timing.device_samples(runners, {}, [1, 2, 3], 4)
    assert samples == [[], [1.0] * 4, [2.0] * 4]
    assert timing.device_samples([Plain()], {}, [1], 4) == [[]]
    executable = pwopt.compile(MODEL)
    assert not timing.runs_on_gpu(executable)
