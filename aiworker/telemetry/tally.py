"""A histogram that is cheap to fill: what every job observes several times must not cost more than the job's own work.

prometheus_client's takes a lock for each bucket and each sum; this one belongs to one event loop and needs none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally(Collector):
    """Values by label values, exposed like any other histogram. `bounds` are the buckets' upper ends, in order."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        # Of one kind with the values: a float is compared with an int much more slowly.
        self._bounds = tuple(map(float, bounds))
        # For each combination of labels a count per bucket, the one without an upper end, and the sum.
        self._rows: dict[tuple[str, ...], list[float]] = {} if labels else {(): self._nothing()}
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        """`labels` are the values of the labels, in their order."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = self._nothing()
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, (*counts, total) in self._rows.items():
            buckets, so_far = [], 0.0
            for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
                so_far += count
                buckets.append((_written(bound), so_far))
            family.add_metric(labels, buckets=buckets, sum_value=total)
        yield family

    def _nothing(self) -> list[float]:
        return [0.0] * (len(self._bounds) + 2)

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labels)


def _written(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))
