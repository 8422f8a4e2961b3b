"""The queue through a transaction pooler: no LISTEN, no prepared statements, no settings, and nothing lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest
from fakes.pgbouncer import PROGRAM, pgbouncer
from fakes.ports import FunctionDetector, FunctionImages, FunctionModel, detections
from fakes.queue_bench import RULES, SHARED, TEXT

from aiworker.analyses.base import Tools
from aiworker.analyses.registry import ANALYSES
from aiworker.cli.doctor import Verdict, examine
from aiworker.domain.errors import TooManyActiveJobs
from aiworker.domain.job import JobStatus, NewJob
from aiworker.domain.outcome import Completed, Retry
from aiworker.queue.connect import Connector
from aiworker.queue.listen import Listener
from aiworker.queue.migrate import migrate, pending, shipped
from aiworker.queue.postgres import PostgresQueue, QueueRules
from aiworker.scheduler.worker import Worker, WorkerLimits
from aiworker.settings import load_settings
from aiworker.telemetry.metrics import Metrics

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (Debian package pgbouncer)")

OUR_SETTINGS = (
    "statement_timeout,idle_in_transaction_session_timeout,tcp_keepalives_idle,tcp_keepalives_interval,"
    "tcp_keepalives_count,jit"
)


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    with pgbouncer(database_url) as url:
        yield url


async def test_a_pooler_in_session_mode_is_as_good_as_none(database_url: str) -> None:
    with pgbouncer(database_url, mode="session", servers=6) as url:
        assert not await Connector(url, timeout_s=10, application_name="test").through_pooler()
        async with PostgresQueue(url, RULES, timeout_s=10) as queue, aclosing(Listener(url).listen()) as hints:
            assert {await anext(hints), await anext(hints)} == {"work", "cancel"}
            await queue.enqueue(NewJob(uuid4(), TEXT, {}))
            assert await anext(hints) == "work"


async def a_whole_life(queue: PostgresQueue) -> None:
    user = uuid4()
    ids = await asyncio.gather(*(queue.enqueue(NewJob(user, TEXT, {"n": n})) for n in range(10)))
    with pytest.raises(TooManyActiveJobs):
        await queue.enqueue(NewJob(user, TEXT, {}))
    jobs = [
        job
        for batch in await asyncio.gather(*(queue.claim(f"w{n}", 4, 6.0, [TEXT]) for n in range(4)))
        for job in batch
    ]
    assert sorted(job.id for job in jobs) == sorted(each.job_id for each in ids)
    assert not (await queue.renew([job.lease for job in jobs], 6.0)).lost
    await queue.report({job.lease: (50, "detect") for job in jobs})
    outcomes: list[Any] = [Retry(60.0, "later", "x"), *[Completed({"n": n}) for n in range(9)]]
    assert not await queue.finalise(list(zip([job.lease for job in jobs], outcomes, strict=True)))
    assert (await queue.status(jobs[1].id, user)).result == {"n": 0}
    assert (await queue.depth()).delayed == 1
    assert await queue.rescue() == 0


async def test_everything_works_and_its_connections_are_shared(pooled_url: str) -> None:
    async with PostgresQueue(pooled_url, RULES, timeout_s=20, connections=6) as queue:
        await a_whole_life(queue)


async def test_single_flight_works(pooled_url: str) -> None:
    async with PostgresQueue(pooled_url, RULES, timeout_s=20) as queue:
        ids = await asyncio.gather(*(queue.enqueue(NewJob(uuid4(), SHARED, {})) for _ in range(6)))
        [job] = await queue.claim("w", 6, 6.0, [SHARED])
        await queue.finalise([(job.lease, Completed({"n": 1}, 60))])
        assert [(await queue.status(each.job_id, None)).result for each in ids] == [{"n": 1}] * 6


async def test_a_pooler_that_swallows_settings_is_found_out(database_url: str) -> None:
    with pgbouncer(database_url, swallows=OUR_SETTINGS) as url:
        async with PostgresQueue(url, RULES, timeout_s=20, connections=6) as queue:
            await a_whole_life(queue)


async def test_a_pooler_can_be_named(database_url: str) -> None:
    with pgbouncer(database_url, swallows=OUR_SETTINGS) as url:
        async with PostgresQueue(url, RULES, timeout_s=20, pooler="transaction", connections=6) as queue:
            await a_whole_life(queue)


@pytest.mark.parametrize("servers", [1, 2, 5])
async def test_a_pooler_of_any_size_is_found_and_a_server_is_not_taken_for_one(database_url: str, servers: int) -> None:
    def connector(url: str) -> Connector:
        return Connector(url, timeout_s=10, application_name="test")

    with pgbouncer(database_url, servers=servers, swallows=OUR_SETTINGS) as url:
        assert await connector(url).through_pooler()
    assert not await connector(database_url).through_pooler()


async def test_nobody_listens_and_everybody_is_told_once(pooled_url: str) -> None:
    async with aclosing(Listener(pooled_url).listen()) as hints, asyncio.timeout(20):
        assert {await anext(hints), await anext(hints)} == {"work", "cancel"}


async def test_a_worker_polls_and_obeys_a_cancel(pooled_url: str) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Hanging(FunctionModel):
        async def complete(self, *_: Any) -> Any:
            began.set()
            try:
                await asyncio.Future()
            finally:
                ended.set()

    rules = QueueRules(tuple(analysis.job_type for analysis in ANALYSES.values()))
    limits = WorkerLimits("w", 2, 6.0, 0.05, 60.0, 1.0, None)
    tools = Tools(FunctionImages(), FunctionDetector(detections()), Hanging())
    async with PostgresQueue(pooled_url, rules, timeout_s=20) as queue:
        stop = asyncio.Event()
        worker = Worker(queue, Listener(pooled_url), tools, Metrics(), limits)
        running = asyncio.create_task(worker.run(stop))
        async with asyncio.timeout(30):
            job_id = (await queue.enqueue(NewJob(uuid4(), "unified_assistant", {"message": "oi"}))).job_id
            assert job_id is not None
            await began.wait()
            assert (await queue.cancel(job_id, None)).status is JobStatus.CANCELLED
            await ended.wait()
            stop.set()
            await running


async def test_migrations_go_through_too(empty_database_url: str) -> None:
    with pgbouncer(empty_database_url) as url:
        assert len(await migrate(url)) == len(shipped())
        assert await pending(url) == []


async def test_doctor_says_so(pooled_url: str) -> None:
    findings = {finding.check: finding for finding in await examine(load_settings(database_url=pooled_url))}

    assert findings["connections"].verdict is Verdict.WARN
    assert "transaction pooler" in findings["connections"].found
    assert "direct" in findings["connections"].do
