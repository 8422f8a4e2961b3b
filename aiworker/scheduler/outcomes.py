"""Writes outcomes and progress in batches, each only under its lease."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from uuid import UUID

from aiworker.domain.errors import DatabaseUnavailable, InputRejected, QueueError, WorkerError
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Failed, Outcome
from aiworker.domain.ports import JobSource
from aiworker.scheduler.running import RunningJob, RunningJobs
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.outcomes")

_LARGEST_BATCH = 200
_WRITES = 3
_DATABASE_RETRY_S = 0.5
_PROGRESS_INTERVAL_S = 0.2
_LEASE_LOST = "lease_lost"


Ended = tuple[RunningJob, Outcome]


class OutcomeWriter:
    """Takes outcomes at once, writes whatever has gathered while three writes were under way: while one waits for the
    server's disk, or for a row that somebody holds, the others go on.

    What was not taken is tried again in halves, by one write at a time and never together with what came later: a row
    that somebody holds is soon alone, and keeps others waiting no longer than it takes to find that out.

    While the database is away outcomes wait here and their leases stay held, so that nothing is done twice.
    """

    def __init__(self, source: JobSource, running: RunningJobs, metrics: Metrics) -> None:
        self._source = source
        self._running = running
        self._metrics = metrics
        self._waiting: list[Ended] = []
        self._arrived = asyncio.Event()
        self._again: deque[list[Ended]] = deque()
        self._tried_again: list[Ended] = []
        self._under_way = 0
        self._closing = False

    def submit(self, running: RunningJob, outcome: Outcome) -> None:
        self._waiting.append((running, outcome))
        self._arrived.set()

    def close(self) -> None:
        """`run` returns once everything that was submitted has been written."""
        self._closing = True
        self._arrived.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as writes:
            while not (self._closing and not self._waiting and not self._again and not self._under_way):
                await self._arrived.wait()
                self._arrived.clear()
                while self._under_way < _WRITES and (batch := self._next()):
                    self._under_way += 1
                    writes.create_task(self._write_beside(batch))

    def _next(self) -> list[Ended]:
        """Empty where nothing may be written now."""
        if self._again and not self._tried_again:
            self._tried_again = self._again.popleft()
            return self._tried_again
        batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
        return batch

    async def _write_beside(self, batch: list[Ended]) -> None:
        await self._write(batch)
        if batch is self._tried_again:
            self._tried_again = []
        self._under_way -= 1
        self._arrived.set()

    async def _write(self, batch: list[Ended]) -> None:
        try:
            lost = await self._source.finalise([(running.job.lease, outcome) for running, outcome in batch])
        except DatabaseUnavailable as error:
            _log.warning("outcomes wait for the database", waiting=len(batch), exc_info=error)
            middle = len(batch) // 2
            self._again += [half for half in (batch[:middle], batch[middle:]) if half]
            await asyncio.sleep(_DATABASE_RETRY_S)
        except WorkerError as error:
            await self._write_apart(batch, error)
        else:
            self._note(batch, lost)

    async def _write_apart(self, batch: list[Ended], error: WorkerError) -> None:
        """One of `batch` cannot be stored: the others must not wait for it, and it must end. An outcome whose value is
        refused becomes a failure; for any other reason the attempt is left to its lease and made again."""
        if len(batch) > 1:
            for ended in batch:
                await self._write([ended])
            return
        ((running, outcome),) = batch
        job = running.job
        _log.error("outcome cannot be stored", job_id=str(job.id), type=job.type, exc_info=error)
        if isinstance(error, InputRejected) and not isinstance(outcome, Failed):
            await self._write([(running, Failed(sentence(WorkerError.code), WorkerError.code))])
        else:
            self._running.remove([running])

    def _note(self, batch: list[Ended], lost: frozenset[UUID]) -> None:
        ends = Counter([(running.job.type, _how(running, outcome, lost)) for running, outcome in batch])
        self._running.remove([running for running, _ in batch])
        for (job_type, how), count in ends.items():
            self._metrics.jobs.labels(job_type, how).inc(count)
            if how == _LEASE_LOST:
                self._metrics.leases_lost.inc(count)
        if _log.is_enabled_for(logging.INFO):
            self._tell(batch, lost)

    def _tell(self, batch: list[Ended], lost: frozenset[UUID]) -> None:
        now = time.monotonic()
        for running, outcome in batch:
            job = running.job
            _log.info(
                "job ended",
                job_id=job.id,
                type=job.type,
                attempt=job.attempt,
                outcome=_how(running, outcome, lost),
                waited_s=job.waited_s,
                took_s=now - running.began,
            )


def _how(running: RunningJob, outcome: Outcome, lost: frozenset[UUID]) -> str:
    return _LEASE_LOST if lost and running.job.lease.job_id in lost else outcome.label


class ProgressWriter:
    """Coalesces progress: the newest report of each job, at most one write in every interval."""

    def __init__(self, source: JobSource) -> None:
        self._source = source
        self._newest: dict[RunningJob, tuple[int, str]] = {}
        self._arrived = asyncio.Event()

    def report(self, running: RunningJob, percent: int, stage: str) -> None:
        self._newest[running] = (percent, stage)
        self._arrived.set()

    def forget(self, running: RunningJob) -> None:
        """The job has ended; its outcome says more than its progress."""
        self._newest.pop(running, None)

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            newest, self._newest = self._newest, {}
            if newest:
                try:
                    await self._source.report({running.job.lease: said for running, said in newest.items()})
                except (QueueError, InputRejected) as error:
                    _log.debug("progress dropped", exc_info=error)
            await asyncio.sleep(_PROGRESS_INTERVAL_S)
