"""The two processes, from settings and a listening socket to their end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from importlib.metadata import version

import psutil

from aiworker.cli.keys import Keys
from aiworker.cli.serve import address_of, serving, stop_on_signals
from aiworker.cli.wiring import WorkerParts, depth_or_none, described, gateway_app, worker_parts
from aiworker.gateway.ops import Health, HealthProbe, Refresh, build_ops_app
from aiworker.inference.supervision import LaneState
from aiworker.settings import Settings
from aiworker.telemetry.logs import configure_logging, get_logger

_log = get_logger("aiworker.process")


async def run_gateway(settings: Settings, keys: Keys, listener: socket.socket) -> None:
    """Serves the API until SIGTERM."""
    configure_logging(settings.log_level, "gateway")
    stop = stop_on_signals()
    async with gateway_app(settings, keys) as app, serving(app, listener):
        _log.info("gateway listens", url=address_of(listener))
        await stop.wait()
    _log.info("gateway stopped")


async def run_worker(settings: Settings, listener: socket.socket) -> None:
    """Runs jobs until SIGTERM, then drains. Raises InferenceUnavailable when no child can be started."""
    configure_logging(settings.log_level, "worker")
    stop = stop_on_signals()
    async with worker_parts(settings) as parts:
        app = build_ops_app(_probe(settings, parts), parts.metrics, _refresh(parts))
        async with serving(app, listener):
            _log.info("worker health listens", url=address_of(listener), worker_id=settings.worker_id)
            # Chat and text need no model of ours, so the worker starts at once; images wait for a child.
            children = asyncio.create_task(parts.pool.wait_ready())
            children.add_done_callback(lambda task: stop.set() if not task.cancelled() and task.exception() else None)
            await parts.worker.run(stop)
            if children.done():
                children.result()
            children.cancel()
    _log.info("worker stopped")


def _probe(settings: Settings, parts: WorkerParts) -> HealthProbe:
    started = time.monotonic()

    async def probe() -> Health:
        depth = await depth_or_none(parts.queue)
        checks = {
            "database": depth is not None,
            "leases": parts.worker.leases.alive,
            "inference": parts.pool.ready,
        }
        return Health(
            checks,
            {
                "workerId": settings.worker_id,
                "version": version("aiworker"),
                "uptimeSeconds": round(time.monotonic() - started, 1),
                "activeJobs": len(parts.worker.running),
                "concurrency": settings.worker_concurrency,
                "queue": described(depth),
                "inference": {"waiting": parts.pool.waiting, "children": parts.pool.snapshot()},
                "providers": parts.router.snapshot(),
                "memory": {"rssMb": round(psutil.Process().memory_info().rss / 1e6, 1)},
            },
        )

    return probe


def _refresh(parts: WorkerParts) -> Refresh:
    """Gauges that are read off their owners when somebody scrapes."""
    metrics = parts.metrics

    async def refresh() -> None:
        depth = await depth_or_none(parts.queue)
        metrics.database_up.set(depth is not None)
        if depth is not None:
            metrics.queue_jobs.labels("pending").set(depth.pending)
            metrics.queue_jobs.labels("processing").set(depth.processing)
            metrics.queue_oldest.set(depth.oldest_pending_s)
        children = parts.pool.snapshot()
        states = Counter(str(child["state"]) for child in children)
        for state in LaneState:
            metrics.children.labels(state.value).set(states[state.value])
        metrics.child_restarts.set(sum(int(child["restarts"] or 0) for child in children))
        metrics.child_rss.set(sum(float(child["rss_mb"] or 0) for child in children) * 1e6)
        metrics.rss.set(psutil.Process().memory_info().rss)

    return refresh
