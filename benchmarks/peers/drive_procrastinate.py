"""procrastinate at the same work: `python -m peers.drive_procrastinate WHAT JSON`. Prints JSON."""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.resources import files
from typing import Any

import asyncpg
import uvloop
from peers.driving import drive
from peers.metering import Metering, settle
from procrastinate import App, PsycopgConnector

QUEUE = "bench"
LEFT = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"


async def installed(url: str) -> Any:
    """A connection to a database that has procrastinate's tables."""
    connection = await asyncpg.connect(url)
    await connection.execute((files("procrastinate") / "sql" / "schema.sql").read_text())
    return connection


def app_of(url: str, batch: int, begun: asyncio.Queue[float] | None = None) -> tuple[App, Any]:
    """An app with one task, which does nothing but say that it began."""
    app = App(connector=PsycopgConnector(conninfo=url, min_size=2, max_size=batch + 3))

    @app.task(queue=QUEUE, name="job")
    async def job() -> None:
        if begun is not None:
            begun.put_nowait(time.perf_counter())

    return app, job


async def fill(job: Any, jobs: int) -> None:
    """In batches of 100, which is how it is fastest."""
    for _ in range(jobs // 100):
        await job.batch_defer_async(*[{} for _ in range(100)])


async def drain(url: str, jobs: int, batch: int) -> dict[str, float]:
    """Jobs that are all there before it begins; rows are kept, as ours are."""
    connection = await installed(url)
    app, job = app_of(url, batch)
    options: dict[str, Any] = {
        "queues": [QUEUE],
        "concurrency": batch,
        "wait": False,
        "delete_jobs": "never",
        "install_signal_handlers": False,
    }
    async with app.open_async():
        await fill(job, 100)
        await app.run_worker_async(**options)
        await fill(job, jobs)
        await settle(connection, "procrastinate_jobs")
        async with Metering(connection, jobs) as metering:
            await app.run_worker_async(**options)
    return metering.figures | {"left": await connection.fetchval(LEFT)}


async def enqueue(url: str, jobs: int) -> dict[str, float]:
    """In batches of 100."""
    connection = await installed(url)
    app, job = app_of(url, 5)
    async with app.open_async(), Metering(connection, jobs) as metering:
        await fill(job, jobs)
    return metering.figures


async def latency(url: str, jobs: int) -> dict[str, Any]:
    """Milliseconds from the call of defer to the start of the task, one job at a time."""
    client = await installed(url)
    begun: asyncio.Queue[float] = asyncio.Queue()
    app, job = app_of(url, 5, begun)
    taken = []
    async with app.open_async():
        running = asyncio.create_task(
            app.run_worker_async(queues=[QUEUE], concurrency=5, install_signal_handlers=False)
        )
        await asyncio.sleep(1)
        for _ in range(jobs + 5):
            sent = time.perf_counter()
            await job.defer_async()
            taken.append(1000 * (await begun.get() - sent))
            while await client.fetchval(LEFT):
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return {"ms": taken[5:]}


if __name__ == "__main__":
    # Two lines a job at INFO would be measured too.
    logging.disable(logging.WARNING)
    drive({"drain": drain, "enqueue": enqueue, "latency": latency}, uvloop.run)
