"""What the pool tells its metrics, with reasons."""

from __future__ import annotations

import math

from aiworker.inference.policy.actions import BatchReport
from aiworker.inference.policy.choice import Release
from aiworker.telemetry.metrics import Metrics


class Reports:
    """Labels have few values: causes, never pictures or numbers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def batch(self, report: BatchReport) -> None:
        """A batch has ended. Eye tests do not count."""
        if report.release is Release.CANARY:
            return
        self._metrics.batch_size.observe(report.size)
        self._metrics.batch_seconds.observe(report.seconds)
        self._metrics.batch_released.labels(report.release.value).inc()
        if math.isfinite(report.slack_s):
            # Without a deadline there is none, and one infinite value would be the sum of all for ever.
            self._metrics.batch_slack.observe(max(0.0, report.slack_s))
        if report.expected_s > 0:
            self._metrics.batch_prediction.observe(report.seconds / report.expected_s)

    def taken_out(self, cause: str, count: int = 1) -> None:
        """So many pictures end without an answer."""
        if count:
            self._metrics.taken_out.labels(cause).inc(count)

    def out_of_memory(self, *, alone: bool) -> None:
        self._metrics.out_of_memory.labels("alone" if alone else "batch").inc()

    def child_ended(self, reason: str) -> None:
        """What comes before a colon is the kind of end, what comes after it the detail."""
        self._metrics.child_ends.labels(reason.partition(":")[0]).inc()

    def recycled(self) -> None:
        self._metrics.recycled.labels("memory").inc()

    def admission_paused(self) -> None:
        self._metrics.admission_pauses.inc()
