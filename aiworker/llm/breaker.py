"""When a provider is left alone, for how long, and how it comes back. Pure: the time comes in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal
from zoneinfo import ZoneInfo

from aiworker.domain.errors import (
    LocalOnly,
    ModelCannotSee,
    ModelNotFound,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ProviderUnreachable,
    RequestRejected,
)
from aiworker.llm.tuning import Tuning

State = Literal["closed", "open", "half_open"]

FAILURES_BEFORE_REST = 3
# Google's quotas per day come back at midnight there.
_QUOTA_DAY = ZoneInfo("America/Los_Angeles")


class Sign(Enum):
    """What one ended call says about its provider."""

    NOTHING = "nothing"
    WELL = "well"
    FAILING = "failing"
    DOWN = "down"
    LIMITED = "limited"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Evidence:
    """`rest_s` is what the provider itself asked for, where it did."""

    sign: Sign
    code: str = ""
    rest_s: float | None = None


def evidence_of(error: ProviderError, wall_s: float) -> Evidence:
    """What `error` says about its provider; `wall_s` is the time of day in seconds since 1970.

    A refused prompt, a bad answer or a rejected request came from a server that works.
    """
    if isinstance(error, ProviderRateLimited):
        rest_s = error.retry_after
        if error.per_day:
            rest_s = max(rest_s or 0.0, seconds_to_reset(wall_s))
        return Evidence(Sign.LIMITED, error.code, rest_s)
    if isinstance(error, ProviderUnavailable | ProviderTimeout):
        # 503 is what an overloaded server says of itself, not of the one request.
        details = error.details
        down = (
            isinstance(error, ProviderUnreachable) or details.get("phase") == "connect" or details.get("status") == 503
        )
        return Evidence(Sign.DOWN if down else Sign.FAILING, error.code, error.retry_after)
    if isinstance(error, LocalOnly):
        return Evidence(Sign.NOTHING)
    # One model may be missing while the other one works.
    of_this_request = isinstance(error, RequestRejected | ModelNotFound | ModelCannotSee)
    broken = isinstance(error, ProviderMisconfigured) and not of_this_request
    return Evidence(Sign.BROKEN if broken else Sign.WELL, error.code)


def seconds_to_reset(wall_s: float) -> float:
    """From `wall_s` (seconds since 1970) to the next midnight in California."""
    now = datetime.fromtimestamp(wall_s, _QUOTA_DAY)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight.timestamp() - wall_s


def quota_day(wall_s: float) -> str:
    """The date in California, which is the day that quotas and budgets are counted by."""
    return datetime.fromtimestamp(wall_s, _QUOTA_DAY).date().isoformat()


class Breaker:
    """Closed: calls go. Open: none does until `ready_at`. Half-open: one at a time does, whose end decides."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._open_until = 0.0
        self._on_trial = False
        self._probe_until = 0.0
        self._failures_in_row = 0
        self._openings = 0
        self._failing_since: float | None = None
        self.code = ""

    def state(self, now: float) -> State:
        if now < self._open_until:
            return "open"
        return "half_open" if self._on_trial else "closed"

    def ready_at(self, now: float) -> float:
        """When a call may go; while a probe is out, when it is late, which is when another one may follow it."""
        if now < self._open_until:
            return self._open_until
        return max(now, self._probe_until) if self._on_trial else now

    def worth_waiting(self, now: float) -> bool:
        """False in a long outage, whose end nobody knows; a server that named a time is waited for."""
        since = self._failing_since
        return self.state(now) == "closed" or since is None or now - since < self._tuning.outage_s

    def begin(self, now: float, expected_s: float) -> bool:
        """A call goes out. True when it is the probe, which `end` or `release` must be told about."""
        if not self._on_trial or now < self._probe_until:
            return False
        self._probe_until = now + expected_s
        return True

    def release(self, probe: bool) -> None:
        """A call ended without saying anything."""
        if probe:
            self._probe_until = 0.0

    def end(self, now: float, evidence: Evidence, *, probe: bool = False) -> None:
        """What a call's end says. Raises nothing."""
        self.release(probe)
        match evidence.sign:
            case Sign.WELL:
                self._succeeded(now)
            case Sign.FAILING:
                self._failures_in_row += 1
                failed_probe = self._on_trial and now >= self._open_until
                if evidence.rest_s or failed_probe or self._failures_in_row >= FAILURES_BEFORE_REST:
                    self._open(now, evidence, self._next_rest())
            case Sign.DOWN:
                self._open(now, evidence, self._next_rest())
            case Sign.LIMITED:
                self._failing_since = None
                self._open(now, evidence, self._tuning.limited_rest_s)
            case Sign.BROKEN:
                self._open(now, evidence, self._tuning.broken_rest_s)
            case Sign.NOTHING:
                pass

    def _succeeded(self, now: float) -> None:
        self._failures_in_row = 0
        # An answer to an older call does not undo what a server asked for since.
        if now >= self._open_until:
            self._on_trial = False
            self._openings = 0
            self._failing_since = None

    def _next_rest(self) -> float:
        return min(self._tuning.first_rest_s * 2.0**self._openings, self._tuning.longest_rest_s)

    def _open(self, now: float, evidence: Evidence, rest_s: float) -> None:
        already = now < self._open_until
        if already and evidence.rest_s is None:
            # Calls that were out together fail together: that is one outage, not many.
            return
        self._open_until = max(self._open_until, now + (rest_s if evidence.rest_s is None else evidence.rest_s))
        self.code = evidence.code
        self._on_trial = True
        self._failures_in_row = 0
        if not already:
            self._openings += 1
        if evidence.sign is not Sign.LIMITED and self._failing_since is None:
            self._failing_since = now
