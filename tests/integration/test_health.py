"""The health routes over HTTP: what uptime checks, people and Prometheus get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from aiworker.cli import health
from aiworker.cli.health import Remembered, gateway_ops
from aiworker.cli.keys import Keys
from aiworker.cli.wiring import gateway_app
from aiworker.domain.errors import QueueError
from aiworker.domain.job import QueueDepth
from aiworker.gateway.ops import Ops, build_ops_app
from aiworker.inference.devices import memory_limit_mb
from aiworker.queue.postgres import PostgresQueue
from aiworker.settings import load_settings
from aiworker.telemetry.metrics import Metrics


@asynccontextmanager
async def serving(ops: Ops, metrics: Metrics | None = None) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(build_ops_app(ops, metrics or Metrics()))) as client:
        yield client


async def status_and_body(client: TestClient[Any, Any], path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with client.get(path, headers=headers) as response:
        return response.status, await response.json()


async def checks_failing() -> dict[str, bool]:
    return {"database": True, "inference": False}


async def checks_fine() -> dict[str, bool]:
    return {"database": True}


async def test_one_check_that_fails_is_503_and_named_but_the_process_lives() -> None:
    async with serving(Ops(checks_failing)) as client:
        for path in ("/health", "/ready", "/health/detailed"):
            status, body = await status_and_body(client, path)
            assert (status, body["status"]) == (503, "unhealthy")
            assert body["checks"] == {"database": True, "inference": False}
        assert (await status_and_body(client, "/live"))[0] == 200


async def test_the_token_closes_details_and_metrics_and_leaves_uptime_checks_open() -> None:
    async with serving(Ops(checks_fine, token="s3cret-token")) as client:
        for path in ("/health", "/ready", "/live"):
            assert (await status_and_body(client, path))[0] == 200
        for path in ("/health/detailed", "/metrics"):
            for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic s3cret-token"}):
                status, body = await status_and_body(client, path, **headers)
                assert (status, body["code"]) == (401, "not_authenticated")
            async with client.get(path, headers={"Authorization": "Bearer s3cret-token"}) as response:
                assert response.status == 200


async def test_the_gateway_says_that_its_database_is_gone() -> None:
    metrics = Metrics()
    settings = load_settings(database_timeout_s=0.5)
    async with (
        PostgresQueue("postgresql://nobody@127.0.0.1:1/none", timeout_s=0.5) as queue,
        serving(gateway_ops(settings, queue, metrics), metrics) as client,
    ):
        assert (await status_and_body(client, "/health")) == (
            503,
            {"status": "unhealthy", "checks": {"database": False}},
        )
        status, body = await status_and_body(client, "/health/detailed")
        assert (status, body["queue"]) == (503, None)
        async with client.get("/metrics") as response:
            samples = values(await response.text())
    assert samples["aiworker_health_check", "database"] == 0
    assert samples["aiworker_database_up", ""] == 0


async def test_what_alerts_divide_is_there_before_it_happens() -> None:
    settings = load_settings(database_url="postgresql://nobody@127.0.0.1:1/none", database_timeout_s=0.5)
    async with (
        gateway_app(settings, Keys(None, "service-key")) as app,
        TestClient(TestServer(app)) as client,
        client.get("/metrics") as response,
    ):
        families = text_string_to_metric_families(await response.text())
        samples = {(sample.name, *sorted(sample.labels.values())) for family in families for sample in family.samples}
    for name, ends in (("cache_lookups", ("hit", "miss")), ("jobs", ("completed", "failed"))):
        assert {(f"aiworker_{name}_total", value, "sofia_text") for value in ends} <= samples


@pytest.mark.parametrize("wrong", ["tables", "password"])
async def test_a_database_that_cannot_be_worked_with_is_unhealthy_and_not_a_bug(
    wrong: str, empty_database_url: str, database_url: str
) -> None:
    """Before `aiworker migrate`, and where DATABASE_URL is wrong from the start."""
    parts = urlsplit(database_url)
    nobody = parts._replace(netloc=f"nobody:wrong@{parts.hostname}:{parts.port}").geturl()
    metrics = Metrics()
    async with (
        PostgresQueue(empty_database_url if wrong == "tables" else nobody) as queue,
        serving(gateway_ops(load_settings(), queue, metrics), metrics) as client,
    ):
        for path in ("/health", "/health/detailed"):
            status, body = await status_and_body(client, path)
            assert (status, body["checks"]) == (503, {"database": False})
        async with client.get("/metrics") as response:
            assert response.status == 200
            assert values(await response.text())["aiworker_health_check", "database"] == 0


async def test_an_error_that_we_have_no_name_for_is_unhealthy_too() -> None:
    """Supabase's pooler says XX000 for a project that is paused."""

    class Broken(PostgresQueue):
        async def ping(self) -> None:
            raise QueueError("SQLSTATE XX000")

        async def depth(self) -> QueueDepth:
            raise QueueError("SQLSTATE XX000")

    metrics = Metrics()
    ops = gateway_ops(load_settings(), Broken("postgresql://nobody@127.0.0.1:1/none"), metrics)
    async with serving(ops, metrics) as client:
        status, body = await status_and_body(client, "/health/detailed")
        async with client.get("/metrics") as response:
            assert response.status == 200
    assert (status, body["checks"], body["queue"]) == (503, {"database": False}, None)


