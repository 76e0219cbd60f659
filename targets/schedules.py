"""Which schedule a kernel gets: the tuned one where there is one, else the rule's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar


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
