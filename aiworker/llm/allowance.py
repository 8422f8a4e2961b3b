"""What may still be asked of a provider: requests and tokens a minute, dollars a day. Pure: the time comes in."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
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


class DayBudget:
    """Dollars of one quota day. `limit_usd` None is no limit. Counted by this process since it started."""

    def __init__(self, limit_usd: float | None) -> None:
        self.limit_usd = limit_usd
        self._day = ""
        self._spent_usd = 0.0

    def spent_usd(self, wall_s: float) -> float:
        return self._spent_usd if quota_day(wall_s) == self._day else 0.0

    def spend(self, wall_s: float, usd: float) -> None:
        self._spent_usd = self.spent_usd(wall_s) + usd
        self._day = quota_day(wall_s)

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


def quota_day(wall_s: float) -> str:
    """The date in California, which is the day that quotas and budgets are counted by."""
    return datetime.fromtimestamp(wall_s, _QUOTA_DAY).date().isoformat()
