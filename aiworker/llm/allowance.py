"""What may still be asked of a provider: requests and tokens a minute, dollars a day. Pure: the time comes in."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

# Google's quotas per day come back at midnight there.
_QUOTA_DAY = ZoneInfo("America/Los_Angeles")


class TokenBucket:
    """At most `per_minute` in any minute: a tenth of it may come at once, the rest evenly."""

    def __init__(self, per_minute: float) -> None:
        self.capacity = max(1.0, per_minute / 10)
        self.per_s = max(per_minute - self.capacity, per_minute / 2) / 60
        self._level = self.capacity
        self._at = -math.inf

    def ready_at(self, now: float, amount: float = 1.0) -> float:
        """When `amount` may be taken; more than fits counts as a full bucket, or it would never be."""
        missing = min(amount, self.capacity) - self._level_at(now)
        return now if missing <= 0 else now + missing / self.per_s

    def take(self, now: float, amount: float = 1.0) -> None:
        """May leave a debt, which later calls wait for. A negative amount gives back what was not used."""
        self._level = min(self.capacity, self._level_at(now) - amount)
        self._at = max(self._at, now)

    def _level_at(self, now: float) -> float:
        passed = max(0.0, now - self._at)
        return self.capacity if math.isinf(passed) else min(self.capacity, self._level + passed * self.per_s)


class Spend(NamedTuple):
    """Dollars that `provider` cost on one of its days."""

    provider: str
    day: date
    usd: float


class DayBudget:
    """Dollars of one quota day. `limit_usd` None is no limit.

    What this process spends is `unsaved` until `saved` says what that day has cost in all, others' spend and that of
    before a restart included.
    """

    def __init__(self, limit_usd: float | None) -> None:
        self.limit_usd = limit_usd
        self._day = date.min
        self._saved_usd = 0.0
        self._unsaved_usd = 0.0

    def spent_usd(self, wall_s: float) -> float:
        return self._saved_usd + self._unsaved_usd if quota_day(wall_s) == self._day else 0.0

    def spend(self, wall_s: float, usd: float) -> None:
        self._turn_page(wall_s)
        self._unsaved_usd += usd

    def unsaved(self, wall_s: float) -> tuple[date, float]:
        """The day, and dollars that only this process knows of."""
        self._turn_page(wall_s)
        return self._day, self._unsaved_usd

    def saved(self, day: date, usd: float, total_usd: float) -> None:
        """`usd` of what was unsaved is part of `total_usd` now, the day's sum."""
        if day == self._day:
            self._unsaved_usd = max(0.0, self._unsaved_usd - usd)
            self._saved_usd = total_usd

    def _turn_page(self, wall_s: float) -> None:
        today = quota_day(wall_s)
        if today != self._day:
            self._day, self._saved_usd, self._unsaved_usd = today, 0.0, 0.0

    def closed_for_s(self, wall_s: float) -> float:
        """0 while there is money; else the seconds until the next day."""
        if self.limit_usd is None or self.spent_usd(wall_s) < self.limit_usd:
            return 0.0
        return seconds_to_reset(wall_s)


def seconds_to_reset(wall_s: float) -> float:
    """From `wall_s` (seconds since 1970) to the next midnight in California."""
    now = datetime.fromtimestamp(wall_s, _QUOTA_DAY)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight.timestamp() - wall_s


def quota_day(wall_s: float) -> date:
    """The date in California, which is the day that quotas and budgets are counted by."""
    return datetime.fromtimestamp(wall_s, _QUOTA_DAY).date()