async def test_a_database_that_never_answers_does_not_hold_prometheus_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(PostgresQueue):
        async def ping(self) -> None:
            await asyncio.Event().wait()

        async def depth(self) -> QueueDepth:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(health, "_DATABASE_PATIENCE_S", 0.05)
    metrics = Metrics()
    ops = gateway_ops(load_settings(), Silent("postgresql://nobody@127.0.0.1:1/none"), metrics)
    async with asyncio.timeout(5), serving(ops, metrics) as client:
        status, body = await status_and_body(client, "/health/detailed")
        async with client.get("/metrics") as response:
            samples = values(await response.text())
    assert (status, body["queue"]) == (503, None)
    assert samples["aiworker_health_check", "database"] == 0


async def test_the_gateway_in_the_seeds_shape(database_url: str) -> None:
    metrics = Metrics()
    async with (
        PostgresQueue(database_url) as queue,
        serving(gateway_ops(load_settings(), queue, metrics), metrics) as client,
    ):
        status, body = await status_and_body(client, "/health/detailed")
        async with client.get("/metrics") as response:
            samples = values(await response.text())
    assert (status, body["status"], body["checks"]) == (200, "healthy", {"database": True})
    assert {"uptime", "timestamp", "version", "versions", "queue", "memory"} <= body.keys()
    assert body["memory"]["limitMb"] == pytest.approx(memory_limit_mb() * 2**20 / 1e6, abs=0.1)
    assert samples["aiworker_queue_jobs", "pending"] == 0
    assert samples["process_open_fds", ""] > 0


async def test_many_who_ask_at_once_cost_one_call() -> None:
    answer = asyncio.Event()
    calls = 0

    async def ask() -> int:
        nonlocal calls
        calls += 1
        await answer.wait()
        return calls

    remembered = Remembered(ask, seconds=60)
    askers = [asyncio.ensure_future(remembered()) for _ in range(5)]
    while not calls:
        await asyncio.sleep(0)
    askers[0].cancel()
    answer.set()
    assert await asyncio.gather(*askers[1:]) == [1, 1, 1, 1]
    assert await remembered() == 1
    assert await Remembered(ask, seconds=0)() == 2


async def test_an_answer_is_asked_for_again_when_it_is_old() -> None:
    calls = 0

    async def ask() -> int:
        nonlocal calls
        calls += 1
        return calls

    remembered = Remembered(ask, seconds=0)
    assert [await remembered(), await remembered()] == [1, 2]


def values(text: str) -> dict[tuple[str, str], float]:
    """Sample name and the value of its first label to its value, by the official parser."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
