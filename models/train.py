"""``python -m pwopt.models.train NAME``: trains a small network on Fashion-MNIST, on one core.

It needs ``pip install 'pwopt[train]'`` and Debian's ``dataset-fashion-mnist`` (or ``--data``),
takes some minutes a network, and writes the ONNX file and its entry in the manifest. The figures
there are of ONNX Runtime on the exported file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from pwopt.frontend import load
from pwopt.ir.graph import Graph
from pwopt.models import fashion, store
from pwopt.models.cli import run_app
from pwopt.models.datasets import classify
from pwopt.models.trained import TRAINED, Trained, trained
from pwopt.ort import OrtModel

app = typer.Typer(add_completion=False)


@app.command()
def train(
    names: Annotated[list[str] | None, typer.Argument(help="Networks; default: all.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of the four files.")] = fashion.FOLDER,
    output: Annotated[Path, typer.Option("-o", help="Folder of manifest.json.")] = store.HERE,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch.")] = 1,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the network's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the trained file, at a tenth of the rate.")
    ] = False,
) -> None:
    """Train networks on Fashion-MNIST and enter them into the manifest."""
    chosen = [trained(name) for name in names or TRAINED]
    pictures, test = fashion.load("train", data), fashion.load("test", data)
    for network in chosen:
        started = time.monotonic()
        count = epochs or network.epochs
        path, say = output / network.file, functools.partial(_say, network)
        done = _entries(output)[network.file]["epochs"] if resume else 0
        graph = fitted(
            onnx.load(path) if resume else network.untrained(seed),
            pictures,
            epochs=count,
            rate=network.rate / 10 if resume else network.rate,
            seed=seed + done,
            threads=threads,
            progress=say,
        )
        entry = _written(graph, path, test)
        if resume:
            entry["origin"] += f", then --resume --epochs {count}"
        _enter(output, network.file, entry | {"seed": seed, "epochs": done + count})
        taken = f"{time.monotonic() - started:.0f} s"
        say(f"{entry['accuracy']:.2%} of {len(test.labels)}, {taken}")


def fitted(
    model: onnx.ModelProto,
    pictures: fashion.Pictures,
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Graph:
    """The network after training.

    Args:
        model: what to train, with the weights to begin with.
        pictures: to train on.
        epochs: passes over the pictures.
        rate: peak of the learning rate.
        seed: of the order of pictures and of their augmentation.
        threads: of PyTorch.
        progress: told the loss after each epoch.
    """
    from pwopt.training import GraphModule, Schedule, fit, shifted_or_mirrored

    module = GraphModule(load(model))
    schedule = Schedule(epochs, rate=rate, seed=seed, bf16=True, threads=threads)
    fit(module, pictures.inputs(), pictures.labels, schedule, shifted_or_mirrored, progress)
    return module.to_graph()


def _written(graph: Graph, path: Path, test: fashion.Pictures) -> dict[str, Any]:
    """Saves the network; its entry in the manifest."""
    model = graph.to_onnx()
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    right = classify(OrtModel(path, threads=1), test.inputs()) == test.labels
    subset = fashion.SUBSET_SIZES["test"]
    return {
        "licence": "Apache-2.0; trained on Fashion-MNIST (MIT)",
        "origin": f"python -m pwopt.models.train {path.stem.replace('-', '_')}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(int(np.prod(t.dims)) for t in model.graph.initializer),
        "accuracy": round(float(right.mean()), 4),
        "subset_accuracy": round(float(right[:subset].mean()), 4),
    }


def _entries(folder: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["vendored"]
    return entries


def _enter(folder: Path, file: str, entry: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["vendored"][file] = entry
    path.write_text(json.dumps(content, indent=2) + "\n")


def _say(network: Trained, line: str) -> None:
    typer.echo(f"{network.name}: {line}", err=True)


if __name__ == "__main__":
    run_app(app)
