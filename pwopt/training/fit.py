"""A training loop: classification by cross-entropy, one cycle of the learning rate, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pwopt.training.torch_module import GraphModule

Augment = Callable[[Tensor, torch.Generator], Tensor]
Target = Any  # what a loss compares scores with
Loss = Callable[[Tensor, Target], Tensor]


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


class Trainer:
    """Trains a module epoch by epoch: AdamW, one cycle of the learning rate, seeded.

    Attributes:
        module: in evaluation mode between epochs.
        generator: draws the order of examples and their augmentation.
        epoch: how many are done.
    """

    def __init__(self, module: GraphModule, schedule: Schedule, examples: int) -> None:
        """Prepares a training on so many examples."""
        torch.set_num_threads(schedule.threads)
        self.module, self._schedule, self.epoch = module, schedule, 0
        self.generator = torch.Generator().manual_seed(schedule.seed)
        steps = schedule.epochs * max(1, examples // schedule.batch)
        steps = max(5, steps)  # with 4, the rise takes no step, and OneCycleLR divides by zero
        self._optimizer = torch.optim.AdamW(_groups(module, schedule.decay), lr=schedule.rate)
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, schedule.rate, total_steps=steps, pct_start=0.25
        )
        # A third less time a step than channels first, on a Zen 4 core in bfloat16.
        module.to(memory_format=torch.channels_last)

    def run_epoch(self, batches: Iterable[tuple[Sequence[Tensor], Target]], loss: Loss) -> float:
        """One pass over batches of inputs and targets; returns the mean loss."""
        self.module.train()
        losses = []
        for inputs, target in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._schedule.bf16):
                scores = self.module(*map(_channels_last, inputs))[0]
            value = loss(scores.float(), target)
            self._optimizer.zero_grad()
            value.backward()
            self._optimizer.step()
            self._cycle.step()
            losses.append(value.detach())
        self.module.eval()
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def state(self) -> dict[str, Any]:
        """Everything that it takes to go on."""
        return {
            "epoch": self.epoch,
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "cycle": self._cycle.state_dict(),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where a state was taken."""
        self.epoch = state["epoch"]
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._cycle.load_state_dict(state["cycle"])
        self.generator.set_state(state["generator"])


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
    trainer = Trainer(module, schedule, len(inputs))
    for _ in range(schedule.epochs):
        drawn = batches(len(inputs), schedule.batch, trainer.generator)
        pairs = (
            ([_augmented(inputs[rows], augment, trainer.generator)], torch.from_numpy(labels[rows]))
            for rows in drawn
        )
        mean = trainer.run_epoch(pairs, functional.cross_entropy)
        progress(f"epoch {trainer.epoch} of {schedule.epochs}: loss {mean:.4f}")


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Rows of whole batches in random order; the rest is left out of this epoch."""
    order = torch.randperm(count, generator=generator).numpy()
    size = min(size, count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def predict(module: GraphModule, *inputs: np.ndarray, batch: int = 500) -> np.ndarray:
    """The first output for each example, in evaluation mode."""
    module.eval()
    with torch.inference_mode():
        parts = [
            module(*(torch.from_numpy(a[i : i + batch]) for a in inputs))[0].numpy()
            for i in range(0, len(inputs[0]), batch)
        ]
    return np.concatenate(parts)


def shifted_or_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to two pixels together, wrapped around; half of the pictures mirrored."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    down, right = (int(v) for v in torch.randint(-2, 3, (2,), generator=generator))
    return x.roll((down, right), (2, 3))


def _augmented(inputs: np.ndarray, augment: Augment | None, generator: torch.Generator) -> Tensor:
    x = torch.from_numpy(inputs)
    return augment(x, generator) if augment else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _groups(module: GraphModule, decay: float) -> list[dict[str, object]]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
