"""When a provider is left alone, for how long, and how it comes back. Pure: the time comes in."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal

from aiworker.llm.evidence import Evidence, Sign
from aiworker.llm.tuning import Tuning

State = Literal["closed", "open", "half_open"]

FAILURES_BEFORE_REST = 3
# How much less of it is tried after an outage that was over at the first look.
_SHORTER = 0.8


class Breaker:
    """Closed: calls go. Open: none does until `ready_at`. Half-open: one at a time does, whose end decides.

    Rests grow for the sake of those who have another provider. Who has none may try at `last_resort_at`, or calls that
    fail by chance would keep a provider closed that answers most of the time.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._open_until = 0.0
        self._on_trial = False
        self._asked_to_rest = False
        self._probe_until = 0.0
        self._tried_at = 0.0
        self._failures_in_row = 0
        # Who has not answered yet has none.
        self._credit = 1
        self._openings = 0
        self._failing_since: float | None = None
        self._failed_at = 0.0
        # Seconds of the last ones. The middle one is usual: a single accident is no habit.
        self._outages = deque([0.0] * 3, maxlen=3)
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

    def last_resort_at(self, now: float) -> float:
        """When a call may go that has nowhere else to go. Not before a time that the server named."""
        ready_at = self.ready_at(now)
        if self._asked_to_rest or not self._on_trial:
            return ready_at
        return min(ready_at, max(now, self._tried_at + self._tuning.first_rest_s))

    def worth_waiting(self, now: float) -> bool:
        """False in a long outage, whose end nobody knows; a server that named a time is waited for."""
        since = self._failing_since
        return self.state(now) == "closed" or since is None or now - since < self._tuning.outage_s

    def begin(self, now: float, expected_s: float) -> bool:
        """A call goes out. True when it is a probe, which `end` or `release` must be told about."""
        if not self._on_trial:
            return False
        self._tried_at = now
        self._probe_until = now + expected_s
        return True

    def release(self, probe: bool) -> None:
        """A call ended without saying anything."""
        if probe:
            self._probe_until = 0.0

    def end(self, now: float, evidence: Evidence, *, probe: bool = False, took_s: float = 0.0) -> None:
        """What a call's end says that was with the provider for `took_s`. Raises nothing."""
        self.release(probe)
        match evidence.sign:
            case Sign.WELL:
                self._succeeded(now, probe)
            case Sign.FAILING:
                self._failures_in_row += 1
                failed_probe = self._on_trial and now >= self._open_until
                if evidence.rest_s or failed_probe or self._failures_in_row >= self._credit:
                    self._open(now, evidence, self._next_rest(took_s))
            case Sign.DOWN:
                self._open(now, evidence, self._next_rest(took_s))
            case Sign.LIMITED:
                self._failing_since = None
                self._open(now, evidence, self._tuning.limited_rest_s)
            case Sign.BROKEN:
                self._open(now, evidence, self._tuning.broken_rest_s)
            case Sign.NOTHING:
                pass

    def _succeeded(self, now: float, probe: bool) -> None:
        self._failures_in_row = 0
        self._credit = FAILURES_BEFORE_REST
        # An answer to a call from before the rest does not end it, nor does any end one that the server asked for.
        if now >= self._open_until or (probe and not self._asked_to_rest):
            self._learn_outage(now)
            self._on_trial = False
            self._open_until = 0.0
            self._openings = 0
            self._failing_since = None

    def _learn_outage(self, now: float) -> None:
        # A time that the server named, or that an operator took, says nothing about the next outage.
        if self._failing_since is None or self._asked_to_rest:
            return
        if self._failed_at > self._failing_since:
            # It came back at some moment between the last failure and now.
            self._outages.append((self._failed_at + now) / 2 - self._failing_since)
        else:
            self._outages.append(_SHORTER * statistics.median(self._outages))

    def _next_rest(self, took_s: float) -> float:
        """As long as outages usually are, then doubling; not shorter than what it takes to see a failure."""
        rest_s = max(self._tuning.first_rest_s, took_s) * 2.0**self._openings
        if not self._openings:
            rest_s = max(rest_s, statistics.median(self._outages))
        return min(rest_s, self._tuning.longest_rest_s)

    def _open(self, now: float, evidence: Evidence, rest_s: float) -> None:
        already = now < self._open_until
        self._tried_at = now
        self._failed_at = now
        if already and evidence.rest_s is None:
            # Calls that were out together fail together: that is one outage, not many.
            return
        asked_s = rest_s if evidence.rest_s is None else max(evidence.rest_s, self._tuning.backoff_s)
        self._open_until = max(self._open_until, now + asked_s)
        self._asked_to_rest = evidence.rest_s is not None or evidence.sign in (Sign.LIMITED, Sign.BROKEN)
        self.code = evidence.code
        self._on_trial = True
        self._failures_in_row = 0
        if not already:
            self._openings += 1
        if evidence.sign is not Sign.LIMITED and self._failing_since is None:
            self._failing_since = now
