"""The pool of inference children, from settings and what the machine has; and taking up new weights on SIGHUP."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

from aiworker.cli.placement import placement_for
from aiworker.domain.errors import InferenceUnavailable, WeightsUnavailable
from aiworker.inference.care import CareRules
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.weights import resolve_weights
from aiworker.settings import Settings
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger(__name__)
_PIXELS = 1_000_000


async def vision_pool(settings: Settings, metrics: Metrics) -> InferencePool:
    """Not started yet. Raises WeightsUnavailable, ConfigurationError."""
    weights = await asyncio.to_thread(resolve_weights, settings.yolo_model, settings.models_dir)
    _, placement = await asyncio.to_thread(placement_for, settings)
    for note in placement.notes:
        _log.info("placement", note=note)
    specs = [
        ChildSpec(
            weights=str(weights),
            device=plan.device,
            threads=plan.threads,
            confidence=settings.yolo_confidence,
            max_pixels=int(settings.media_max_megapixels * _PIXELS),
        )
        for plan in placement.children
    ]
    rules = PoolRules(
        max_batch=min(plan.max_batch for plan in placement.children),
        care=CareRules(budget_mb=placement.budget_mb),
        canary=files("aiworker.cli").joinpath("data/fruits.jpg").read_bytes(),
        times=settings.models_dir / "service-times.json",
    )
    return InferencePool(specs, rules, metrics)


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
