"""Which schedule a kernel gets: the tuned one where there is one, else the rule's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Protocol, TypeVar

from pwopt.hardware import Hardware

# Of the kernels; grows when one changes so that measurements of the old one mean nothing.
VERSION = 1


class Schedule(Protocol):
    """One way to compute a kernel; its text names it in the tuning database."""

    def __str__(self) -> str: ...


AnySchedule = TypeVar("AnySchedule", bound=Schedule)


class Schedules:
    """Tuned schedules by kernel.

    Attributes:
        tuned: the text of a schedule by the text of a kernel.
    """

    def __init__(self, tuned: Mapping[str, str] | None = None) -> None:
        self.tuned = dict(tuned or {})

    def choose(
        self,
        kernel: str,
        rule: Callable[[], AnySchedule],
        candidates: Callable[[], Iterable[AnySchedule]],
    ) -> AnySchedule:
        """The schedule for a kernel.

        Args:
            kernel: says what is computed, on which shapes and strides.
            rule: gives the schedule of an untuned kernel.
            candidates: gives every legal schedule, the most promising first.
        """
        wanted = self.tuned.get(kernel)
        if wanted is None:
            return rule()
        return next((c for c in candidates() if str(c) == wanted), None) or rule()


def machine_key(hardware: Hardware) -> str:
    """What measurements hold for: the processor, its vectors and caches, and our kernels."""
    caches = (hardware.l1_bytes, hardware.l2_bytes, hardware.l3_bytes)
    sizes = "/".join(str(size // 1024) for size in caches)
    width = f"{hardware.lanes}x{hardware.registers}{' split' * hardware.splits}"
    return f"{hardware.mcpu} {width} {sizes}K kernels {VERSION}"


def shipped(machine: str) -> dict[str, str]:
    """The schedules that come with pwopt for a machine, by kernel."""
    text = resources.files("pwopt.targets").joinpath("schedules.json").read_text()
    found = json.loads(text).get(machine, {})
    return {str(kernel): str(schedule) for kernel, schedule in found.items()}
