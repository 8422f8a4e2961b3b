"""Google's error bodies to typed errors. Enum names decide and may be kept; messages may quote input and are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson

from aiworker.domain.errors import (
    KeyRejected,
    ModelNotFound,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaScope,
    RequestRejected,
)
from aiworker.llm.http import LONGEST_WAIT_S, retry_after_of

NAME = "gemini"
_ENUM = re.compile(r"[A-Z][A-Z_]{1,60}")
# "Please retry in 53.0s.", "retry in 14h28m39.9s", "retry in 200ms"
_RETRY_IN = re.compile(r"retry in ((?:[0-9]+(?:\.[0-9]+)?(?:h|ms|m|s))+)", re.I)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s)", re.I)
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The typed error of an answer that is not 200."""
    return _typed(status, _error_in(body), retry_after_of(headers))


def error_in_stream(body: bytes) -> ProviderError:
    """The typed error that came in a stream that began with 200."""
    error = _error_in(body)
    code = error.get("code")
    return _typed(code if isinstance(code, int) else 500, error, None)


def _error_in(body: bytes) -> dict[str, Any]:
    """The `error` object of a body that may be an object, a one-element list, or not JSON."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = {}
    if isinstance(value, list):
        value = value[0] if value else {}
    item = value.get("error") if isinstance(value, dict) else None
    return item if isinstance(item, dict) else {}


def enum_name(value: Any) -> str:
    """`value` where it is one of Google's enum names; anything else might be content."""
    return value if isinstance(value, str) and _ENUM.fullmatch(value) else "UNKNOWN"


def _typed(status: int, error: dict[str, Any], retry_after: float | None) -> ProviderError:
    details = _dicts(error.get("details"))
    message = str(error.get("message", ""))
    facts: dict[str, Any] = {"provider": NAME, "status": status, "google_status": enum_name(error.get("status"))}
    retry_after = _retry_delay(details, message) or retry_after
    if status == 429:
        return ProviderRateLimited("the quota is used up", retry_after=retry_after, scope=_scope(details), **facts)
    if status in (408, 504):
        return ProviderTimeout("Google's own deadline ran out", phase="total", **facts)
    if status >= 500 or status == 499:
        return ProviderUnavailable("Google failed or is overloaded", retry_after=retry_after, **facts)
    if 300 <= status < 400:
        return ProviderMisconfigured("the address redirects, which is not followed: check GEMINI_URL", **facts)
    if status == 404 and not error:
        # Google itself says in JSON what is not found.
        return ProviderMisconfigured("nothing of Gemini is there: check GEMINI_URL, which ends before /v1beta", **facts)
    if any(item.get("reason") == "API_KEY_INVALID" for item in details):
        return KeyRejected("the key is not valid: set GEMINI_API_KEY", **facts)
    if "Unable to process input image" in message:
        return ProviderRefused("Google cannot read the image", **facts)
    if facts["google_status"] == "FAILED_PRECONDITION":
        return ProviderMisconfigured("Google wants billing set up, or does not serve this country", **facts)
    kind, note = _REFUSALS.get(status, (RequestRejected, "Google refuses the request as it is"))
    return kind(note, **facts)


_REFUSALS: dict[int, tuple[Callable[..., ProviderMisconfigured], str]] = {
    401: (KeyRejected, "the key is not accepted: set GEMINI_API_KEY"),
    403: (KeyRejected, "the key may not use this model: check GEMINI_API_KEY's project"),
    404: (partial(ModelNotFound, only_model=True), "no such model: set GEMINI_MODEL"),
}


def _retry_delay(details: list[dict[str, Any]], message: str) -> float | None:
    for item in details:
        if str(item.get("@type", "")).endswith("RetryInfo") and (delay := _seconds(item.get("retryDelay"))) is not None:
            return delay
    said = _RETRY_IN.search(message)
    return _seconds(said.group(1)) if said else None


def _seconds(text: Any) -> float | None:
    """Of "53s", as protobuf writes durations, and of "14h28m39.9s", as Go does."""
    parts = _DURATION.findall(text) if isinstance(text, str) else []
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return min(sum(float(number) * _UNIT_S[unit.lower()] for number, unit in parts), LONGEST_WAIT_S)


def _scope(details: list[dict[str, Any]]) -> QuotaScope | None:
    """Of several quotas the longest decides."""
    violations = [violation for item in details for violation in _dicts(item.get("violations"))]
    quotas = [str(violation.get("quotaId", "")) for violation in violations]
    if any("PerDay" in quota for quota in quotas):
        return "day"
    return "minute" if any("PerMinute" in quota for quota in quotas) else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
