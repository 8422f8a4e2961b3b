"""Pruning: in bounded batches, again while there is more, and a database that is away ends nothing."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fakes.memory_queue import MemoryQueue

from aiworker.domain.errors import DatabaseUnavailable
from aiworker.domain.job import JobStatus, NewJob
from aiworker.scheduler.housekeeping import Housekeeper
from aiworker.telemetry.metrics import Metrics


async def cancelled(queue: MemoryQueue, count: int) -> None:
    for _ in range(count):
        enqueued = await queue.enqueue(NewJob(uuid4(), "sofia_text", {"text": "um ovo"}, use_cache=False))
        assert enqueued.job_id is not None
        await queue.cancel(enqueued.job_id, None)


async def test_what_is_old_goes_in_batches_and_what_is_young_stays() -> None:
    now = [0.0]
    queue, metrics = MemoryQueue(lambda: now[0]), Metrics()
    await cancelled(queue, 700)
    now[0] = 100.0
    await cancelled(queue, 3)
    housekeeper = Housekeeper(queue, metrics, retention_s=60)

    now[0] = 120.0
    assert [await housekeeper.prune() for _ in range(3)] == [True, False, False]

    assert [row.status for row in queue.rows()] == [JobStatus.CANCELLED] * 3
    assert metrics.pruned._value.get() == 700


async def test_a_database_that_is_away_is_tried_again_later() -> None:
    class Away(MemoryQueue):
        async def prune(self, keep_s: float, limit: int = 500) -> Any:
            raise DatabaseUnavailable("gone")

    assert not await Housekeeper(Away(), Metrics(), retention_s=60).prune()
