"""How the two processes are: what `/health` checks, `/health/detailed` shows and `/metrics` refreshes."""

from __future__ import annotations

import asyncio
import math
import platform
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar

import psutil

from aiworker.cli.parts import WorkerParts
from aiworker.domain.errors import WorkerError
from aiworker.domain.job import QueueDepth
from aiworker.gateway.ops import Checks, Ops
from aiworker.inference.devices import memory_limit_mb
from aiworker.inference.policy.supervision import LaneState
from aiworker.queue.postgres import PostgresQueue
from aiworker.settings import Settings
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

# Uptime checks give up after a few seconds; a database that takes longer is not one to work with.
_DATABASE_PATIENCE_S = 2.0
_REMEMBERED_S = 1.0
_NOT_CONFIGURED = "not configured"

_log = get_logger("aiworker.health")

T = TypeVar("T")


class Remembered(Generic[T]):
    """One call for everybody who asks within `seconds`, also for those who ask while it is under way."""

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float = _REMEMBERED_S) -> None:
        self._ask = ask
        self._seconds = seconds
        self._asked_at = float("-inf")
        self._answer: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        now = time.monotonic()
        if self._answer is None or (self._answer.done() and now - self._asked_at >= self._seconds):
            self._asked_at = now
            self._answer = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._answer)


def gateway_ops(settings: Settings, queue: PostgresQueue, metrics: Metrics) -> Ops:
    """The gateway works when its database answers."""
    reachable, depth = _reachable(queue), _depth(queue)

    async def checks() -> Checks:
        return _noted(metrics, {"database": await reachable()})

    async def details() -> Mapping[str, Any]:
        return _common(time.monotonic() - started) | {"queue": described(await depth()), "memory": _memory(())}

    async def refresh() -> None:
        await checks()
        _refresh_queue(metrics, await depth())
        _refresh_process(metrics)

    started = time.monotonic()
    return Ops(checks, details, refresh, _token(settings))


def starting_ops(settings: Settings, metrics: Metrics) -> Ops:
    """A worker that opens its parts, or measures its engines, has no model loaded yet; that is all that it knows."""

    async def checks() -> Checks:
        return {"inference": False}

    async def details() -> Mapping[str, Any]:
        return _common(time.monotonic() - started) | {"services": {"yolo": "starting"}, "memory": _memory(())}

    async def refresh() -> None:
        _refresh_process(metrics)

    started = time.monotonic()
    metrics.checks.labels("inference").set(False)
    # Neither up nor down: nobody has asked it yet.
    metrics.database_up.set(math.nan)
    return Ops(checks, details, refresh, _token(settings))


def worker_ops(settings: Settings, parts: WorkerParts) -> Ops:
    """The worker works when its database answers, its leases are renewed, and a child has the model loaded."""
    reachable, depth = _reachable(parts.queue), _depth(parts.queue)
    metrics, vision, router = parts.metrics, parts.vision, parts.router
    pool = vision.main
    metrics.slots.set(settings.worker_concurrency)

    async def checks() -> Checks:
        found = {"database": await reachable(), "leases": parts.worker.leases.alive, "inference": pool.ready}
        return _noted(metrics, found)

    async def details() -> Mapping[str, Any]:
        waiting = await depth()
        children, providers = vision.snapshot(), router.snapshot()
        return _common(time.monotonic() - started) | {
            "worker": {
                "id": settings.worker_id,
                "concurrency": settings.worker_concurrency,
                "activeJobs": len(parts.worker.running),
                "queueSize": waiting.pending if waiting else None,
            },
            "services": {
                "yolo": pool.state,
                **{name: providers.get(name, {}).get("state", _NOT_CONFIGURED) for name in ("ollama", "gemini")},
            },
            "queue": described(waiting),
            "inference": {
                "waiting": vision.waiting,
                "admitting": pool.admitting,
                "children": children,
                "furtherModels": vision.models(),
            },
            "providers": providers,
            "memory": _memory(children),
        }

    async def refresh() -> None:
        await checks()
        _refresh_queue(metrics, await depth())
        _refresh_children(metrics, vision.snapshot())
        for name, provider in router.snapshot().items():
            metrics.provider_up.labels(name).set(provider["state"] == "up")
        router.refresh_gauges()
        _refresh_process(metrics)

    started = time.monotonic()
    return Ops(checks, details, refresh, _token(settings))


def described(depth: QueueDepth | None) -> dict[str, Any] | None:
    """For a person who looks."""
    if depth is None:
        return None
    return {
        "pending": depth.pending,
        "processing": depth.processing,
        "delayed": depth.delayed,
        "following": depth.following,
        "oldestPendingSeconds": round(depth.oldest_pending_s, 3),
        "paused": list(depth.paused),
    }


def _reachable(queue: PostgresQueue) -> Remembered[bool]:
    async def ask() -> bool:
        try:
            async with asyncio.timeout(_DATABASE_PATIENCE_S):
                await queue.ping()
        except WorkerError as error:
            _log.warning("database check failed", note=error.note)
            return False
        except TimeoutError:
            return False
        return True

    return Remembered(ask)


def _depth(queue: PostgresQueue) -> Remembered[QueueDepth | None]:
    async def ask() -> QueueDepth | None:
        try:
            # Prometheus gives up after 10 s, and would take a slow database for a worker that is gone.
            async with asyncio.timeout(_DATABASE_PATIENCE_S):
                return await queue.depth()
        except (WorkerError, TimeoutError):
            return None

    return Remembered(ask)


def _noted(metrics: Metrics, checks: Checks) -> Checks:
    for name, holds in checks.items():
        metrics.checks.labels(name).set(holds)
    metrics.database_up.set(checks["database"])
    return checks


def _common(uptime_s: float) -> dict[str, Any]:
    return {
        "uptime": round(uptime_s, 1),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "version": version("aiworker"),
        "versions": {"python": platform.python_version()} | {name: _installed(name) for name in _SHOWN},
    }


_SHOWN = ("aiohttp", "asyncpg", "torch", "ultralytics", "openvino", "onnxruntime")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory(children: list[dict[str, Any]] | tuple[()]) -> dict[str, float]:
    return {
        "rssMb": round(psutil.Process().memory_info().rss / 1e6, 1),
        "childrenRssMb": round(_children_rss(children) / 1e6, 1),
        "limitMb": round(memory_limit_mb() * 2**20 / 1e6, 1),
    }


def _children_rss(children: list[dict[str, Any]] | tuple[()]) -> float:
    return sum(float(child["rss_mb"] or 0) for child in children) * 2**20


def _refresh_queue(metrics: Metrics, depth: QueueDepth | None) -> None:
    if depth is not None:
        for status in ("pending", "processing", "delayed", "following"):
            metrics.queue_jobs.labels(status).set(getattr(depth, status))
        metrics.queue_oldest.set(depth.oldest_pending_s)


def _refresh_children(metrics: Metrics, children: list[dict[str, Any]]) -> None:
    states = Counter(str(child["state"]) for child in children)
    for state in LaneState:
        metrics.children.labels(state.value).set(states[state.value])
    metrics.child_restarts.set(sum(int(child["restarts"] or 0) for child in children))
    metrics.child_rss.set(_children_rss(children))


def _refresh_process(metrics: Metrics) -> None:
    metrics.rss.set(psutil.Process().memory_info().rss)
    metrics.memory_limit.set(memory_limit_mb() * 2**20)


def _token(settings: Settings) -> str | None:
    return settings.health_token.get_secret_value() if settings.health_token else None
