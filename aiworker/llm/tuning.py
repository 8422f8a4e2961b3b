"""The router's own times, in one place, so that tests and benchmarks can run the same decisions on a faster clock."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Tuning:
    """All in seconds.

    first_rest_s: how long a provider that fails is left alone; doubles up to longest_rest_s while its probes fail.
    broken_rest_s: the same where only an operator can mend it (bad key, model not pulled).
    limited_rest_s: the same for a 429 that names no delay.
    backoff_s: before the same provider is asked again for one request; doubles.
    reserve_s: kept before the deadline for a caller that can answer by rule.
    least_s: less than this is never worth a call of which nothing is known.
    outage_s: nobody waits for a provider that has been failing for so long.
    memory_s: how long a measured answer says something about the next one.
    """

    first_rest_s: float = 1.0
    longest_rest_s: float = 30.0
    broken_rest_s: float = 60.0
    limited_rest_s: float = 5.0
    backoff_s: float = 0.25
    reserve_s: float = 0.3
    least_s: float = 0.25
    outage_s: float = 30.0
    memory_s: float = 60.0

    def scaled(self, factor: float) -> Tuning:
        """Every time multiplied by `factor`."""
        return replace(self, **{item.name: getattr(self, item.name) * factor for item in fields(self)})
