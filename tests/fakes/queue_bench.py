"""A queue under test, real or in memory, with a time that the test lets pass."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from aiworker.domain.job import ClaimedJob, JobStatus, JobType, NewJob
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.listen import Listener
from aiworker.queue.looks import Floors, Walks
from aiworker.queue.postgres import PostgresQueue, QueueRules
from fakes.memory_queue import MemoryQueue

SLO_S = 20.0
TEXT, IMAGE, SHARED, PERSONAL = "text", "image", "shared", "personal"
TYPES = (
    JobType(TEXT, "1", slo_s=SLO_S, sharing="never"),
    JobType(IMAGE, "1", slo_s=SLO_S, sharing="never"),
    JobType(SHARED, "1", slo_s=SLO_S, sharing="everyone"),
    JobType(PERSONAL, "1", slo_s=SLO_S, sharing="user"),
)
NAMES = [each.name for each in TYPES]
LIMIT = 10
RULES = QueueRules(TYPES, max_active=LIMIT, max_attempts=3)
LEASE_S = 6.0
USER = UUID(int=1)

EVERY_OUTCOME = [
    Completed({"kcal": 1}, cache_ttl_s=60),
    Retry(1.0, "later", "provider_unavailable"),
    Failed("bad", "image_unreadable"),
    Interrupted(),
]

# As if `seconds` had passed: every moment that the queue compares with its clock lies that much further back.
AGE_JOBS = """
update analysis_jobs set created_at = created_at - $1::interval, place = place - $1::interval,
  run_after = run_after - $1::interval, deadline_at = deadline_at - $1::interval,
  started_at = started_at - $1::interval, lease_expires_at = lease_expires_at - $1::interval,
  completed_at = completed_at - $1::interval"""
AGE_CACHE = "update analysis_cache set expires_at = expires_at - $1::interval, created_at = created_at - $1::interval"


@dataclass
class Bench:
    """A queue under test.

    `advance(seconds)` lets its time pass, `remembering` as if it had seen it pass; `hits()` is what the cache counted,
    all in all; `states()` are status, attempts and result of every job that there is.
    """

    queue: Any
    wake_ups: Any
    advance: Callable[..., Awaitable[None]]
    hits: Callable[[], Awaitable[int]]
    states: Callable[[], Awaitable[dict[UUID, tuple[JobStatus, int, Any]]]]

    async def add(self, **changes: Any) -> UUID:
        enqueued = await self.queue.enqueue(new_job(**changes))
        assert enqueued.status is JobStatus.PENDING
        return enqueued.job_id

    async def claim(self, limit: int = 10, worker: str = "w1", suspects: bool = True) -> list[ClaimedJob]:
        return await self.queue.claim(worker, limit, LEASE_S, NAMES, suspects)

    async def claim_one(self) -> ClaimedJob:
        [job] = await self.claim()
        return job

    async def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        """False when the lease was gone."""
        return job.id not in await self.queue.finalise([(job.lease, outcome)])

    async def view(self, job_id: UUID) -> Any:
        return await self.queue.status(job_id, None)


def new_job(**changes: Any) -> NewJob:
    return replace(NewJob(user_id=USER, type=TEXT, input={"text": "arroz"}, unlimited=True), **changes)


def memory_bench(rules: QueueRules = RULES) -> Bench:
    start, passed = time.time(), [0.0]
    queue = MemoryQueue(lambda: start + passed[0], rules.types, max_active=rules.max_active)

    async def advance(seconds: float, *, remembering: bool = False) -> None:
        passed[0] += seconds

    async def hits() -> int:
        return queue.cache_hits()

    async def states() -> dict[UUID, tuple[JobStatus, int, Any]]:
        return {row.id: (row.status, row.attempts, row.result) for row in queue.rows()}

    return Bench(queue, queue, advance, hits, states)


def postgres_bench(queue: PostgresQueue, listener: Listener, connection: Any) -> Bench:
    async def advance(seconds: float, *, remembering: bool = False) -> None:
        for statement in (AGE_JOBS, AGE_CACHE):
            await connection.execute(statement, timedelta(seconds=seconds))
        if not remembering:
            # What it remembers of the database's clock has aged too.
            queue._floors, queue._walks = Floors(), Walks()

    async def hits() -> int:
        return await connection.fetchval("select coalesce(sum(hit_count), 0)::int from analysis_cache")

    async def states() -> dict[UUID, tuple[JobStatus, int, Any]]:
        rows = await connection.fetch("select id, status, attempts, result from analysis_jobs")
        return {
            row["id"]: (JobStatus(row["status"]), row["attempts"], json.loads(row["result"] or "null")) for row in rows
        }

    return Bench(queue, listener, advance, hits, states)
