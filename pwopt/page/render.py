"""From the content of a page to its HTML."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pwopt.page import charts
from pwopt.page.content import Content
from pwopt.report import runs_by_pass
from pwopt.report_text import predicted_text
from pwopt.units import human
from pwopt.units import microseconds as plain_microseconds

_FOLDER = Path(__file__).parent
_SHOWN_NODES = 6  # of a reason that applies to many


def render(content: Content) -> str:
    """The page: one file that needs no other."""
    report, comparison = content["report"], content["comparison"]
    profile = _profile(content)
    view = {
        "name": _name(content),
        "verdict": verdict(content),
        "tiles": _tiles(content),
        "content": _embedded(content),
        "graphs": content["graphs"],
        "content_passes": content["passes"],
        "graphs_measured": bool(profile and profile.get("kernels")),
        "baseline_measured": bool(profile and profile.get("operators")),
        "waterfall": charts.waterfall(content["waterfall"]) if content["waterfall"] else None,
        "roofline": _roofline(content),
        "passes": _pass_rows(content),
        "pass_timing": _pass_timing(report),
        "declined": _declined(report),
        "report": report,
        "on_gpus": _on_gpus(report) if report else "",
        "comparison": comparison,
        "profile": profile,
        "checks": _checks(report),
        "environment": _environment(content),
        "style": (_FOLDER / "report.css").read_text(),
        "script": (_FOLDER / "report.js").read_text(),
    }
    return str(_template().render(view))


def verdict(content: Content) -> str:
    """Latency before and after, error and size in a sentence."""
    name, report = _name(content), content["report"]
    times = _latency(content)
    error = _error(content)
    off = "" if error is None else f", off by {error:.1g} of its output's scale"
    size = ""
    if report is not None:
        before, after = report["file"]["before"], report["file"]["after"]
        size = f"; the ONNX file is {human(after)}B instead of {human(before)}B"
        if human(before) == human(after):
            size = f"; the ONNX file stays at {human(after)}B"
    if times is not None:
        before_ms, after_ms, ratio = times
        rival = next(iter(_rows(content)), "onnxruntime").replace("onnxruntime", "ONNX Runtime")
        speed = f"{1 / ratio:.2f} times as fast as {rival}"
        return f"{name} takes {_ms(after_ms)} instead of {_ms(before_ms)}: {speed}{off}{size}."
    if report is None:
        return f"{name} was measured{off}."
    before_us, after_us = report["before"]["predicted_us"], report["after"]["predicted_us"]
    if before_us is not None:
        text = f"{microseconds(after_us)} instead of {microseconds(before_us)}"
    elif not (text := _on_gpus(report)):
        return f"{name} was optimized{off}{size}. Nothing was measured or predicted."
    return f"{name} is predicted to take {text}{off}{size}. Nothing was measured."


def _on_gpus(report: Mapping[str, Any]) -> str:
    """The times that are predicted for GPUs; empty where there are none."""
    compilation = report.get("compilation") or {}
    return predicted_text(compilation.get("predicted", {})).replace(" us ", " \u00b5s ")


def _name(content: Content) -> str:
    for part in (content["report"] or {}).get("source", {}), content["comparison"] or {}:
        if path := part.get("path") or part.get("model"):
            return Path(path).name
    return "The model"


def microseconds(us: float) -> str:
    """A time with three digits: 640 \u00b5s, 5.85 ms."""
    return plain_microseconds(us).replace(" us", " \u00b5s")


def _ms(ms: float) -> str:
    return microseconds(1e3 * ms)


def _profile(content: Content) -> dict[str, Any] | None:
    report = content["report"] or {}
    found = report.get("profile") or (content["comparison"] or {}).get("profile")
    return found if isinstance(found, dict) else None


def _rows(content: Content) -> dict[str, dict[str, Any]]:
    comparison = content["comparison"] or {"rows": []}
    return {row["name"]: row for row in comparison["rows"]}


def _latency(content: Content) -> tuple[float, float, float] | None:
    """Milliseconds before and after, and their ratio; None where not measured.

    The comparison's ratio is the one in its table, taken within rounds.
    """
    rows, profile = _rows(content), _profile(content)
    if rows:
        baseline, *others = rows.values()
        mine = rows.get("compiled") or others[-1]
        before, after = (row["latency_ms"]["median"] for row in (baseline, mine))
        return before, after, mine["ratio"]["median"]
    if profile and profile["ratio"]:
        before, after = profile["onnxruntime_ms"], profile["compiled_ms"]
        return before, after, after / before
    return None


def _error(content: Content) -> float | None:
    """The largest error of the executable, else of the optimized model, that was found."""
    rows, report = _rows(content), content["report"]
    if rows:
        return float((rows.get("compiled") or list(rows.values())[-1])["error"])
    if report is None:
        return None
    checks = [(report.get("compilation") or {}).get("verification"), report["verification"]]
    for check in checks:
        if check and check["status"] == "passed":
            return _worst(check)
    return None


def _tiles(content: Content) -> list[dict[str, str]]:
    """The few numbers at the top: what, before, after."""
    tiles = []
    report, times, error = content["report"], _latency(content), _error(content)
    if times is not None:
        before, after, ratio = times
        tiles.append({"what": "latency", "before": _ms(before), "after": _ms(after)})
        tiles.append({"what": "speed-up", "before": "", "after": f"{1 / ratio:.2f} times"})
    if error is not None:
        tiles.append({"what": "largest error", "before": "", "after": f"{error:.1e}"})
    if report is not None:
        before, after = report["before"], report["after"]
        if before["predicted_us"] is not None:
            us = [microseconds(each["predicted_us"]) for each in (before, after)]
            tiles.append({"what": "predicted", "before": us[0], "after": us[1]})
        elif text := _on_gpus(report):
            tiles.append({"what": "predicted", "before": "", "after": text})
        for what, key, unit in (
            ("operations", "nodes", ""),
            ("multiply-adds", "macs", ""),
            ("parameters", "parameters", ""),
        ):
            texts = [human(each[key]) + unit for each in (before, after)]
            tiles.append({"what": what, "before": texts[0], "after": texts[1]})
        file = report["file"]
        sizes = [human(file[side]) + "B" for side in ("before", "after")]
        tiles.append({"what": "ONNX file", "before": sizes[0], "after": sizes[1]})
    return [t | {"before": "" if t["before"] == t["after"] else t["before"]} for t in tiles]


def _roofline(content: Content) -> dict[str, Any] | None:
    after, report = content["graphs"]["after"], content["report"]
    if after is None or report is None:
        return None
    hardware = report["hardware"]
    threads = (report.get("compilation") or {}).get("threads", 1)
    bandwidths = {
        "L2": hardware["l2_gbps"] * threads,
        "L3": hardware["l3_gbps"] * threads,
        "memory": hardware["bandwidth_gbps"],
    }
    times = [node.get("us") or node["predicted"] for node in after["nodes"]]
    slowest = max(times, default=0.0)
    return charts.roofline(after["nodes"], content["peak_gflops"] * threads, bandwidths, slowest)


def _pass_rows(content: Content) -> list[dict[str, Any]]:
    """The passes that found something: what they changed, what that should save and what it did."""
    report = content["report"]
    if report is None:
        return []
    runs, found = report["passes"], []
    changes = [(run["spec"], run["changed"]) for run in runs]
    for spec, group in runs_by_pass(changes, apart=_pass_timing(report) is not None):
        rows = [runs[i] for i in group]
        made = [r for run in rows for r in run["remarks"] if r["applied"]]
        declined = {(r["node"], r["text"]) for run in rows for r in run["remarks"]} - {
            (r["node"], r["text"]) for r in made
        }
        if not made and not declined and not any(run["changed"] for run in rows):
            continue
        known = [run for run in rows if run["us_before"] is not None]
        texts: dict[str, int] = defaultdict(int)
        for remark in made:
            texts[remark["text"]] += 1
        found.append(
            {
                "spec": spec,
                "index": content["passes"].index(spec) if spec in content["passes"] else None,
                "made": len(made),
                "declined": len(declined),
                "what": sorted(texts.items(), key=lambda item: -item[1])[:4],
                "nodes": sum(run["nodes_after"] - run["nodes_before"] for run in rows),
                "macs": sum(run["macs_after"] - run["macs_before"] for run in rows),
                "us": _noticeable(sum(run["us_after"] - run["us_before"] for run in known)),
                "ms": 1e3 * sum(run["seconds"] for run in rows),
                "measured": next((m for run in rows if (m := run.get("measured"))), None),
            }
        )
    return found


def _pass_timing(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the passes were measured, with milliseconds before and after all; None where not."""
    timing = (report or {}).get("pass_timing")
    if report is None or not timing or not timing["latency_ms"]:
        return None
    latencies = [r["measured"]["latency_ms"]["median"] for r in report["passes"] if r["measured"]]
    before = timing["latency_ms"]["median"]
    return {**timing, "before": before, "after": latencies[-1] if latencies else before}


