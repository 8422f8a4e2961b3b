"""aiworker's queue and scheduler at work, as a process: `python -m queueing.ours WHAT JSON`. Prints JSON.

The analysis does nothing; everything around it is the product's: claim, lease, task, input and result models, metrics,
batched and fenced finalisation. A job counts when its end is committed; its row and its JSON result are kept.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import uvloop
from peers.driving import drive
from peers.metering import Metering, settle

from aiworker.analyses.base import Analysis, AnalysisResult, Attempt, JobInput, Tools
from aiworker.cli.serve import leave_imports_alone
from aiworker.domain.job import NewJob
from aiworker.domain.outcome import Completed
from aiworker.queue.json_codec import decode_jsonb, encode_jsonb
from aiworker.queue.listen import Listener
from aiworker.queue.migrate import migrate
from aiworker.queue.postgres import CLAIM, FINALISE, PostgresQueue, QueueRules
from aiworker.queue.rows import claimed_jobs, outcome_columns
from aiworker.scheduler.worker import Worker, WorkerLimits
from aiworker.telemetry.logs import configure_logging
from aiworker.telemetry.metrics import Metrics

KIND = "noop"
WARM_UP = 500
POLL_S = 1.0
LEASE_S = 6.0
DONE = AnalysisResult()

FILL = """
select count(*)
  from generate_series(1, $1::int) n, enqueue_analysis($2, jsonb_build_object('n', n), gen_random_uuid())"""
LEFT = "select count(*) from analysis_jobs where line is not null"
PAUSE = "select pause_analyses()"
RESUME = "select resume_analyses()"


async def nothing(_job: JobInput, _attempt: Attempt) -> AnalysisResult:
    """The whole analysis."""
    return DONE


def analysis(run: Any = nothing) -> Analysis:
    """An analysis that runs `run`."""
    return Analysis(KIND, "1", JobInput, run, slo_s=20.0, estimate_s=1, sharing="never")


def limits(slots: int, worker_id: str = "bench") -> WorkerLimits:
    """The defaults of the settings with `slots`, without the cache and without pruning."""
    return WorkerLimits(worker_id, slots, LEASE_S, POLL_S, 300.0, 5.0, None)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[PostgresQueue, Any]]:
    """A migrated queue, and a connection beside it."""
    await migrate(url)
    rules = QueueRules((analysis().job_type,))
    async with PostgresQueue(url, rules) as queue:
        await queue.configure(rules)
        connection = await asyncpg.connect(url)
        try:
            yield queue, connection
        finally:
            await connection.close()


@asynccontextmanager
async def working(
    queue: PostgresQueue, url: str, slots: int, run: Any = nothing, worker_id: str = "bench"
) -> AsyncIterator[Metrics]:
    """A worker at work on `queue`."""
    metrics, stop = Metrics(), asyncio.Event()
    tools = Tools(None, None, None)  # type: ignore[arg-type]
    worker = Worker(queue, Listener(url), tools, metrics, limits(slots, worker_id), analyses={KIND: analysis(run)})
    task = asyncio.create_task(worker.run(stop))
    try:
        yield metrics
    finally:
        stop.set()
        await task


async def fill(connection: Any, jobs: int) -> None:
    """Enqueues `jobs` jobs of as many users, a thousand a transaction."""
    for start in range(0, jobs, 1000):
        await connection.fetchval(FILL, min(1000, jobs - start), KIND, timeout=600)


async def until_ended(metrics: Metrics, jobs: int, look_s: float = 0.01) -> None:
    """Waits until as many ends are committed. Looking costs processor time that is counted as ours: it looks again
    when the rest could have ended at a hundred thousand a second, and not before `look_s`."""
    ended = metrics.jobs.labels(KIND, "completed")
    while (left := jobs - ended._value.get()) > 0:
        await asyncio.sleep(max(look_s, left / 100_000))


async def drain(url: str, jobs: int, batch: int) -> dict[str, float]:
    """Jobs that are all there before it begins, by one worker with slots for four batches; pgqueuer's have no limit."""
    async with opened(url) as (queue, connection), working(queue, url, 4 * batch) as metrics:
        await fill(connection, WARM_UP)
        await until_ended(metrics, WARM_UP)
        await queue.pause()
        await fill(connection, jobs)
        await settle(connection, "analysis_jobs")
        async with Metering(connection, jobs) as metering:
            await queue.resume()
            await until_ended(metrics, WARM_UP + jobs)
        return metering.figures | {"left": await connection.fetchval(LEFT)}


async def logged(url: str, jobs: int, batch: int) -> dict[str, float]:
    """The same with a line of log for each."""
    configure_logging("INFO", "bench")
    return await drain(url, jobs, batch)


async def share(url: str, batch: int) -> dict[str, float]:
    """Drains what others drain too, from when it says that it is ready until it is sent a line."""
    async with PostgresQueue(url) as queue, working(queue, url, 2 * batch, worker_id=str(uuid4())) as metrics:
        await queue.depth()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        return {"jobs": metrics.jobs.labels(KIND, "completed")._value.get()}


async def bare(url: str, jobs: int, batch: int) -> dict[str, float]:
    """The same claim and finalise statements in a loop on one connection, with nothing around them."""
    async with opened(url) as (_, connection):
        await connection.set_type_codec(
            "jsonb", schema="pg_catalog", encoder=encode_jsonb, decoder=decode_jsonb, format="binary"
        )
        await fill(connection, jobs)
        await settle(connection, "analysis_jobs")
        claim = await connection.prepare(CLAIM)
        finalise = await connection.prepare(FINALISE)
        async with Metering(connection, jobs) as metering:
            while True:
                token = uuid4()
                rows = await claim.fetch("bare", batch, timedelta(seconds=LEASE_S), [KIND], token, None, True)
                claimed = claimed_jobs(rows, token)
                if not claimed:
                    break
                await finalise.fetch(*outcome_columns([(job.lease, Completed({})) for job in claimed]), None)
        return metering.figures | {"left": await connection.fetchval(LEFT)}


async def enqueue(url: str, jobs: int) -> dict[str, float]:
    """One call, one transaction a job, each for a user of its own."""
    async with opened(url) as (queue, connection):
        await queue.enqueue(NewJob(uuid4(), KIND, {}))
        await settle(connection, "analysis_jobs")
        async with Metering(connection, jobs) as metering:
            for _ in range(jobs):
                await queue.enqueue(NewJob(uuid4(), KIND, {}))
        return metering.figures


async def latency(url: str, jobs: int) -> dict[str, Any]:
    """Milliseconds from the call of enqueue to the start of the handler, one job at a time."""
    begun: asyncio.Queue[float] = asyncio.Queue()

    async def note(_job: JobInput, _attempt: Attempt) -> AnalysisResult:
        begun.put_nowait(time.perf_counter())
        return DONE

    taken = []
    async with opened(url) as (queue, _), working(queue, url, 5, note) as metrics, PostgresQueue(url) as client:
        for number in range(jobs + 20):
            sent = time.perf_counter()
            await client.enqueue(NewJob(uuid4(), KIND, {}))
            taken.append(1000 * (await begun.get() - sent))
            # Idle means that the last one has been written too.
            await until_ended(metrics, number + 1, 0.002)
    return {"ms": taken[20:], "poll_ms": 1000 * POLL_S}


if __name__ == "__main__":
    configure_logging("WARNING", "bench")
    leave_imports_alone()
    drive(
        {"drain": drain, "logged": logged, "bare": bare, "enqueue": enqueue, "latency": latency, "share": share},
        uvloop.run,
    )
