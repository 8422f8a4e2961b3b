"""pgqueuer at the same work: `python -m peers.drive_pgqueuer WHAT JSON`. Prints JSON."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import uvloop
from peers.driving import drive
from peers.metering import Metering, settle
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.types import QueueExecutionMode

NAME = "job"
LEFT = "select count(*) from pgqueuer"


async def installed(url: str) -> Any:
    """A connection to a database that has pgqueuer's tables, durable."""
    connection = await asyncpg.connect(url)
    await Queries(AsyncpgDriver(connection)).install()
    return connection


async def fill(connection: Any, jobs: int) -> None:
    """In batches of 100, which is how it is fastest."""
    queries = Queries(AsyncpgDriver(connection))
    for _ in range(jobs // 100):
        await queries.enqueue([NAME] * 100, [b"{}"] * 100, [0] * 100)


async def drain(url: str, jobs: int, batch: int) -> dict[str, float]:
    """Jobs that are all there before it begins."""
    connection = await installed(url)
    worker = await asyncpg.connect(url)
    await run_all(worker, connection, 500, batch)
    await fill(connection, jobs)
    await settle(connection, "pgqueuer")
    manager = consumer(worker)
    async with Metering(connection, jobs) as metering:
        await manager.run(batch_size=batch, mode=QueueExecutionMode.drain)
    return metering.figures | {"left": await connection.fetchval(LEFT)}


async def run_all(worker: Any, connection: Any, jobs: int, batch: int) -> None:
    """The warm-up."""
    await fill(connection, jobs)
    await consumer(worker).run(batch_size=batch, mode=QueueExecutionMode.drain)


def consumer(connection: Any) -> PgQueuer:
    """One that does nothing with each job."""
    manager = PgQueuer(AsyncpgDriver(connection))

    @manager.entrypoint(NAME)
    async def job(_job: Any) -> None:
        pass

    return manager


async def enqueue(url: str, jobs: int) -> dict[str, float]:
    """In batches of 100."""
    connection = await installed(url)
    async with Metering(connection, jobs) as metering:
        await fill(connection, jobs)
    return metering.figures


async def latency(url: str, jobs: int) -> dict[str, Any]:
    """Milliseconds from the call of enqueue to the start of the handler, one job at a time."""
    client = await installed(url)
    queries = Queries(AsyncpgDriver(client))
    begun: asyncio.Queue[float] = asyncio.Queue()
    manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

    @manager.entrypoint(NAME)
    async def job(_job: Any) -> None:
        begun.put_nowait(time.perf_counter())

    running = asyncio.create_task(manager.run(batch_size=10))
    taken = []
    for _ in range(jobs + 20):
        sent = time.perf_counter()
        await queries.enqueue([NAME], [b"{}"], [0])
        taken.append(1000 * (await begun.get() - sent))
        while await client.fetchval(LEFT):
            await asyncio.sleep(0.001)
    manager.shutdown.set()
    await running
    return {"ms": taken[20:]}


if __name__ == "__main__":
    drive({"drain": drain, "enqueue": enqueue, "latency": latency}, uvloop.run)