def _noticeable(us: float) -> float:
    """A change, 0 where it is rounding."""
    return us if abs(us) >= 1e-3 else 0.0


def _declined(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What was not done, by pass and reason, with the nodes that it applies to."""
    groups: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for run in report["passes"] if report else ():
        for remark in run["remarks"]:
            if not remark["applied"]:
                groups[remark["pass_name"]][remark["text"]][remark["node"]] = None
    return [
        {
            "spec": spec,
            "count": sum(len(nodes) for nodes in reasons.values()),
            "reasons": [
                {"text": text, "count": len(nodes), "nodes": list(nodes)[:_SHOWN_NODES]}
                for text, nodes in sorted(reasons.items(), key=lambda item: -len(item[1]))
            ],
        }
        for spec, reasons in groups.items()
    ]


def _checks(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if report is None:
        return []
    compiled = (report.get("compilation") or {}).get("verification")
    both = (("optimized ONNX model", report["verification"]), ("executable", compiled))
    return [{"what": what, **check} for what, check in both if check]


def _environment(content: Content) -> list[tuple[str, str]]:
    """What another needs to get the same, as pairs of name and text."""
    report, comparison = content["report"], content["comparison"]
    rows: list[tuple[str, str]] = []
    if report is not None:
        rows += [("command", report["command"])] if report["command"] else []
        rows += [("model", report["source"]["path"]), ("SHA-256", report["source"]["sha256"])]
        made = report.get("compilation") or {}
        for key in ("target", "threads", "precision", "winograd"):
            if key in made:
                rows.append((key, str(made[key])))
        rows.append(("passes", ", ".join(dict.fromkeys(r["spec"] for r in report["passes"]))))
        rows += [(key, str(value)) for key, value in report["environment"].items()]
        facts = (f"{k} {v}" for k, v in report["hardware"].items() if v not in ("", None))
        rows.append(("optimized for", ", ".join(facts)))
    if comparison is not None:
        rows += [("comparison", comparison.get("command", ""))]
        rows += [
            ("compared with", f"{r['name']}: {r['version']}, {r['settings']}")
            for r in comparison["rows"]
        ]
        rows.append(("samples", f"{comparison['rounds']} interleaved, {comparison['cpu']}"))
    return [(key, text) for key, text in rows if text]


def _embedded(content: Content) -> str:
    """JSON that cannot end its script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _template() -> Any:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"human": human, "us": microseconds, "trusted": Markup}
    environment.filters |= {"step": _step, "saving": functools.partial(_step, text=microseconds)}
    environment.filters |= {"ms": _ms}
    environment.globals["worst"] = _worst
    return environment.get_template("report.html")


def _worst(check: Mapping[str, Any]) -> float:
    """The largest error of a check."""
    return max((d["error"] or 0.0 for d in check["outputs"]), default=0.0)


def _step(change: float, text: Any = human) -> str:
    """A change with its sign; nothing for none."""
    return f"{'-' if change < 0 else '+'}{text(abs(change))}" if change else ""
