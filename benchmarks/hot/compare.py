"""Whether a function became slower, or the machine was busy. Pure.

A time is kept as a multiple of a fixed piece of work that was timed before and after it in the same run, so that a
slower or busier machine changes both. What is left of noise shows in the quartiles: times that overlap are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Verdict = Literal["same", "faster", "slower", "new"]

TOLERANCE = 0.30
"""Below this, runs of the same code differ too, even where their quartiles do not overlap."""


@dataclass(frozen=True, slots=True)
class Timing:
    """First quartile, median and third quartile, in multiples of the yardstick."""

    low: float
    median: float
    high: float


def relative(quartiles: tuple[float, float, float], yardstick_s: float) -> Timing:
    """`quartiles` in seconds."""
    return Timing(*(each / yardstick_s for each in quartiles))


def together(turns: Sequence[Timing]) -> Timing:
    """Of turns some seconds apart: what they differ by is noise, so quartiles are the furthest that any turn had."""
    return Timing(
        min(turn.low for turn in turns), median(turn.median for turn in turns), max(turn.high for turn in turns)
    )


def verdict(before: Timing | None, now: Timing) -> Verdict:
    """Slower or faster only where medians differ by more than the tolerance and the quartiles do not overlap."""
    if before is None:
        return "new"
    if now.median > before.median * (1 + TOLERANCE) and now.low > before.high:
        return "slower"
    if now.median < before.median / (1 + TOLERANCE) and now.high < before.low:
        return "faster"
    return "same"


def verdicts(
    before: Mapping[str, Timing], now: Mapping[str, Timing]
) -> list[tuple[str, Timing | None, Timing, Verdict]]:
    """(name, before, now, verdict), slower ones first."""
    order = ("slower", "faster", "new", "same")
    found = [(name, before.get(name), timing, verdict(before.get(name), timing)) for name, timing in now.items()]
    return sorted(found, key=lambda each: (order.index(each[3]), each[0]))
