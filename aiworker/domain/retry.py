"""When to try again. Pure: the random number comes in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter above half: delay in [d/2, d], d = base * factor**(attempt-1), capped.

    Nobody waits longer than `patience_s` for a provider: a quota that comes back at midnight is an answer, too.
    """

    base_s: float = 1.0
    factor: float = 2.0
    cap_s: float = 60.0
    patience_s: float = 600.0

    def delay(self, attempt: int, random: float, retry_after: float | None = None) -> float:
        """Seconds to wait after `attempt` (from 1) failed. `random` is in [0, 1).

        A provider's `retry_after` is a floor, never a ceiling: coming back earlier is a wasted call.
        """
        exponent = min(attempt - 1, 64)
        full = min(self.cap_s, self.base_s * self.factor**exponent)
        jittered = full / 2 + random * full / 2
        return max(jittered, retry_after or 0.0)

    def worth_waiting(self, retry_after: float | None) -> bool:
        """Whether somebody is still there when the provider may be asked again."""
        return retry_after is None or retry_after <= self.patience_s
