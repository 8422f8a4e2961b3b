"""The models and their inference children, from settings and what the machine has; taking up new weights on SIGHUP."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiworker.cli.placement import ollama_is_here
from aiworker.cli.profiles import cache_dir, plan_for, sample_picture
from aiworker.cli.relief import unload_ollama
from aiworker.domain.errors import InferenceUnavailable, WeightsUnavailable
from aiworker.inference.messages import ChildSpec
from aiworker.inference.placement import Needs
from aiworker.inference.policy.care import CareRules
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.shelf import Further, ModelShelf
from aiworker.inference.weights import kept_copy, resolve_weights
from aiworker.settings import Settings
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger(__name__)


async def vision_of(settings: Settings, metrics: Metrics, on_ollama_unloaded: Callable[[], None]) -> ModelShelf:
    """Not started yet. Raises WeightsUnavailable, ConfigurationError."""
    weights = await _weights_of(settings, settings.yolo_model)
    for model in settings.yolo_more_models.values():
        # A name that means nothing stops the start, not the first job that asks for it.
        await asyncio.to_thread(resolve_weights, model, settings.models_dir)
    plan = await plan_for(settings, weights)
    for note in plan.placement.notes:
        _log.info("placement", note=note)
    _log.info("engine", engine=plan.specs[0].engine.partition(":")[2], why=plan.why)
    rules = PoolRules(
        max_batch=min(plan.max_batch for plan in plan.placement.children),
        care=CareRules(budget_mb=plan.placement.budget_mb),
        canary=sample_picture(),
        known=plan.known,
        times=settings.models_dir / "service-times.json",
        relief=_relief(settings, on_ollama_unloaded),
    )
    main = InferencePool(plan.specs, rules, metrics)
    if not settings.yolo_more_models:
        return ModelShelf(main)
    return ModelShelf(main, _further(settings, plan.specs, rules, metrics))


def _further(settings: Settings, specs: Sequence[ChildSpec], rules: PoolRules, metrics: Metrics) -> Further:
    """One child for each model, with the main one's engine and all threads. Their memory has a cap of its own."""
    threads = sum(spec.threads for spec in specs)

    async def make(name: str) -> InferencePool:
        weights = await _weights_of(settings, settings.yolo_more_models[name])
        spec = replace(specs[0], weights=str(weights), threads=threads, pinned=False)
        times = settings.models_dir / f"service-times-{weights.stem}.json"
        return InferencePool([spec], replace(rules, care=CareRules(), times=times), metrics)

    needs = Needs()
    expected_mb = needs.cpu_mb if specs[0].device == "cpu" else needs.gpu_ram_mb
    return Further(settings.yolo_more_models, make, settings.yolo_more_models_mb, expected_mb)


async def _weights_of(settings: Settings, model: str) -> Path:
    return await asyncio.to_thread(_kept, settings, model)


def _kept(settings: Settings, model: str) -> Path:
    weights = resolve_weights(model, settings.models_dir)
    try:
        return kept_copy(weights, cache_dir(settings) / "weights")
    except OSError as error:
        note = "no place for a copy of the weights: a child that starts again takes what lies there by then"
        _log.warning(note, weights=str(weights), reason=error.strerror)
        return weights


def _relief(settings: Settings, on_unloaded: Callable[[], None]) -> Callable[[], Coroutine[Any, Any, None]] | None:
    url = settings.ollama_url
    return functools.partial(unload_ollama, url, on_unloaded) if url and ollama_is_here(url) else None


@contextmanager
def reloading_on_hangup(settings: Settings, shelf: ModelShelf) -> Iterator[None]:
    """While inside, SIGHUP takes up the files that YOLO_MODEL and YOLO_MORE_MODELS name, as they are now. No request is
    lost by it."""
    loop = asyncio.get_running_loop()
    turn = asyncio.Lock()
    under_way: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        async with turn:
            await _reload(settings, shelf)

    def start() -> None:
        # One that runs may have read what was there before this signal, so another follows it; a third would find no
        # more than that one will.
        if len(under_way) < 2:
            task = loop.create_task(reload())
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    loop.add_signal_handler(signal.SIGHUP, start)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in under_way:
            task.cancel()


async def _reload(settings: Settings, shelf: ModelShelf) -> None:
    for name, model in ("", settings.yolo_model), *settings.yolo_more_models.items():
        try:
            weights = await _weights_of(settings, model)
            await shelf.reload(name, str(weights))
        except (WeightsUnavailable, InferenceUnavailable) as error:
            _log.error("weights not reloaded, the old ones serve on", model=model, reason=error.note)
        else:
            _log.info("weights reloaded", weights=weights.name)
