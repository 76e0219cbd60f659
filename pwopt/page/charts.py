"""The geometry of the page's charts; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 640, 420  # of the roofline's drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 26, 16, 50
_SHARE_OF_OWN_ROW = 0.004  # of the time: layers below share a row with their neighbours
_MAX_ROWS = 160


def waterfall(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bars, each beginning where the last one ended; percent of the longer sum.

    Neighbours that take next to nothing share a row.
    """
    sums = {side: sum(row[side] for row in rows) for side in ("before", "after")}
    longest = max(sums.values()) or 1.0
    share = max(_SHARE_OF_OWN_ROW, 1.0 / _MAX_ROWS if len(rows) > _MAX_ROWS else 0.0)
    merged: list[list[Mapping[str, Any]]] = []
    small: list[Mapping[str, Any]] | None = None
    for row in rows:
        if max(row["before"], row["after"]) >= share * longest or len(rows) <= 12:
            merged.append([row])
            small = None
        elif small is None:
            small = [row]
            merged.append(small)
        else:
            small.append(row)
    bars, at = [], {"before": 0.0, "after": 0.0}
    for group in merged:
        bar: dict[str, Any] = {"node": group[0]["node"]}
        first, last = group[0]["label"], group[-1]["label"]
        bar["label"] = first if len(group) == 1 else f"{len(group)} short ones: {first} … {last}"
        bar["detail"] = group[0].get("detail", "") if len(group) == 1 else ""
        for side in sums:
            us = sum(row[side] for row in group)
            bar[side] = us
            bar[f"{side}_at"] = round(100 * at[side] / longest, 3)
            bar[f"{side}_width"] = round(100 * us / longest, 3)
            at[side] += us
        bars.append(bar)
    return {"bars": bars, **sums}


def roofline(
    nodes: Sequence[Mapping[str, Any]],
    peak_gflops: float,
    bandwidths: Mapping[str, float],
    slowest: float,
) -> dict[str, Any] | None:
    """Points of kernels under the roofs of a machine, both axes logarithmic.

    Args:
        nodes: of the optimized graph.
        peak_gflops: of all threads.
        bandwidths: GB/s by memory level.
        slowest: microseconds of the slowest kernel, whose point is the largest.

    Returns:
        None where no kernel computes anything.
    """
    points: list[dict[str, Any]] = []
    for i, node in enumerate(nodes):
        us, ops, size = node.get("us") or 0.0, node.get("ops") or 0.0, node.get("bytes") or 0
        measured = us > 0
        us = us or node.get("predicted") or 0.0
        if us and ops and size:
            points.append(
                {
                    "node": i,
                    "label": f"{node['op']} {node['name']}",
                    "intensity": ops / size,
                    "gflops": 1e-3 * ops / us,
                    "us": us,
                    "measured": measured,
                    "winograd": str(node.get("kernel", "")).startswith("winograd"),
                    "radius": round(3 + 7 * math.sqrt(us / slowest), 2) if slowest else 3,
                }
            )
    if not points or not peak_gflops:
        return None
    xs, ys = _Axis([p["intensity"] for p in points], _LEFT, WIDTH - _RIGHT, 0.1, 100.0), None
    lowest = min(p["gflops"] for p in points)
    ys = _Axis([lowest, *(p["gflops"] for p in points)], HEIGHT - _BOTTOM, _TOP, 1.0, peak_gflops)
    for p in points:
        p["x"], p["y"] = xs.at(p["intensity"]), ys.at(p["gflops"])
    points.sort(key=lambda p: -p["radius"])
    roofs = [_roof(name, gbps, peak_gflops, xs, ys) for name, gbps in bandwidths.items()]
    return {
        "points": points,
        "roofs": roofs,
        "x_ticks": [(xs.at(t), _power(t)) for t in xs.ticks()],
        "y_ticks": [(ys.at(t), _power(t)) for t in ys.ticks()],
        "peak": {"y": ys.at(peak_gflops), "text": f"{peak_gflops:.0f} GFLOP/s"},
        "box": {"left": _LEFT, "right": WIDTH - _RIGHT, "top": _TOP, "bottom": HEIGHT - _BOTTOM},
        "width": WIDTH,
        "height": HEIGHT,
    }


class _Axis:
    """A logarithmic axis between powers of ten that hold all values."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, low: float, high: float
    ) -> None:
        self._start, self._end = start, end
        self.low = math.floor(math.log10(min(low, *values)))
        self.high = math.ceil(math.log10(max(high, *values) * 1.1))

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self._start + share * (self._end - self._start), 2)

    def ticks(self) -> list[float]:
        """The powers of ten."""
        return [10.0**power for power in range(self.low, self.high + 1)]


def _roof(name: str, gbps: float, peak: float, xs: _Axis, ys: _Axis) -> dict[str, Any]:
    """A line of constant bandwidth, from the edge of the drawing up to the peak."""
    left = max(10.0**xs.low, 10.0**ys.low / gbps)
    ridge = min(peak / gbps, 10.0**xs.high)
    ends = (xs.at(left), ys.at(gbps * left), xs.at(ridge), ys.at(gbps * ridge))
    return {"name": name, "ends": ends, "text": f"{name} {gbps:.0f} GB/s"}


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"1e{round(math.log10(value))}"
