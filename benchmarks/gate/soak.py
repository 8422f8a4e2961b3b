"""Whether anything grows that should not: the levels at rest between rounds of load, one against the other. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, groupby
from operator import attrgetter
from statistics import median

from gate.verdict import Target
from gate.watch import Sample

REST = "rest"
"""How the phases begin in which nothing is asked for."""
LIMIT_PER_CENT = 2.0
MOST_CONNECTIONS = 9
"""Gateway and worker have a pool of four each, and the worker listens on one more."""
_AT_REST_S = 6.0
_FEWEST_LEVELS = 4

Level = tuple[float, float]
"""Seconds since the start, and how much there was."""


def targets(samples: Sequence[Sample]) -> list[Target]:
    """One for each thing that must not grow.

    Memory is what the processes have to themselves: what a mapped file or library counts for depends on who else on
    the machine maps it, and PostgreSQL's shared buffers fill with what has been stored. Pools may open connections when
    many calls meet, and close them minutes later; each is a process of PostgreSQL's.
    """
    grown = [
        Target(f"growth of {name}", growth(levels(samples, of)), LIMIT_PER_CENT, "%") for name, of in _THINGS.items()
    ]
    most = max((sample.connections for sample in samples), default=0)
    return [*grown, Target("database connections at their most", float(most), MOST_CONNECTIONS + 1, "")]


def levels(samples: Sequence[Sample], of: Callable[[Sample], float]) -> list[Level]:
    """The median at the end of each rest, when all that can be given back has been."""
    found = []
    for phase, group in groupby(samples, key=lambda sample: sample.phase):
        if phase.startswith(REST):
            rest = list(group)
            end = rest[-1].at
            found.append((end, median(of(each) for each in rest if each.at > end - _AT_REST_S)))
    return found


def growth(found: Sequence[Level]) -> float:
    """By how many per cent the level rose over the last two thirds of the run; NaN of too few levels, or where one is
    nothing: a process that is gone, or that could not be looked at, has not kept its level.

    The larger of two figures. The trend: the median of the slopes between all pairs (Theil-Sen), which shows a steady
    leak and lets one odd level pass. The step: the last three levels' median against the first three's, which shows
    what began late.
    """
    kept = found[len(found) // 3 :]
    values = [value for _, value in kept]
    if len(kept) < _FEWEST_LEVELS or min(values) <= 0:
        return math.nan
    first = median(values[:3])
    slope = median((later - value) / (end - at) for (at, value), (end, later) in combinations(kept, 2))
    rise = max(slope * (kept[-1][0] - kept[0][0]), median(values[-3:]) - first)
    return 100 * rise / first


def _memory(group: str) -> Callable[[Sample], float]:
    return lambda sample: sample.own_mb.get(group, 0.0)


def _memory_in_all(sample: Sample) -> float:
    """PostgreSQL's as for as many connections as there may be: how many there are is held against their bound."""
    postgres = sample.own_mb.get("postgres", 0.0)
    return sum(sample.own_mb.values()) + postgres * (MOST_CONNECTIONS / max(1, sample.connections) - 1)


_THINGS: Mapping[str, Callable[[Sample], float]] = {
    **{f"{group}'s memory": _memory(group) for group in ("gateway", "worker", "children")},
    "memory in all": _memory_in_all,
    "open files, database apart": lambda sample: sample.files - sample.connections,
    "threads": attrgetter("threads"),
    "series of metrics": attrgetter("series"),
}
