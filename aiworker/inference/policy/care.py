"""What children need beside work: memory within its budget, a fresh process now and then, an eye test. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_WORTH_MB = 32.0
"""A child that grew by less gives nothing back."""


@dataclass(frozen=True, slots=True)
class CareRules:
    """Memory in MiB, times in seconds.

    Admission pauses when parent and children use more than `high` of the budget, and resumes below `low` of it. A child
    is due for a fresh one when it uses `child_mb` (0: half as much again, and `slack_mb`, as when it was ready).
    """

    budget_mb: float = math.inf
    high: float = 0.95
    low: float = 0.85
    child_mb: float = 0.0
    slack_mb: float = 256.0
    canary_s: float = 60.0
    busy_factor: float = 1.25

    def child_limit(self, fresh_mb: float) -> float:
        return self.child_mb or 1.5 * fresh_mb + self.slack_mb


@dataclass(frozen=True, slots=True)
class Condition:
    """A child that serves. `fresh_mb` is what it used when it was ready, `seen_s` how long ago it passed the canary."""

    lane: int
    rss_mb: float
    fresh_mb: float
    busy: bool = False
    seen_s: float = 0.0


class Need(StrEnum):
    RECYCLE = "recycle"
    RESTART = "restart"
    CANARY = "canary"


class Care:
    """`paused` says whether new requests must wait outside."""

    def __init__(self, rules: CareRules) -> None:
        self._rules = rules
        self.paused = False

    def admit(self, used_mb: float) -> bool:
        """Takes note of the memory used by all; true when `paused` changed."""
        limit = self._rules.low if self.paused else self._rules.high
        over = used_mb > limit * self._rules.budget_mb
        changed, self.paused = over != self.paused, over
        return changed

    def needs(self, children: Sequence[Condition], *, quiet: bool, replacing: bool) -> list[tuple[int, Need]]:
        """What to do for which lane. `quiet` says that nothing waits and no child is on its way, `replacing` that a
        spare is being warmed already.

        The child that grew most is recycled first, one at a time, when it is idle and nothing waits, or in any case
        when it is far over its limit. While admission pauses there is no memory for a spare, and nothing else would
        give any back: an idle child that grew ends first and starts again then.
        """
        needs = [(child.lane, Need.CANARY) for child in children if child.seen_s >= self._rules.canary_s]
        if replacing:
            return needs
        return needs + (self._to_restart(children, quiet) if self.paused else self._to_recycle(children, quiet))

    def _to_recycle(self, children: Sequence[Condition], quiet: bool) -> list[tuple[int, Need]]:
        over = [(child.rss_mb / self._rules.child_limit(child.fresh_mb), child) for child in children]
        due = [
            (excess, child.lane)
            for excess, child in over
            if excess > (1.0 if quiet and not child.busy else self._rules.busy_factor)
        ]
        return [(max(due)[1], Need.RECYCLE)] if due else []

    def _to_restart(self, children: Sequence[Condition], quiet: bool) -> list[tuple[int, Need]]:
        if not quiet or any(child.busy for child in children):
            return []
        grown_mb, lane = max(((child.rss_mb - child.fresh_mb, child.lane) for child in children), default=(0.0, 0))
        return [(lane, Need.RESTART)] if grown_mb >= _WORTH_MB else []
