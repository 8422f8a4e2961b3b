"""Which provider is asked next, for how long, and how long one that failed is left alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiworker.domain.errors import ProviderError, ProviderRateLimited, ProviderTimeout, ProviderUnavailable

NOT_CONFIGURED = "not_configured"
NO_VISION = "no_vision"
TOO_LATE = "deadline_exceeded"

LEAST_S = 0.5
FIRST_SHARE = 0.6
REST_S = 5.0
REST_PER_DAY_S = 3600.0
OUTAGES_BEFORE_REST = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one provider now. `resting_s` is how long it is left alone, because of `rest_code`."""

    sees_images: bool
    resting_s: float = 0.0
    rest_code: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """`name` is None when nobody is left. `skipped` maps those passed over to why; `back_in_s` is the shortest rest."""

    name: str | None
    budget_s: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    back_in_s: float | None = None


def choose(
    order: Sequence[str],
    standings: Mapping[str, Standing],
    *,
    failed: Mapping[str, str],
    needs_images: bool,
    remaining_s: float,
) -> Choice:
    """The next of `order` that can answer. All but the last one get `FIRST_SHARE` of the time, so that one that hangs
    leaves the next one its chance."""
    skipped: dict[str, str] = {}
    able: list[str] = []
    rests: list[float] = []
    for name in dict.fromkeys(order):
        if name in failed:
            continue
        standing = standings.get(name)
        reason = _why_not(standing, needs_images, remaining_s)
        if reason is None:
            able.append(name)
            continue
        skipped[name] = reason
        if standing and reason == standing.rest_code:
            rests.append(standing.resting_s)
    if not able:
        return Choice(None, skipped=skipped, back_in_s=min(rests, default=None))
    followed = len(able) > 1 and remaining_s * (1 - FIRST_SHARE) >= LEAST_S
    return Choice(able[0], remaining_s * FIRST_SHARE if followed else remaining_s, skipped)


def _why_not(standing: Standing | None, needs_images: bool, remaining_s: float) -> str | None:
    if standing is None:
        return NOT_CONFIGURED
    if needs_images and not standing.sees_images:
        return NO_VISION
    if standing.resting_s > 0:
        return standing.rest_code
    return TOO_LATE if remaining_s < LEAST_S else None


def outages_after(error: ProviderError, outages_in_row: int) -> int:
    """The count after `error`. Waiting for our own slot says nothing of the provider, and a bad answer is no outage."""
    if error.details.get("phase") == "slot":
        return outages_in_row
    return outages_in_row + 1 if isinstance(error, ProviderUnavailable | ProviderTimeout) else 0


def rest_after(error: ProviderError, outages_in_row: int) -> float:
    """Seconds for which a provider that failed so is left alone; 0 for a fault of the one request.

    A server that does not even take the connection rests at once; one that fails now and then, after a few in a row.
    """
    if isinstance(error, ProviderRateLimited):
        return max(error.retry_after or REST_S, REST_PER_DAY_S if error.per_day else 0.0)
    phase = error.details.get("phase")
    if phase == "slot" or not isinstance(error, ProviderUnavailable | ProviderTimeout):
        return 0.0
    dead = phase == "connect" or outages_in_row >= OUTAGES_BEFORE_REST
    return max(error.retry_after or 0.0, REST_S if dead else 0.0)
