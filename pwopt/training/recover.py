"""Training a rewritten network back: against labels, the original's class scores, or both."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pwopt.errors import UsageError
from pwopt.training.fit import Schedule, Trainer, batches, predict
from pwopt.training.torch_module import GraphModule

TEMPERATURE = 2.0  # of both class probabilities, Hinton et al. 2015
_LABELS_SHARE = 0.5  # of the loss, where there are labels and a teacher


@dataclass(frozen=True)
class Examples:
    """What is trained on, or judged by.

    Attributes:
        inputs: of the module, each (count, ...) float32.
        labels: (count,) int64, or None.
        scores: (count, classes) the teacher's log-probabilities, or None.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    scores: np.ndarray | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batch(self, rows: np.ndarray) -> list[Tensor]:
        """The inputs of some of the examples."""
        return [torch.from_numpy(array[rows]) for array in self.inputs]

    def loss(self, scores: Tensor, rows: np.ndarray) -> Tensor:
        """The mean loss of class scores (rows, classes, 1...) for some of the examples."""
        scores, parts = scores.flatten(1), []
        if self.scores is not None:
            taught = torch.from_numpy(self.scores[rows]) / TEMPERATURE
            parts.append(
                TEMPERATURE**2
                * functional.kl_div(
                    functional.log_softmax(scores / TEMPERATURE, dim=1),
                    functional.log_softmax(taught, dim=1),
                    reduction="batchmean",
                    log_target=True,
                )
            )
        if self.labels is not None:
            parts.append(functional.cross_entropy(scores, torch.from_numpy(self.labels[rows])))
        if len(parts) == 1:
            return parts[0]
        return (1.0 - _LABELS_SHARE) * parts[0] + _LABELS_SHARE * parts[1]


def recover(
    module: GraphModule,
    train: Examples,
    held_out: Examples,
    schedule: Schedule,
    *,
    patience: int,
    checkpoint: Path | None = None,
    key: str = "",
    progress: Callable[[str], None] = lambda _: None,
    done: Callable[[float], None] = lambda _: None,
) -> tuple[int, int]:
    """Trains until the loss on held-out examples stops falling; keeps the best weights.

    Args:
        module: ends with the best weights that were seen, at the beginning included.
        train: examples.
        held_out: other examples.
        schedule: epochs at most, batch, learning rate, seed.
        patience: epochs without a better held-out loss, after which it ends; counted from the
            middle on, because the cycle's high rates cost accuracy before they bring any.
        checkpoint: a file that every epoch is saved to, and from which it goes on.
        key: what the checkpoint must belong to.
        progress: told the losses after each epoch.
        done: told the share of all epochs' steps after each step.

    Returns:
        epochs done, and the epoch of the best weights; 0 is the beginning.

    Raises:
        UsageError: the checkpoint is of another training, or no checkpoint.
    """
    trainer = Trainer(module, schedule, len(train))
    best, best_epoch = _held_out_loss(module, held_out), 0
    weights = copy.deepcopy(module.state_dict())
    if checkpoint is not None and checkpoint.exists():
        state = _load(checkpoint, key)
        trainer.restore(state["trainer"])
        best, best_epoch, weights = state["best"], state["best_epoch"], state["weights"]
        progress(f"going on after epoch {trainer.epoch}")
    middle = schedule.epochs // 2
    while trainer.epoch < schedule.epochs and trainer.epoch - max(best_epoch, middle) < patience:
        rows = list(batches(len(train), schedule.batch, trainer.generator))
        steps = len(rows) * schedule.epochs

        def drawn(rows: list[np.ndarray] = rows, steps: int = steps) -> Iterator[Any]:
            for step, chosen in enumerate(rows, 1 + trainer.epoch * len(rows)):
                yield train.batch(chosen), chosen
                done(step / steps)

        mean = trainer.run_epoch(drawn(), train.loss)
        loss = _held_out_loss(module, held_out)
        if loss < best:
            best, best_epoch = loss, trainer.epoch
            weights = copy.deepcopy(module.state_dict())
        progress(
            f"epoch {trainer.epoch} of {schedule.epochs}: loss {mean:.4f}, held out {loss:.4f}"
        )
        if checkpoint is not None:
            state = {"best": best, "best_epoch": best_epoch, "weights": weights}
            _save({"key": key, "trainer": trainer.state(), **state}, checkpoint)
    module.load_state_dict(weights)
    return trainer.epoch, best_epoch


def _held_out_loss(module: GraphModule, examples: Examples) -> float:
    scores = torch.from_numpy(predict(module, *examples.inputs)).float()
    return float(examples.loss(scores, np.arange(len(examples))))


def _save(state: dict[str, Any], path: Path) -> None:
    """Replaces the file as a whole: a kill leaves the old or the new one."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)


def _load(path: Path, key: str) -> dict[str, Any]:
    try:
        state: Any = torch.load(path, weights_only=True)
    except Exception as error:
        raise UsageError(f"{path}: no checkpoint: {type(error).__name__}") from error
    if not isinstance(state, dict) or "key" not in state:
        raise UsageError(f"{path}: no checkpoint of recover")
    if state["key"] != key:
        raise UsageError(f"{path}: of another training; remove it, or name another --checkpoint")
    found: dict[str, Any] = state
    return found
