"""The only place that knows both ports and adapters: settings in, running parts out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from aiohttp import web

from aiworker.analyses.base import Tools
from aiworker.analyses.registry import ANALYSES
from aiworker.cli.health import gateway_ops
from aiworker.cli.keys import Keys
from aiworker.cli.parts import WorkerParts
from aiworker.cli.spending import keeping_spend
from aiworker.cli.vision import vision_of
from aiworker.domain.errors import ConfigurationError
from aiworker.gateway.app import Gateway, build_gateway
from aiworker.gateway.auth import Authenticator
from aiworker.gateway.ops import add_ops
from aiworker.llm.flight import Provider
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.gemini_models import Price, price_of
from aiworker.llm.lane import LaneRules
from aiworker.llm.local_only import ALL, LocalOnlyRule
from aiworker.llm.ollama import OllamaModel
from aiworker.llm.router import ModelRouter
from aiworker.media.fetch import HttpImageSource, MediaLimits
from aiworker.queue.listen import Listener
from aiworker.queue.postgres import PostgresQueue, QueueRules
from aiworker.scheduler.worker import Worker, WorkerLimits
from aiworker.settings import Settings
from aiworker.telemetry.metrics import Metrics
from aiworker.telemetry.traces import Traces

_MB = 1_000_000
# Long enough that a quiet half hour does not cost the next job a load, short enough to give the memory back at night.
_KEEP_ALIVE_S = 1800


def database_url(settings: Settings) -> str:
    """Raises ConfigurationError when DATABASE_URL is not set."""
    if settings.database_url is None:
        raise ConfigurationError("set DATABASE_URL, or run `aiworker up`, which starts a PostgreSQL of its own")
    return settings.database_url.get_secret_value()


@asynccontextmanager
async def gateway_app(settings: Settings, keys: Keys) -> AsyncIterator[web.Application]:
    """The gateway with its health routes."""
    metrics = Metrics(ANALYSES)
    async with _queue(settings, "gateway") as queue:
        gateway = Gateway(
            queue,
            Authenticator(jwt_secret=keys.jwt_secret, service_key=keys.service_key),
            metrics,
            enable_cache=settings.enable_cache,
        )
        app = build_gateway(gateway, metrics, max_body_bytes=int(settings.max_body_mb * _MB))
        add_ops(app, gateway_ops(settings, queue, metrics), metrics)
        yield app


@asynccontextmanager
async def worker_parts(settings: Settings, metrics: Metrics) -> AsyncIterator[WorkerParts]:
    """Everything of the worker, opened, with its children starting; closed in reverse order at the end."""
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(_queue(settings, "worker"))
        traces = traces_of(settings)
        stack.push_async_callback(asyncio.to_thread, traces.stop)
        router = ModelRouter(_providers(settings, traces), _lane_rules(settings), metrics)
        stack.push_async_callback(router.close)
        await stack.enter_async_context(keeping_spend(router, queue))
        vision = await vision_of(settings, metrics, on_ollama_unloaded=partial(router.model_gone, "ollama"))
        await vision.start()
        stack.push_async_callback(vision.stop)
        images = HttpImageSource(_media_limits(settings))
        stack.push_async_callback(images.close)
        listener = Listener(database_url(settings), pooler=settings.database_pooler)
        model = LocalOnlyRule(router, local_only_types(settings))
        worker = Worker(queue, listener, Tools(images, vision, model), metrics, _limits(settings), traces=traces)
        yield WorkerParts(worker, queue, vision, router, metrics)


def _queue(settings: Settings, process: str) -> PostgresQueue:
    rules = QueueRules(
        tuple(analysis.job_type for analysis in ANALYSES.values()),
        max_active=settings.max_active_jobs_per_user,
        max_attempts=settings.worker_max_retries,
    )
    return PostgresQueue(
        database_url(settings),
        rules,
        timeout_s=settings.database_timeout_s,
        application_name=f"aiworker {process}",
        pooler=settings.database_pooler,
    )


async def pause_queue(settings: Settings, job_type: str) -> None:
    """Raises ConfigurationError, DatabaseUnavailable."""
    async with _queue(settings, "pause") as queue:
        await queue.pause(job_type)


async def resume_queue(settings: Settings, job_type: str) -> None:
    """Raises ConfigurationError, DatabaseUnavailable."""
    async with _queue(settings, "resume") as queue:
        await queue.resume(job_type)


def _providers(settings: Settings, traces: Traces) -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    if settings.ollama_url:
        providers["ollama"] = OllamaModel(
            settings.ollama_url,
            settings.ollama_model,
            settings.ollama_vision_model,
            settings.ollama_num_ctx,
            keep_alive=f"{_KEEP_ALIVE_S}s",
            traces=traces,
        )
    if settings.gemini_api_key:
        providers["gemini"] = GeminiModel(
            settings.gemini_api_key,
            settings.gemini_model,
            settings.gemini_url,
            local_only_types(settings),
            traces,
            gemini_price(settings),
        )
    return providers


def traces_of(settings: Settings) -> Traces:
    """Raises ConfigurationError where they are wanted and the packages are missing."""
    if settings.traces == "off":
        return Traces()
    try:
        from aiworker.telemetry.otel import OtelTraces  # noqa: PLC0415 - most do without these packages
    except ImportError:
        raise ConfigurationError("TRACES needs packages that are not here: pip install aiworker[otel]") from None
    return OtelTraces(settings.worker_id)


def gemini_price(settings: Settings) -> Price | None:
    """Raises ConfigurationError for a budget that could not be kept, since nobody knows what a call costs."""
    price = Price(*settings.gemini_price) if settings.gemini_price else price_of(settings.gemini_model)
    limits = {"GEMINI_USD_PER_DAY": settings.gemini_usd_per_day, "GEMINI_USD_PER_JOB": settings.gemini_usd_per_job}
    wanted = [name for name, limit in limits.items() if limit is not None]
    if price is None and wanted:
        raise ConfigurationError(
            f"{wanted[0]} needs the price of {settings.gemini_model}, which we do not know: set GEMINI_PRICE"
        )
    return price


def local_only_types(settings: Settings) -> frozenset[str]:
    """Raises ConfigurationError for a type that does not exist: a slip of the pen must not send data away."""
    unknown = settings.local_only - {ALL, *ANALYSES}
    if unknown:
        known = ", ".join((ALL, *ANALYSES))
        raise ConfigurationError(f"LOCAL_ONLY names no job type: {', '.join(sorted(unknown))}; there are {known}")
    return settings.local_only


def _lane_rules(settings: Settings) -> dict[str, LaneRules]:
    ollama = LaneRules(
        settings.ollama_slots, max_waiting=settings.ollama_max_waiting, local=True, keep_alive_s=_KEEP_ALIVE_S
    )
    gemini = LaneRules(
        settings.gemini_slots,
        requests_per_minute=settings.gemini_rpm,
        tokens_per_minute=settings.gemini_tpm,
        usd_per_day=settings.gemini_usd_per_day,
        usd_per_job=settings.gemini_usd_per_job,
    )
    return {"ollama": ollama, "gemini": gemini}


def _media_limits(settings: Settings) -> MediaLimits:
    return MediaLimits(
        max_bytes=int(settings.media_max_mb * _MB),
        max_pixels=int(settings.media_max_megapixels * _MB),
        timeout_s=settings.media_timeout_s,
        allowed_hosts=settings.media_allowed_hosts,
    )


def _limits(settings: Settings) -> WorkerLimits:
    return WorkerLimits(
        worker_id=settings.worker_id,
        slots=settings.worker_concurrency,
        lease_s=settings.worker_lease_ms / 1000,
        poll_s=settings.worker_poll_interval_ms / 1000,
        attempt_timeout_s=settings.worker_stuck_job_timeout_ms / 1000,
        drain_timeout_s=settings.worker_drain_timeout_ms / 1000,
        cache_ttl_s=settings.cache_ttl_hours * 3600 if settings.enable_cache else None,
        retention_s=settings.retention_days * 86_400 or None,
    )
