"""The pool of inference children, from settings and what the machine has; and taking up new weights on SIGHUP."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from aiworker.cli.placement import ollama_is_here
from aiworker.cli.profiles import plan_for, sample_picture
from aiworker.cli.relief import unload_ollama
from aiworker.domain.errors import InferenceUnavailable, WeightsUnavailable
from aiworker.inference.policy.care import CareRules
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.weights import resolve_weights
from aiworker.settings import Settings
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger(__name__)


async def vision_pool(settings: Settings, metrics: Metrics) -> InferencePool:
    """Not started yet. Raises WeightsUnavailable, ConfigurationError."""
    weights = await asyncio.to_thread(resolve_weights, settings.yolo_model, settings.models_dir)
    plan = await plan_for(settings, weights)
    for note in plan.placement.notes:
        _log.info("placement", note=note)
    _log.info("engine", engine=plan.specs[0].engine.partition(":")[2], why=plan.why)
    specs, placement = plan.specs, plan.placement
    rules = PoolRules(
        max_batch=min(plan.max_batch for plan in placement.children),
        care=CareRules(budget_mb=placement.budget_mb),
        canary=sample_picture(),
        times=settings.models_dir / "service-times.json",
        relief=_relief(settings),
    )
    return InferencePool(specs, rules, metrics)


def _relief(settings: Settings) -> Callable[[], Coroutine[Any, Any, None]] | None:
    url = settings.ollama_url
    return functools.partial(unload_ollama, url) if url and ollama_is_here(url) else None


@contextmanager
def reloading_on_hangup(settings: Settings, pool: InferencePool) -> Iterator[None]:
    """While inside, SIGHUP takes up the file that YOLO_MODEL names, as it is now. No request is lost by it."""
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    def start() -> None:
        if not under_way:
            task = loop.create_task(_reload(settings, pool))
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    loop.add_signal_handler(signal.SIGHUP, start)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in under_way:
            task.cancel()


async def _reload(settings: Settings, pool: InferencePool) -> None:
    try:
        weights = await asyncio.to_thread(resolve_weights, settings.yolo_model, settings.models_dir)
        await pool.reload(str(weights))
    except (WeightsUnavailable, InferenceUnavailable) as error:
        _log.error("weights not reloaded, the old ones serve on", reason=error.note)
    else:
        _log.info("weights reloaded", weights=weights.name)
