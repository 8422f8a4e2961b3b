"""`/health`, `/live`, `/ready`, `/health/detailed` and `/metrics`, for any process that can say how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aiworker.gateway.replies import json_reply, replies
from aiworker.telemetry.metrics import CONTENT_TYPE, Metrics


@dataclass(frozen=True, slots=True)
class Health:
    """`checks` maps each thing that the process needs to whether it has it; `details` is for a person who looks."""

    checks: Mapping[str, bool]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(self.checks.values())


HealthProbe = Callable[[], Awaitable[Health]]
Refresh = Callable[[], Awaitable[None]]


async def _nothing() -> None:
    return None


def add_ops(app: web.Application, probe: HealthProbe, metrics: Metrics, refresh: Refresh = _nothing) -> None:
    """Adds the five routes. `refresh` brings gauges up to date before they are read."""

    async def health(_request: web.Request) -> web.Response:
        state = await probe()
        body = {"status": "healthy" if state.ok else "unhealthy", "checks": dict(state.checks)}
        return json_reply(body, 200 if state.ok else 503)

    async def detailed(_request: web.Request) -> web.Response:
        state = await probe()
        body = {"status": "healthy" if state.ok else "unhealthy", "checks": dict(state.checks), **state.details}
        return json_reply(body, 200 if state.ok else 503)

    async def live(_request: web.Request) -> web.Response:
        return json_reply({"status": "alive"})

    async def exposition(_request: web.Request) -> web.Response:
        await refresh()
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/health", health)
    app.router.add_get("/ready", health)
    app.router.add_get("/health/detailed", detailed)
    app.router.add_get("/live", live)
    app.router.add_get("/metrics", exposition)


def build_ops_app(probe: HealthProbe, metrics: Metrics, refresh: Refresh = _nothing) -> web.Application:
    """An application with nothing but the five routes: the worker's."""
    app = web.Application(middlewares=[replies(metrics)])
    add_ops(app, probe, metrics, refresh)
    return app
