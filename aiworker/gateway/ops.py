"""`/health`, `/live`, `/ready`, `/health/detailed` and `/metrics`, for any process that can say how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from aiworker.domain.errors import NotAuthenticated
from aiworker.gateway.auth import same_secret
from aiworker.gateway.replies import json_reply, replies
from aiworker.telemetry.metrics import CONTENT_TYPE, Metrics

Checks = Mapping[str, bool]


async def _nothing_more() -> Mapping[str, Any]:
    return {}


async def _nothing_to_refresh() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Ops:
    """What a process can say of itself.

    Args:
        checks: maps each thing that the process needs to whether it has it; cheap, for it is asked all the time.
        details: what a person who looks may want to see besides.
        refresh: brings gauges up to date before they are read.
        token: bearer token that `/health/detailed` and `/metrics` ask for; None leaves them open.
    """

    checks: Callable[[], Awaitable[Checks]]
    details: Callable[[], Awaitable[Mapping[str, Any]]] = _nothing_more
    refresh: Callable[[], Awaitable[None]] = _nothing_to_refresh
    token: str | None = None


def add_ops(app: web.Application, ops: Ops, metrics: Metrics) -> None:
    """Adds the five routes. `/health` and `/ready` answer 200 when every check holds, else 503."""

    async def health(_request: web.Request) -> web.Response:
        return _reply(await ops.checks(), {})

    async def detailed(request: web.Request) -> web.Response:
        _admit(request, ops.token)
        return _reply(await ops.checks(), await ops.details())

    async def live(_request: web.Request) -> web.Response:
        return json_reply({"status": "alive"})

    async def exposition(request: web.Request) -> web.Response:
        _admit(request, ops.token)
        await ops.refresh()
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/health", health)
    app.router.add_get("/ready", health)
    app.router.add_get("/health/detailed", detailed)
    app.router.add_get("/live", live)
    app.router.add_get("/metrics", exposition)


def build_ops_app(ops: Ops, metrics: Metrics) -> web.Application:
    """An application with nothing but the five routes: the worker's."""
    app = web.Application(middlewares=[replies(metrics)])
    add_ops(app, ops, metrics)
    return app


def _reply(checks: Checks, details: Mapping[str, Any]) -> web.Response:
    healthy = all(checks.values())
    body = {"status": "healthy" if healthy else "unhealthy", "checks": dict(checks), **details}
    return json_reply(body, 200 if healthy else 503)


def _admit(request: web.Request, token: str | None) -> None:
    """Raises NotAuthenticated."""
    if token is None:
        return
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not same_secret(given.strip(), token):
        raise NotAuthenticated("no or another HEALTH_TOKEN")
