"""How much a model may grow: what passes ask before they copy or expand constants."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pwopt.errors import UsageError

if TYPE_CHECKING:
    from pwopt.ir.graph import Graph

MAX_GROWTH = 0.05  # of the model's size, where nothing else is asked for
MAX_SIZE_GROWTH = 1.6  # of an executable's packed weights over the model's
# What a model may always grow by, where it may at all: shapes and attributes that are written out
# outweigh the weights of a model of a few kilobytes.
FLOOR_BYTES = 4096


def allowance(size: int, max_growth: float) -> int:
    """Bytes by which something of ``size`` bytes may grow, by a share of it.

    Raises:
        UsageError: the share is negative or no number.
    """
    if not max_growth >= 0:
        raise UsageError(f"max-growth {max_growth:g}: give a share of the model's size, 0 or more")
    if math.isinf(max_growth):
        return sys.maxsize
    return max(int(size * max_growth), FLOOR_BYTES if max_growth > 0 else 0)


@dataclass
class Budget:
    """What the constants of a graph may take in one run of a pipeline.

    Attributes:
        limit_bytes: all of them together; None for no limit.
        refused: bytes that rewrites asked for in vain, by what they are about.
    """

    limit_bytes: int | None = None
    refused: dict[str, int] = field(default_factory=dict)


def budget(graph: Graph, max_growth: float) -> Budget:
    """What the constants of a graph may take after a run that may make it grow by a share."""
    return Budget(graph.constant_bytes + allowance(graph.constant_bytes, max_growth))


@dataclass(frozen=True)
class Growth:
    """What one pass may add to the constants of a graph.

    Attributes:
        budget: of the run.
        max_bytes: by one rewrite, the pass's own option ``max-growth-bytes``; None for no bound.
    """

    budget: Budget
    max_bytes: int | None = None

    def refuse(self, graph: Graph, added: int, what: str, about: str = "") -> str | None:
        """Why a rewrite may not add so many bytes.

        Args:
            graph: to be rewritten.
            added: bytes of new constants less those of what goes away.
            what: adds them; begins the sentence.
            about: tells this rewrite from others where ``what`` does not.
        """
        if added <= 0:
            return None
        if self.max_bytes is not None and added > self.max_bytes:
            return f"{what} would add {added} bytes, more than max-growth-bytes={self.max_bytes}"
        limit, held = self.budget.limit_bytes, graph.constant_bytes
        if limit is None or held + added <= limit:
            return None
        refused, key = self.budget.refused, about or what
        refused[key] = max(added, refused.get(key, 0))
        left = max(0, limit - held)
        return f"{what} would add {added} bytes, more than the {left} that --max-growth leaves"
