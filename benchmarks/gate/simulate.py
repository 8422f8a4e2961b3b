"""What 1, 10, 100 and 1,000 times today's peak needs, on a virtual clock: `python -m gate.simulate`.

The gate's mix and model latencies, first come first served over all slots, then over the children for photos. What it
leaves out: retries, caches, limits of the providers themselves.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rich.console import Console
from rich.table import Table

from gate.mix import KINDS, Kind
from gate.plan import DAY_MEAN
from gate.verdict import percentile

_TARGET_S = 20.0
_DEADLINE_S = 15.0
"""At its deadline a job is answered by rule or another model, so no slot is held longer."""


@dataclass(frozen=True, slots=True)
class Need:
    """`slots` and `children` that keep the p95 below the target at `rate` jobs a second."""

    rate: float
    slots: int
    children: int
    p95_s: float
    photos_a_s: float


def waits(starts: Sequence[float], takes: Sequence[float], servers: int) -> list[float]:
    """Seconds from each arrival to its end, first come first served over `servers`."""
    free = [0.0] * servers
    heapq.heapify(free)
    ends = []
    for start, take in zip(starts, takes, strict=True):
        end = max(start, heapq.heappop(free)) + take
        heapq.heappush(free, end)
        ends.append(end - start)
    return ends


def _drawn(
    rate: float, jobs: int, kinds: Sequence[Kind], photo_s: float, rng: Random
) -> tuple[list[float], list[float], list[bool]]:
    starts, takes, photos, at = [], [], [], 0.0
    weights = [kind.calls_a_day for kind in kinds]
    for kind in rng.choices(kinds, weights, k=jobs):
        at += rng.expovariate(rate)
        starts.append(at)
        takes.append(min(_DEADLINE_S, kind.model.at(rng.random()) + (photo_s if kind.yolo else 0.0)))
        photos.append(kind.yolo)
    return starts, takes, photos


def need(rate: float, photo_s: float, kinds: Sequence[Kind] = KINDS, jobs: int = 20_000, seed: int = 1) -> Need:
    """`photo_s` is what a child takes for one photo in a batch, in seconds."""
    starts, takes, photos = _drawn(rate, jobs, kinds, photo_s, Random(seed))
    slots = _fewest(lambda servers: percentile(waits(starts, takes, servers), 0.95), int(rate * sum(takes) / jobs))
    photo_starts = [start for start, photo in zip(starts, photos, strict=True) if photo]
    services = [photo_s] * len(photo_starts)
    photos_a_s = rate * len(photo_starts) / jobs
    # A photo may wait for a second: the rest of the time belongs to the model.
    children = _fewest(
        lambda servers: percentile(waits(photo_starts, services, servers), 0.95) + _TARGET_S - 1,
        int(photos_a_s * photo_s),
    )
    return Need(rate, slots, children, percentile(waits(starts, takes, slots), 0.95), photos_a_s)


def _fewest(p95_s, least: int) -> int:  # type: ignore[no-untyped-def]
    servers = max(1, least)
    while p95_s(servers) >= _TARGET_S:
        servers += max(1, servers // 20)
    return servers


def main() -> None:
    """Prints the table of docs/scaling.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo-ms", type=float, default=60.0, help="a child's time for one photo; default 60")
    options = parser.parse_args()
    table = Table(title=f"p95 below {_TARGET_S:g} s, {options.photo_ms:g} ms a photo")
    for heading in (
        "times today's peak",
        "jobs/s",
        "jobs a day at that peak / 10",
        "slots",
        "photos/s",
        "children",
        "p95",
    ):
        table.add_column(heading, justify="right")
    for factor in (1, 10, 100, 1000):
        found = need(10 * DAY_MEAN * factor, options.photo_ms / 1000)
        table.add_row(
            *(f"{factor:,}", f"{found.rate:.1f}", f"{found.rate / 10 * 86_400:,.0f}", f"{found.slots:,}"),
            *(f"{found.photos_a_s:.1f}", f"{found.children}", f"{found.p95_s:.1f} s"),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
