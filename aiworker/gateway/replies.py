"""Turns errors into `{error, code, details}` and keeps every reply in one shape."""

from __future__ import annotations

import time
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from aiworker.domain.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InputRejected,
    InputTooLarge,
    JobAlreadyFinished,
    JobNotFound,
    NotAllowed,
    NotAuthenticated,
    TooManyActiveJobs,
    WorkerError,
)
from aiworker.domain.messages import Language, sentence
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.gateway")

_STATUS: tuple[tuple[type[WorkerError], int], ...] = (
    (InputTooLarge, 413),
    (InputRejected, 400),
    (NotAuthenticated, 401),
    (NotAllowed, 403),
    (JobNotFound, 404),
    (JobAlreadyFinished, 409),
    (IdempotencyConflict, 409),
    (TooManyActiveJobs, 429),
    (DatabaseUnavailable, 503),
)
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_RETRY_AFTER_S = {429: 5, 503: 5}

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "authorization, apikey, content-type, idempotency-key, x-client-info",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Max-Age": "86400",
}


def json_reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """`body` as JSON."""
    return web.Response(
        body=orjson.dumps(body), status=status, content_type="application/json", charset="utf-8", headers=headers
    )


def language_of(request: web.Request) -> Language:
    """English where the browser prefers it, else Portuguese."""
    first = request.headers.get(hdrs.ACCEPT_LANGUAGE, "").split(",")[0].strip().lower()
    return "en" if first.startswith("en") else "pt"


def error_reply(request: web.Request, status: int, code: str, details: dict[str, Any] | None = None) -> web.Response:
    """`{error, code, details}` in the caller's language; a 503 tells the client to take its synchronous way."""
    body: dict[str, Any] = {"error": sentence(code, language_of(request)), "code": code, "details": details or {}}
    if status == 503:
        body["fallback"] = True
    headers = {"Retry-After": str(_RETRY_AFTER_S[status])} if status in _RETRY_AFTER_S else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_reply(body, status, headers)


def replies(metrics: Metrics) -> Middleware:
    """One middleware for what every request needs: CORS, errors in one shape, a time per route."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        response = web.Response(status=204) if request.method == hdrs.METH_OPTIONS else await _answer(request, handler)
        response.headers.extend(_CORS)
        resource = request.match_info.route.resource
        route = resource.canonical.removeprefix("/functions/v1") if resource else "unknown"
        metrics.http_seconds.labels(route, str(response.status)).observe(time.perf_counter() - started)
        return response

    return middleware


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except WorkerError as error:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        if status >= 500:
            _log.warning("request failed", path=request.path, status=status, exc_info=error)
        return error_reply(request, status, error.code, dict(error.details))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        reply = error_reply(request, error.status, _HTTP_CODES.get(error.status, "invalid_input"))
        if isinstance(error, web.HTTPMethodNotAllowed):
            reply.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return reply
    except Exception as error:  # noqa: BLE001 - the boundary: a bug must not show its text to a client
        _log.error("request failed by a bug", path=request.path, exc_info=error)
        return error_reply(request, 500, "internal_error")
