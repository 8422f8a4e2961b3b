"""What the end of one call says about its provider. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
from aiworker.llm.allowance import seconds_to_reset


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
    # Of two models one may be missing while the other one works.
    one_of_two = isinstance(error, ModelNotFound) and not error.details.get("only_model")
    of_this_request = one_of_two or isinstance(error, RequestRejected | ModelCannotSee)
    broken = isinstance(error, ProviderMisconfigured) and not of_this_request
    return Evidence(Sign.BROKEN if broken else Sign.WELL, error.code)
