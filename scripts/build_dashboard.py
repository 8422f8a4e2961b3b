"""Writes deploy/grafana/dashboard.json: `python scripts/build_dashboard.py`. A test runs it and compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboard.json"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3

# Title, unit, then queries by legend.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Healthy", "short", {"{{instance}} {{check}}": "aiworker_health_check"}),
    ("Queue", "short", {"{{status}}": "max by (status) (aiworker_queue_jobs)"}),
    ("Oldest job that could run", "s", {"age": "max(aiworker_queue_oldest_seconds)"}),
    ("Jobs ended", "ops", {"{{type}} {{outcome}}": "sum by (type, outcome) (rate(aiworker_jobs_total[5m]))"}),
    (
        "Claim to outcome, p95",
        "s",
        {"{{type}}": "histogram_quantile(0.95, sum by (type, le) (rate(aiworker_job_seconds_bucket[5m])))"},
    ),
    (
        "Pick-up, p95",
        "s",
        {"{{type}}": "histogram_quantile(0.95, sum by (type, le) (rate(aiworker_pickup_seconds_bucket[5m])))"},
    ),
    (
        "Stages, p95",
        "s",
        {"{{stage}}": "histogram_quantile(0.95, sum by (stage, le) (rate(aiworker_stage_seconds_bucket[5m])))"},
    ),
    ("Errors", "ops", {"{{type}} {{code}}": "sum by (type, code) (rate(aiworker_errors_total[5m]))"}),
    ("Answered by rule", "ops", {"{{type}}": "sum by (type) (rate(aiworker_degraded_results_total[5m]))"}),
    ("Slots", "short", {"in use": "sum(aiworker_active_jobs)", "all": "sum(aiworker_slots)"}),
    (
        "Gateway, p95",
        "s",
        {
            "{{route}}": "histogram_quantile(0.95, sum by (route, le) "
            '(rate(aiworker_http_request_seconds_bucket{job="aiworker-gateway"}[5m])))'
        },
    ),
    (
        "Gateway requests",
        "reqps",
        {"{{status}}": 'sum by (status) (rate(aiworker_http_request_seconds_count{job="aiworker-gateway"}[5m]))'},
    ),
    (
        "Images in a batch",
        "short",
        {
            "mean": "sum(rate(aiworker_inference_batch_size_sum[5m])) "
            "/ sum(rate(aiworker_inference_batch_size_count[5m]))"
        },
    ),
    ("Children", "short", {"{{state}}": "sum by (state) (aiworker_inference_children)"}),
    (
        "Memory",
        "bytes",
        {
            "{{instance}}": "aiworker_process_rss_bytes",
            "{{instance}} children": "aiworker_inference_child_rss_bytes",
            "{{instance}} limit": "aiworker_memory_limit_bytes",
        },
    ),
    (
        "Model calls",
        "ops",
        {"{{provider}} {{outcome}}": "sum by (provider, outcome) (rate(aiworker_llm_calls_total[5m]))"},
    ),
    (
        "Model answers, p95",
        "s",
        {"{{provider}}": "histogram_quantile(0.95, sum by (provider, le) (rate(aiworker_llm_seconds_bucket[5m])))"},
    ),
    ("Breakers", "short", {"{{provider}} {{state}}": "max by (provider, state) (aiworker_llm_breaker)"}),
    (
        "Cost in a day, by list price",
        "currencyUSD",
        {"{{provider}}": "sum by (provider) (increase(aiworker_llm_cost_usd_total[1d]))"},
    ),
    ("Cache", "ops", {"{{result}}": "sum by (result) (rate(aiworker_cache_lookups_total[15m]))"}),
    (
        "Leases lost, jobs rescued",
        "short",
        {"lost": "increase(aiworker_leases_lost_total[15m])", "rescued": "increase(aiworker_jobs_rescued_total[15m])"},
    ),
)


def dashboard() -> dict[str, Any]:
    """For Grafana 10 and newer; it asks for its data source when it is imported."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    panels = []
    for number, (title, unit, queries) in enumerate(PANELS):
        row, column = divmod(number, _COLUMNS)
        panels.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + index), "datasource": source, "expr": query, "legendFormat": legend}
                    for index, (legend, query) in enumerate(queries.items())
                ],
            }
        )
    return {
        "__inputs": [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}],
        "title": "aiworker",
        "uid": "aiworker",
        "schemaVersion": 39,
        "tags": ["aiworker"],
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "panels": panels,
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
