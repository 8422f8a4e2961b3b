"""Claims while a transaction that somebody left open keeps vacuum from removing a single dead row."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from aiworker.queue.postgres import PostgresQueue
from queueing.ours import fill, opened, working

RATE = 1000
BATCH = 25


class TimedQueue(PostgresQueue):
    """Keeps how long each claim took, in milliseconds, and when it ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.claims: list[tuple[float, float]] = []

    async def claim(self, *args: Any) -> Any:
        started = time.perf_counter()
        jobs = await super().claim(*args)
        ended = time.perf_counter()
        self.claims.append((ended, 1000 * (ended - started)))
        return jobs

    def taken(self, since: float) -> list[float]:
        """Of the claims that ended after `since`."""
        return [ms for at, ms in self.claims if at >= since]


async def claims_with_and_without(url: str, before_s: float, open_s: float) -> tuple[list[float], list[float]]:
    """Milliseconds of claims at RATE jobs a second: quiet, and in the last `before_s` of a transaction of `open_s`."""
    async with opened(url) as (_, connection), TimedQueue(url) as queue, working(queue, url, 50):
        feeding = asyncio.create_task(_feed(connection))
        await asyncio.sleep(5)
        quiet_from = time.perf_counter()
        await asyncio.sleep(before_s)
        quiet = queue.taken(quiet_from)
        forgotten = await asyncpg.connect(url)
        async with forgotten.transaction(isolation="repeatable_read"):
            await forgotten.fetchval("select count(*) from analysis_jobs where line is not null")
            await asyncio.sleep(open_s - before_s)
            late_from = time.perf_counter()
            await asyncio.sleep(before_s)
            late = queue.taken(late_from)
        await forgotten.close()
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        return quiet, late


async def _feed(connection: Any) -> None:
    """RATE jobs a second, by the clock, whatever a call takes."""
    start, sent = time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - start) * RATE)
        while sent < due:
            await fill(connection, BATCH)
            sent += BATCH
        await asyncio.sleep(BATCH / RATE)
