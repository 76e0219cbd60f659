"""A training loop: classification by cross-entropy, one cycle of the learning rate, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pwopt.training.torch_module import GraphModule

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the data.
        batch: images a step.
        rate: peak of the learning rate, reached after a quarter of the steps (Smith 2018).
        decay: decoupled weight decay, of weights with more than one axis.
        seed: of the order of the images and of the augmentation.
        bf16: whether operands of convolutions and products are rounded to bfloat16.
        threads: of PyTorch.
    """

    epochs: int = 4
    batch: int = 128
    rate: float = 0.01
    decay: float = 1e-2
    seed: int = 0
    bf16: bool = False
    threads: int = 1


def fit(
    module: GraphModule,
    inputs: np.ndarray,
    labels: np.ndarray,
    schedule: Schedule,
    augment: Augment | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Trains a classifier of one input, whose first output is its logits, in place.

    Args:
        module: left in evaluation mode.
        inputs: (count, ...) float32, preprocessed.
        labels: (count,) int64.
        schedule: epochs, batch, learning rate, seed.
        augment: changes a batch as it is drawn.
        progress: told the mean loss after each epoch.
    """
    torch.set_num_threads(schedule.threads)
    generator = torch.Generator().manual_seed(schedule.seed)
    steps = schedule.epochs * (len(inputs) // schedule.batch)
    optimizer = torch.optim.AdamW(_groups(module, schedule.decay), lr=schedule.rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.rate, total_steps=max(steps, 1), pct_start=0.25
    )
    # A third less time a step than channels first, on a Zen 4 core in bfloat16.
    module.to(memory_format=torch.channels_last)
    module.train()
    for epoch in range(schedule.epochs):
        losses = []
        for x, y in _batches(inputs, labels, schedule.batch, generator):
            x = augment(x, generator) if augment else x
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bf16):
                logits = module(_channels_last(x))[0]
            loss = functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        progress(f"epoch {epoch + 1} of {schedule.epochs}: loss {mean:.4f}")
    module.eval()


def predict(module: GraphModule, inputs: np.ndarray, batch: int = 500) -> np.ndarray:
    """The first output for each input, in evaluation mode."""
    module.eval()
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(inputs[i : i + batch]))[0].numpy()
            for i in range(0, len(inputs), batch)
        ]
    return np.concatenate(parts)


def shifted_or_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to two pixels together, wrapped around; half of the pictures mirrored."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    down, right = (int(v) for v in torch.randint(-2, 3, (2,), generator=generator))
    return x.roll((down, right), (2, 3))


def _batches(
    inputs: np.ndarray, labels: np.ndarray, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches in random order; the rest is left out of this epoch."""
    order = torch.randperm(len(inputs), generator=generator).numpy()
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield torch.from_numpy(inputs[chosen]), torch.from_numpy(labels[chosen])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _groups(module: GraphModule, decay: float) -> list[dict[str, object]]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
