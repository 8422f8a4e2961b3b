"""The two processes, from settings and a listening socket to their end."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import AsyncExitStack

from aiworker.analyses.registry import ANALYSES
from aiworker.cli.health import starting_ops, worker_ops
from aiworker.cli.keys import Keys
from aiworker.cli.parts import WorkerParts
from aiworker.cli.serve import address_of, serving, started, stop_on_signals
from aiworker.cli.vision import reloading_on_hangup
from aiworker.cli.wiring import gateway_app, worker_parts
from aiworker.gateway.ops import build_ops_app
from aiworker.settings import Settings
from aiworker.telemetry.logs import configure_logging, get_logger
from aiworker.telemetry.metrics import Metrics

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
    # While engines are measured a hangup has nothing to take up: the children load what is there when they start.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = stop_on_signals()
    metrics = Metrics(ANALYSES)
    _log.info("worker health listens", url=address_of(listener), worker_id=settings.worker_id)
    async with AsyncExitStack() as stack:
        # A server closes its socket at the end; nobody who asks meanwhile is turned away.
        async with serving(build_ops_app(starting_ops(settings, metrics), metrics), listener.dup()):
            parts = await started(worker_parts(settings, metrics), stack, stop)
        if parts:
            await _serve(settings, parts, listener, stop)
    _log.info("worker stopped")


async def _serve(settings: Settings, parts: WorkerParts, listener: socket.socket, stop: asyncio.Event) -> None:
    app = build_ops_app(worker_ops(settings, parts), parts.metrics)
    async with serving(app, listener):
        _log.info("worker started", worker_id=settings.worker_id)
        # Chat and text need no model of ours, so the worker starts at once; images wait for a child.
        children = asyncio.create_task(parts.vision.main.wait_ready())
        children.add_done_callback(lambda task: stop.set() if not task.cancelled() and task.exception() else None)
        with reloading_on_hangup(settings, parts.vision):
            await parts.worker.run(stop)
        if children.done():
            children.result()
        children.cancel()
