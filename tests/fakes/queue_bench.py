"""A queue under test, real or in memory, with a time that the test lets pass."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from aiworker.domain.job import ClaimedJob, JobStatus, NewJob
from aiworker.domain.outcome import Cancelled, Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.listen import Listener
from aiworker.queue.postgres import PostgresQueue
from fakes.memory_queue import MemoryQueue

TEXT, IMAGE = "sofia_text", "sofia_image"
LEASE_S = 6.0
USER = UUID(int=1)

EVERY_OUTCOME = [
    Completed({"kcal": 1}, cache_ttl_s=60),
    Retry(1.0, "later", "provider_unavailable"),
    Failed("bad", "image_unreadable"),
    Cancelled(),
    Interrupted(),
]

# As if `seconds` had passed: every moment that the queue compares with its clock lies that much further back.
AGE_JOBS = """
update analysis_jobs set created_at = created_at - $1::interval, due_at = due_at - $1::interval,
  run_after = run_after - $1::interval, deadline_at = deadline_at - $1::interval,
  started_at = started_at - $1::interval, lease_expires_at = lease_expires_at - $1::interval"""
AGE_CACHE = "update analysis_cache set expires_at = expires_at - $1::interval, created_at = created_at - $1::interval"


@dataclass
class Bench:
    """A queue under test. `advance(seconds)` lets its time pass; `hits(cache_key)` is what the cache counted."""

    queue: Any
    wake_ups: Any
    advance: Callable[[float], Awaitable[None]]
    hits: Callable[[str], Awaitable[int]]

    async def add(self, **changes: Any) -> UUID:
        enqueued = await self.queue.enqueue(new_job(**changes))
        assert enqueued.status is JobStatus.PENDING
        return enqueued.job_id

    async def claim(self, limit: int = 10, worker: str = "w1") -> list[ClaimedJob]:
        return await self.queue.claim(worker, limit, LEASE_S, [TEXT, IMAGE])

    async def claim_one(self) -> ClaimedJob:
        [job] = await self.claim()
        return job

    async def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        return job.id in await self.queue.finalise([(job.lease, outcome)])

    async def view(self, job_id: UUID) -> Any:
        return await self.queue.status(job_id, None)


def new_job(**changes: Any) -> NewJob:
    return replace(NewJob(user_id=USER, type=TEXT, input={"text": "arroz"}, slo_s=20.0, max_active=None), **changes)


def memory_bench() -> Bench:
    start, passed = time.time(), [0.0]
    queue = MemoryQueue(clock=lambda: start + passed[0])

    async def advance(seconds: float) -> None:
        passed[0] += seconds

    async def hits(cache_key: str) -> int:
        return queue.hits(cache_key)

    return Bench(queue, queue, advance, hits)


def postgres_bench(queue: PostgresQueue, listener: Listener, connection: Any) -> Bench:
    async def advance(seconds: float) -> None:
        for statement in (AGE_JOBS, AGE_CACHE):
            await connection.execute(statement, timedelta(seconds=seconds))

    async def hits(cache_key: str) -> int:
        return await connection.fetchval("select hit_count from analysis_cache where cache_key = $1", cache_key)

    return Bench(queue, listener, advance, hits)
