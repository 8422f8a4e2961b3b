"""What the figures say: percentiles, targets, and whether a difference to the kept run is noise. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TIMED_OUT = frozenset({"deadline_exceeded", "provider_timeout"})
_EDGE_LIMIT_S = 30.0
_NOISE = 0.25
"""Two runs on a shared machine differ by this much without a reason."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the ledger, against the moment it was meant to be sent. Times in seconds; None until it happened."""

    phase: str
    kind: str
    status: str
    attempts: int
    end_to_end_s: float | None
    worker_s: float | None
    pickup_s: float | None
    error_code: str | None = None
    degraded_code: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    @property
    def timed_out(self) -> bool:
        """Failed for want of time, or so late that the old system's client would have given up."""
        late = self.end_to_end_s is not None and self.end_to_end_s > _EDGE_LIMIT_S
        return late or (self.status == "failed" and self.error_code in TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Target:
    """`value` must be below `limit`, or, where `at_least`, not below it."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        if math.isnan(self.value):
            return False
        return self.value >= self.limit if self.at_least else self.value < self.limit


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, max and how many."""
    if not values:
        return {"n": 0}
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    return {"n": len(values)} | {name: round(percentile(values, share), 4) for name, share in shares}


def summary(jobs: Sequence[Job]) -> dict[str, Any]:
    """One phase, or all of them."""
    done = [job for job in jobs if job.ended]
    return {
        "jobs": len(jobs),
        "unfinished": len(jobs) - len(done),
        "completed": sum(job.status == "completed" for job in done),
        "failed": sum(job.status in ("failed", "cancelled") for job in done),
        "degraded": sum(job.degraded_code is not None for job in done),
        "timed_out": sum(job.timed_out for job in done),
        "why": dict(Counter(code for job in done if (code := job.error_code or job.degraded_code))),
        "retried": sum(job.attempts > 1 for job in done),
        "end_to_end_s": spread([job.end_to_end_s for job in done if job.end_to_end_s is not None]),
        "worker_s": spread([job.worker_s for job in done if job.worker_s is not None]),
        "pickup_s": spread([job.pickup_s for job in done if job.pickup_s is not None]),
    }


def targets(
    judged: Sequence[Job],
    every: Sequence[Job],
    gateway_ms: Sequence[float],
    gateway_failed: int,
    peak_mb: float,
    budget_mb: float,
) -> list[Target]:
    """`judged` are jobs of phases within capacity, `every` all that were accepted; none of those may be lost."""
    count = max(1, len(judged))
    times = summary(judged)
    failed, timed_out = times["failed"], times["timed_out"]
    return [
        Target("gateway p95", percentile(gateway_ms, 0.95), 200, "ms"),
        Target("gateway requests that failed", float(gateway_failed), 1, ""),
        Target("worker p95", times["worker_s"].get("p95", math.nan), 15, "s"),
        Target("end to end p95", times["end_to_end_s"].get("p95", math.nan), 20, "s"),
        Target("timeouts", 100 * timed_out / count, 0.1, "%"),
        Target("errors", 100 * failed / count, 1, "%"),
        Target("answers by rule, for want of a model", 100 * times["degraded"] / count, 10, "%"),
        Target("total memory at its peak", peak_mb, budget_mb, "MB"),
        Target("jobs lost", float(sum(not job.ended for job in every)), 1, ""),
    ]


def against_old(
    old_rate: float, new_rate: float, old_pickup_s: Sequence[float], new_pickup_s: Sequence[float], old_failed: int
) -> list[Target]:
    """`rate` is jobs a second; of pick-up times, the medians. A baseline whose jobs fail is none."""
    throughput = new_rate / old_rate if old_rate else math.nan
    pickup = percentile(old_pickup_s, 0.5) / max(1e-6, percentile(new_pickup_s, 0.5))
    return [
        Target("throughput against the old design", throughput, 5, "x", at_least=True),
        Target("pick-up against the old design", pickup, 20, "x", at_least=True),
        Target("the old design's jobs that failed", float(old_failed), 1, ""),
    ]


def changes(before: Mapping[str, float], now: Mapping[str, float]) -> list[tuple[str, float, float, str]]:
    """(name, before, now, verdict) of every figure that both runs have; lower is better in all of them."""
    found = []
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if old <= 0 or math.isnan(old) or math.isnan(new):
            verdict = "same" if old == new else "changed"
        elif new > old * (1 + _NOISE):
            verdict = "worse"
        elif new < old / (1 + _NOISE):
            verdict = "better"
        else:
            verdict = "noise"
        found.append((name, old, new, verdict))
    return found
