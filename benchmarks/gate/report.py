"""A run as one HTML file that needs nothing else. Pure: the run's JSON in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gate.svg import Points, cumulative, line_chart

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem .2rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #94a3b8;font-weight:600}
.met{color:#15803d}.missed{color:#b91c1c;font-weight:600}svg{width:100%;height:auto;margin-bottom:1rem}
.grid{stroke:#e2e8f0}.mark{stroke:#cbd5e1;stroke-dasharray:2 3}.limit{stroke:#b91c1c;stroke-dasharray:6 4}
.tick{font-size:11px;fill:#64748b}.name{font-size:11px;fill:#334155}
@media(prefers-color-scheme:dark){body{background:#0f172a;color:#e2e8f0}.grid{stroke:#1e293b}.name{fill:#cbd5e1}}
"""


def page(run: Mapping[str, Any]) -> str:
    """`run` is what `__main__` writes as JSON."""
    missed = [each["name"] for each in run["targets"] if not each["met"]]
    verdict = (
        f"<p class=missed>missed: {escape(', '.join(missed))}</p>" if missed else "<p class=met>all targets met</p>"
    )
    about = run["about"]
    facts = ", ".join(f"{key}: {value}" for key, value in about.items())
    body = [
        "<h1>aiworker bench</h1>",
        f"<p>{escape(facts)}</p>",
        verdict,
        "<h2>Targets</h2>",
        _table(("target", "figure", "limit", ""), [_target_row(each) for each in run["targets"]]),
        "<h2>Phases</h2>",
        _table(
            (
                "phase",
                "jobs",
                "done",
                "failed",
                "degraded",
                "late",
                "end to end p50",
                "p95",
                "pick-up p50",
                "p95",
                "http p95",
                "why",
            ),
            [_phase_row(name, each) for name, each in run["phases"].items()],
        ),
        "<h2>Latency by type of job</h2>",
        _chart(
            {kind: cumulative(values) for kind, values in run["latency_by_kind_s"].items()},
            x_title="seconds from intended send to result",
            y_title="% of jobs",
        ),
        "<h2>Queue</h2>",
        _over_time(run, {"waiting": "pending", "running": "processing"}, "jobs"),
        "<h2>Memory</h2>",
        _memory(run),
        "<h2>Images in a batch</h2>",
        _over_time(run, {"mean of the last second": "batch"}, "images"),
        "<h2>Handles</h2>",
        _over_time(run, {"open files": "files", "threads": "threads", "connections": "connections"}, "how many"),
    ]
    if run.get("old_design"):
        body += ["<h2>The old design on the same load</h2>", _old(run["old_design"])]
    if run.get("changes"):
        rows = [(name, f"{old:.4g}", f"{new:.4g}", verdict) for name, old, new, verdict in run["changes"]]
        body += ["<h2>Against the last kept run</h2>", _table(("figure", "before", "now", ""), rows)]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>aiworker bench</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{each if each.startswith('<span') else escape(each)}</td>" for each in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _target_row(target: Mapping[str, Any]) -> tuple[str, ...]:
    sign = "≥" if target["at_least"] else "<"
    word = "met" if target["met"] else "missed"
    unit = target["unit"]
    limit = f"{sign} {target['limit']:g} {unit}"
    return target["name"], f"{target['value']:.4g} {unit}", limit, f"<span class={word}>{word}</span>"


def _phase_row(name: str, phase: Mapping[str, Any]) -> tuple[str, ...]:
    whole, pickup, http = phase["end_to_end_s"], phase["pickup_s"], phase["gateway_ms"]
    return (
        name,
        str(phase["jobs"]),
        str(phase["completed"]),
        str(phase["failed"]),
        str(phase["degraded"]),
        str(phase["timed_out"]),
        _seconds(whole.get("p50")),
        _seconds(whole.get("p95")),
        _seconds(pickup.get("p50")),
        _seconds(pickup.get("p95")),
        f"{http['p95']:.0f} ms" if http["n"] else "-",
        _why(phase),
    )


def _why(phase: Mapping[str, Any]) -> str:
    return ", ".join(f"{code} {count}" for code, count in phase["why"].items())


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _marks(run: Mapping[str, Any]) -> list[tuple[float, str]]:
    marks: list[tuple[float, str]] = []
    for sample in run["samples"]:
        if not marks or marks[-1][1] != sample["phase"]:
            marks.append((sample["at"], sample["phase"]))
    return marks


def _over_time(run: Mapping[str, Any], series: Mapping[str, str], y_title: str) -> str:
    points = {name: [(each["at"], each[key]) for each in run["samples"]] for name, key in series.items()}
    return _chart(points, x_title="seconds", y_title=y_title, marks=_marks(run))


def _memory(run: Mapping[str, Any]) -> str:
    groups = sorted({group for sample in run["samples"] for group in sample["memory_mb"]})
    points: dict[str, Points] = {
        group: [(each["at"], each["memory_mb"].get(group, 0.0)) for each in run["samples"]] for group in groups
    }
    points["total"] = [(each["at"], sum(each["memory_mb"].values())) for each in run["samples"]]
    return _chart(points, x_title="seconds", y_title="MB", marks=_marks(run))


def _chart(series: Mapping[str, Points], **how: Any) -> str:
    return line_chart(series, **how)


def _old(old: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"{run['rate']:.2f}/s",
            *(_seconds(run[what].get(key)) for what in ("pickup_s", "end_to_end_s") for key in ("p50", "p95")),
        )
        for name, run in old.items()
    ]
    return _table(("load", "jobs done", "pick-up p50", "p95", "end to end p50", "p95"), rows)
